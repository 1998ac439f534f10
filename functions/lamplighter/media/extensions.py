"""The names of images and videos."""

from __future__ import annotations

from typing import Final

_IMAGES = "avif bmp gif heic heif jfif jpeg jpg png svg tif tiff webp"
_VIDEOS = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg ogv webm wmv"
MEDIA: Final = frozenset(f"{_IMAGES} {_VIDEOS}".split())
"""Extensions of the images and videos that are ever touched (A1); not those that mean other things too, as .ts does."""


def is_media(key: str) -> bool:
    """Whether the key's extension is that of an image or video; a folder's never is."""
    _, dot, extension = key.rpartition(".")
    return bool(dot) and extension.lower() in MEDIA and "\0" not in key  # no database can name a key with NUL
