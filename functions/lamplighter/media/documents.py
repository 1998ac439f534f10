"""Finds the paths that a document holds: HTML, Markdown, JSON, or any text with paths in it.

What has the extension of a media file is a value, and counted. Everything else that stands where a path stands (a link
without extension, a string of JSON) is a hint: it keeps what it names, and is not counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from lamplighter.media.extensions import MEDIA

_EXTENSION: Final = rf"\.(?:{'|'.join(sorted(MEDIA))})(?![A-Za-z0-9])"
_MEDIA: Final = re.compile(rf"(?:\.|%2e)(?:{'|'.join(sorted(MEDIA))})(?![A-Za-z0-9])", re.IGNORECASE)
_PLACES: Final = re.compile(
    r"""
      (?P<name>[\w:.-]*\w)\\?\s*=\s*(?:\\?"(?P<double>[^"]*)"|\\?'(?P<single>[^']*)')
    | \b(?:src|href|poster|data|action)\s*=\s*(?P<unquoted>[^\s"'<>\\]+)
    | \burl\(\s*(?:"(?P<url_double>[^"]*)"|'(?P<url_single>[^']*)'|(?P<url>[^)"']*))\s*\)
    | \]\(\s*(?:<(?P<angle>[^>\n]*)>|(?P<link>(?:[^()\n]|\((?:[^()\n]|\([^()\n]*\))*\))*))\s*\)
    | ^\s{0,3}\[[^\]\n]+\]:\s*(?P<definition>\S+)
    """,
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
"""Where a document has a path: an attribute, a CSS url(), a link of Markdown or its definition."""
_TITLE: Final = re.compile(r"""\s+(?:"[^"]*"|'[^']*'|\([^()]*\))\s*$""")
_BARE: Final = re.compile(
    rf"""[^\s"'<>()\[\]{{}}|,;=*`]*?{_EXTENSION}(?:[?#][^\s"'<>()\[\]{{}}|,;*`]*)?""", re.IGNORECASE
)
"""A path in running text."""
_DELIMITER: Final = re.compile(r"""[\n"'<>|,;=]""")
_PATHS: Final = frozenset({"src", "href", "poster", "data", "action", "cite", "background", "content", "value"})
_WORDS: Final = 8
"""Words before an extension in running text that may belong to a name with blanks."""


def is_counted(text: str) -> bool:
    """Whether a text that stands in a document has the extension of a media file."""
    return _MEDIA.search(text) is not None


def in_json(documents: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """All strings of JSON documents, and names of members that are media files; with whether each is counted.

    A document that cannot be read (broken, or nested too deeply) is one value as it stands.
    """
    for document in documents:
        try:
            found = list(_strings(json.loads(document)))
        except (ValueError, RecursionError):
            yield document, True
            continue
        for text in found:
            yield text, is_counted(text)


def _strings(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, list):
            pending += reversed(one)
        elif isinstance(one, dict):
            yield from filter(is_counted, one)
            pending += reversed(one.values())


def in_markup(documents: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The paths of HTML, Markdown and CSS, and of the text between; with whether each is counted."""
    for document in documents:
        at = 0
        for place in _PLACES.finditer(document):
            yield from _in_text(document[at : place.start()])
            yield from _in_place(place)
            at = place.end()
        yield from _in_text(document[at:])


def _in_place(place: re.Match[str]) -> Iterator[tuple[str, bool]]:
    name = (place["name"] or "").lower()
    path = next((text for group, text in place.groupdict().items() if text is not None and group != "name"), "")
    path = path.removesuffix("\\")
    if place["link"] is not None:
        path = _TITLE.sub("", path)
    if name.endswith("srcset"):
        yield path, False
        for candidate in re.split(r",\s+|,(?=\S+\s)", path):
            yield from _counted(candidate.strip().split()[:1])
    elif name and name not in _PATHS and not name.startswith("data-"):
        if is_counted(path):
            yield path, False
            yield from in_markup([path]) if name == "style" else _in_text(path)
    else:
        yield from _counted([path])


def _counted(paths: Iterable[str]) -> Iterator[tuple[str, bool]]:
    for path in paths:
        yield path, is_counted(path)


def _in_text(text: str) -> Iterator[tuple[str, bool]]:
    """Paths in running text: up to the blank before counted, with the words before as hints."""
    if not _MEDIA.search(text):
        return
    for found in _BARE.finditer(text):
        yield found[0], True
        line = _DELIMITER.split(text[max(0, found.start() - 500) : found.start()])[-1]
        words = line.split(" ")
        for count in range(1, min(_WORDS, len(words)) + 1):
            yield " ".join(words[-count:]) + found[0], False
