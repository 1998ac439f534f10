"""What owners say about their media: the folder, which columns name files, and how derived files are named.

Settings of the domain `media`. Plain dataclasses, which pydantic validates where they come from outside (`Settings`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, unquote

from annotated_types import Interval, MinLen

_STRICT: Final = {"extra": "forbid"}
"""For pydantic: an unknown name is an error."""

_TABLE: Final = re.compile(r"[^.,\x00]+(\.[^.,\x00]+)?")
_COLUMN: Final = re.compile(r"[^.,\x00]+")
_FOLDER_KINDS: Final = (None, "text", "array")

MOST: Final = 1_000_000_000
"""The largest number of objects, rows or references that a setting takes."""

type Prefix = Annotated[str, MinLen(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A column whose values name files."""

    __pydantic_config__ = _STRICT

    table: str
    """Its table or view: `table` or `schema.table`."""
    column: str
    kind: Literal["text", "array", "json", "html"] | None = None
    """What a value is; None follows the column's type. `html` is also for Markdown."""
    path: str | None = None
    """With `json`: the JSON path of the strings that name files, such as `$.images[*].url`. None takes all strings."""
    strip: tuple[Prefix, ...] = ()
    """Prefixes that are dropped from a value before it is read, such as `static/`."""
    elsewhere: tuple[Prefix, ...] = ()
    """Hosts or prefixes of values that name files outside this bucket."""
    folder: bool = False
    """Whether a value names a folder, which keeps all files below it."""
    max_unmatched: Annotated[int, Interval(ge=0, le=MOST)] = 0
    """How many values without a file are accepted: the missing files that the owner has seen."""
    max_unreadable: Annotated[int, Interval(ge=0, le=MOST)] = 0
    """How many of them may lack the extension of an image or a video."""

    def __post_init__(self) -> None:
        if not _TABLE.fullmatch(self.table):
            raise ValueError(f"table takes table or schema.table, got {self.table[:80]!r}")
        if not _COLUMN.fullmatch(self.column):
            raise ValueError(f"column takes the name of one column, got {self.column[:80]!r}")
        if self.path is not None and self.kind != "json":
            raise ValueError("path is taken with kind json only")
        if self.path is not None and (not self.path.startswith("$") or "\x00" in self.path):
            raise ValueError(f"path takes a JSON path, which begins with $, got {self.path[:80]!r}")
        if self.folder and self.kind not in _FOLDER_KINDS:
            raise ValueError(f"folder is taken with kind text or array only, got {self.kind}")

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"

    @classmethod
    def fields_of(cls, text: str) -> dict[str, Any]:
        """The fields that `table.column` or `schema.table.column` gives; the dataclass validates them."""
        table, _, column = text.strip().rpartition(".")
        return {"table": table, "column": column}


DERIVED: Final = (
    "{name}-{n}x{n}",
    "{name}_{n}x{n}",
    "{name}.{n}x{n}_{any}",
    "{name}-scaled",
    "{name}-rotated",
    "{name}-e{n}",
    "{name}@{n}x",
    "{name}_o",
    "{name}_{n}_{n}x{n}",
    "{name}___{any}",
    "{name}_thumb",
    "{name}-thumb",
    "{name}_thumbnail",
    "{name}-thumbnail",
    "{name}_small",
    "{name}_medium",
    "{name}_large",
    "thumbnail_{name}",
    "thumb_{name}",
    "small_{name}",
    "medium_{name}",
    "large_{name}",
    "thumbs/",
    "thumbnails/",
    "thumb/",
    "small/",
    "medium/",
    "large/",
    "optimized/",
    "conversions/",
    "responsive-images/",
    "size/w{n}/",
)
"""Patterns of derived files as WordPress, easy-thumbnails, Strapi, Ghost, Discourse, Mastodon, laravel-medialibrary,
Retina images and others write them."""


def reference_of(value: object) -> object:
    """The fields of a reference that is given as text, for pydantic; anything else as it is."""
    return Reference.fields_of(value) if isinstance(value, str) else value


_PLACES: Final = re.compile(r"(\{name\}|\{n\}|\{any\})")
_FOLDERS: Final = re.compile(r"(?:(?:[^/{}\x00]|\{n\})+/)+")
_NO_NAME: Final = re.compile(r"[\s.+'\"]*")
"""What is left of a name once it is folded: nothing."""


_WHOLE: Final = "-"
"""How a scope writes the whole bucket; a folder of this name is written with its slash."""


def derived_pattern(pattern: str) -> str:
    """The pattern of derived files, once it is known to say something.

    Raises:
        ValueError: it does not; names the pattern and what is accepted.
    """
    if _FOLDERS.fullmatch(pattern):
        segments = pattern[:-1].split("/")
        literal = "".join(segments).replace("{n}", "")
        if not any(map(_NO_NAME.fullmatch, [literal, *segments])):
            return pattern
    parts = derived_parts(pattern)
    literal = "".join(parts[::2])
    if (
        parts.count("{name}") != 1
        or parts.count("{any}") > 1
        or _NO_NAME.fullmatch(literal)
        or re.search(r"[/{}\x00]", literal)
    ):
        raise ValueError(
            f"derived: {pattern[:80]!r} takes {{name}} once, {{n}} for digits, {{any}} at most once, and some other"
            " characters, as in {name}-{n}x{n}; or folders with {n} at most, as in thumbs/ or size/w{n}/"
        )
    return pattern


def derived_parts(pattern: str) -> list[str]:
    """A pattern's literal texts, and between them its places."""
    return _PLACES.split(pattern)


def folder_of(path: str) -> str:
    """A path as keys have it: no slash before, one behind, nothing for the whole bucket.

    Raises:
        ValueError: it has an empty segment, `.` or `..`, which would be another folder once it is read as a path.
    """
    path = path.strip("/")
    segments = unquote(path).replace("\\", "/").split("/")
    if path and any(segment.strip() in {"", ".", ".."} or "\0" in segment for segment in segments):
        raise ValueError("takes a folder without empty segments, . or ..")
    return f"{path}/" if path else ""


def scope_of(bucket: str, folder: str) -> str:
    """The scope of a cleanup: a bucket and a folder of it, which is empty or ends with a slash."""
    return f"{bucket}/{quote(folder, safe='') or _WHOLE}"


def scopes_around(scope: str) -> list[str]:
    """A scope and those of the folders around it, the whole bucket last."""
    bucket, _, written = scope.partition("/")
    segments = [] if written == _WHOLE else unquote(written).removesuffix("/").split("/")
    folders = ["".join(f"{one}/" for one in segments[:end]) for end in range(len(segments), -1, -1)]
    return [scope_of(bucket, folder) for folder in folders]
