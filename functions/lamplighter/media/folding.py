"""Reduces object keys and stored values to one folded path, so that every way of writing a key compares equal.

A key and all values that name it have the same folded path: percent-encoded, HTML-escaped, in another Unicode form or
case, with doubled slashes, blanks or quotes. Folding makes classes: `a b`, `a+b` and `a%20b` are one path, hence a
value that names any of them keeps all three. That costs a few orphans and never a file.

Sets of paths are stored as 64-bit fingerprints. `PROBE` tells whether stored fingerprints are still comparable.
"""

from __future__ import annotations

import html
import re
import sys
from array import array
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import source_hash
from itertools import compress
from typing import Final, NamedTuple
from unicodedata import normalize

ROUNDS: Final = 8
"""Escapes inside escapes are undone this often; deeper ones lose the characters that begin an escape."""

QUOTES: Final = "'\"`\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a"
"""Quotes, which are trimmed from both ends of a segment as blanks are."""
_INVISIBLE: Final = re.compile(
    "[\0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0]+"
)
"""Characters without width, and NUL, which no database holds."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_PERCENT: Final = re.compile("((?:%[0-9A-Fa-f]{2})+)")
_ENTITY: Final = re.compile(r"(&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?))")
"""What `html.unescape` looks at."""
_UNICODE: Final = re.compile(r"(\\+u[0-9A-Fa-f]{4})")

_BLANKS: Final = re.compile(r"\s+")

# For batches, whose texts are the lines of one string: a segment ends at a slash or at the line's end.
_LINE_BLANKS: Final = re.compile(r"[^\S\n]+")
_ODD_BLANKS: Final = ("  ", *"\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u1680\u2028\u2029")
"""All white space that NFKC leaves, but a single blank."""
_LINE_TRIM: Final = re.compile(rf"(?<![ {QUOTES}])[ {QUOTES}]++(?![^/\n])|(?<![^/\n])[ {QUOTES}]+")
_LINE_DOTS: Final = re.compile(r"\.(?<![^/\n]\.)\.?(?![^/\n])")


def fold(text: str) -> str:
    """The folded path of a key or of a value. `fold(fold(text)) == fold(text)`.

    Until nothing changes: undo %XX, HTML entities and `\\uXXXX`; drop characters without width; NFKD, casefold, NFKC;
    the Turkish letters i are one; a backslash is a slash, a plus a blank; in each segment squeeze blanks, trim blanks
    and quotes; drop empty and `.` segments, resolve `..`.
    """
    for _ in range(ROUNDS):
        folded = _fold_once(text)
        if folded == text:
            return folded
        text = folded
    return _fold_once(_fold_once(re.sub(r"[%&\\]", "", text)))


def fold_batch(texts: Sequence[str]) -> list[str]:
    """`[fold(text) for text in texts]`, 50 times faster for plain keys: all is done on the joined text."""
    if not texts:
        return []
    folded = _fold_lines(texts)
    moving = _unsettled(folded, range(len(folded)))
    for _ in range(ROUNDS - 1):
        if not moving:
            return folded
        before = [folded[n] for n in moving]
        changed = []
        for n, old, new in zip(moving, before, _fold_lines(before), strict=True):
            if new != old:
                folded[n] = new
                changed.append(n)
        moving = _unsettled(folded, changed) if changed else []
    for n in moving:
        folded[n] = fold(texts[n])
    return folded


def _unsettled(folded: list[str], positions: Iterable[int]) -> list[int]:
    """Those of the positions whose texts another round may change."""
    joined = "\n".join(folded)
    escapes = "%" in joined or "&" in joined
    if joined.isascii() and not escapes:
        return []
    if not escapes and _normal(joined) == joined:
        return []
    return [
        n
        for n in positions
        if "%" in (text := folded[n]) or "&" in text or (not text.isascii() and _normal(text) != text)
    ]


def _normal(text: str) -> str:
    """NFKD, casefold, NFKC. The letters i with and without a dot are one: they change case by language."""
    text = normalize("NFKD", text).casefold().replace("\u0131", "i").replace("i\u0307", "i")
    return normalize("NFKC", text)


def _fold_once(text: str) -> str:
    text = _undo_escapes(_without_surrogates(text))
    text = _INVISIBLE.sub("", text)
    text = _BLANKS.sub(" ", _normal(text).replace("\\", "/").replace("+", " "))
    return _resolve([segment.strip(" " + QUOTES) for segment in text.split("/")])


def _resolve(segments: list[str]) -> str:
    path: list[str] = []
    for segment in segments:
        if segment == "..":
            del path[-1:]
        elif segment not in {"", "."}:
            path.append(segment)
    return "/".join(path)


def _fold_lines(texts: Sequence[str]) -> list[str]:
    """`_fold_once` of each text."""
    joined = "\n".join(texts)
    if joined.count("\n") >= len(texts):
        texts = [text.replace("\n", " ") for text in texts]
        joined = "\n".join(texts)
    if not joined.isascii():
        joined = _without_surrogates(joined)
    if "%" in joined or "&" in joined or "\\u" in joined:
        joined = _undo_escapes(joined, newline=" ")
    joined = joined.replace("\0", "").lower() if joined.isascii() else _normal(_INVISIBLE.sub("", joined))
    return _resolve_lines(_trim_lines(joined.replace("\\", "/").replace("+", " ")))


def _trim_lines(joined: str) -> str:
    if any(blank in joined for blank in _ODD_BLANKS):
        joined = _LINE_BLANKS.sub(" ", joined)
    if any(quote in joined for quote in QUOTES):
        return _LINE_TRIM.sub("", joined)
    if " " in joined:
        joined = joined.strip(" ").replace(" /", "/").replace("/ ", "/").replace(" \n", "\n").replace("\n ", "\n")
    return joined


def _resolve_lines(joined: str) -> list[str]:
    while "//" in joined:
        joined = joined.replace("//", "/")
    lines = joined.strip("/").replace("\n/", "\n").replace("/\n", "\n").split("\n")
    if "/." in joined or "\n." in joined or joined[:1] == ".":
        lines = [_resolve(line.split("/")) if _LINE_DOTS.search(line) else line for line in lines]
    return lines


def _without_surrogates(text: str) -> str:
    """Pairs of surrogates as the character that they encode, lone ones as U+FFFD."""
    if not text.isascii() and _SURROGATE.search(text):
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _undo_escapes(text: str, *, newline: str = "\n") -> str:
    """The text without escapes, those inside escapes included.

    Args:
        text: one text, or the lines of a batch.
        newline: what an escaped end of line becomes.
    """
    for _ in range(ROUNDS):
        before = text
        if "%" in text:
            text = _replaced(_PERCENT, _decoded, text, newline)
        if "&" in text:
            text = _replaced(_ENTITY, html.unescape, text, newline)
        if "\\u" in text:
            text = _without_surrogates(_replaced(_UNICODE, _character, text, newline))
        if text == before:
            break
    return text


def _replaced(escape: re.Pattern[str], undo: Callable[[str], str], text: str, newline: str) -> str:
    """The text with each escape undone; equal ones, which a batch has many of, at once."""
    pieces = escape.split(text)
    undone = {piece: undo(piece).replace("\n", newline) for piece in set(pieces[1::2])}
    pieces[1::2] = map(undone.__getitem__, pieces[1::2])
    return "".join(pieces)


def _character(escape: str) -> str:
    return chr(int(escape[-4:], 16))


def _decoded(run: str) -> str:
    data = bytes.fromhex(run.replace("%", ""))
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:  # five bytes that cp1252 does not define
        return data.decode("latin-1")


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of a bucket that is listed."""

    bucket: str
    folder: str = ""
    """The `base_path`: empty, or ending with a slash."""


_HOST: Final = r"[^/\\?#\n]*"
_ORIGIN: Final = re.compile(rf"[A-Za-z][A-Za-z0-9+.\-]*:[/\\]+{_HOST}(?=[/\\?#]|\Z)|arn:aws[a-z\-]*:s3:::", re.I)
_ORIGIN_LINE: Final = re.compile(rf"^[A-Za-z][A-Za-z0-9+.\-]*+://{_HOST}/", re.M)
_SCHEMELESS: Final = re.compile(rf"[/\\]{{2,}}(?!/){_HOST}(?=[/\\])")
_ESCAPED_ORIGIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(?:%|&|\\u)", re.I)
_AROUND: Final = " \t\r\n\f\v\xa0\u200b\ufeff" + QUOTES
_DOTTED: Final = re.compile(r"\.\.|%2e|%25|&|\\u", re.I)
"""What may undo to `..`."""
_SPECIAL_ESCAPE: Final = re.compile("%(?:2e|25|3a)", re.I)


def _is_special(text: str) -> bool:
    """Whether a value, after a plain origin, or any line of a batch, needs more than to be folded."""
    return (
        "?" in text
        or "#" in text
        or ":" in text
        or "&" in text
        or "\\" in text
        or "//" in text
        or ".." in text
        or ("%" in text and _SPECIAL_ESCAPE.search(text) is not None)
    )


def readings(value: str, scope: Scope, strip: Sequence[str] = ()) -> tuple[str, ...]:
    """The folded paths, at or below the scope's folder, of all keys that `value` may mean.

    Args:
        value: a key, a path relative to a leading part of the folder, a URL, an ARN, in any encoding.
        strip: declared prefixes of values that are no part of keys.
    """
    spread = spread_batch([value], scope, strip)[0]
    return spread.absolute + spread.relative


def readings_batch(values: Sequence[str], scope: Scope, strip: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """`[readings(value, scope, strip) for value in values]`, for less than one by one."""
    return [absolute + relative for absolute, relative, _ in spread_batch(values, scope, strip)]


class Spread(NamedTuple):
    """The folded paths that a value may mean."""

    absolute: tuple[str, ...]
    """At or below the scope's folder, when the value is a whole key."""
    relative: tuple[str, ...]
    """At or below it, when the value lacks the folder or leading parts of it."""
    beyond: tuple[str, ...]
    """Not below it: no key that is listed."""


def spread_batch(values: Sequence[str], scope: Scope, strip: Sequence[str] = ()) -> list[Spread]:
    """What each value may mean."""
    if not values:
        return []
    layout = _layout(scope, tuple(strip))
    lines = _without_origin(values).split("\n")
    paths = [bare_paths(value) if _is_special(line) else [line] for value, line in zip(values, lines, strict=True)]
    folded = fold_batch([path for some in paths for path in some])
    spreads, end = [], 0
    for some in paths:
        start, end = end, end + len(some)
        spreads.append(_spread(some, folded[start:end], layout))
    return spreads


class Plain:
    """Those values of a batch that only have to be folded: keys, and URLs without a query. Most values of most columns.

    What takes `spread_batch` a tuple of tuples for each value is done here for all of them at once.

    Attributes:
        values: the plain values.
        folded: their folded paths.
        others: the other values of the batch, for `spread_batch`.
    """

    def __init__(self, values: Sequence[str], scope: Scope, strip: Sequence[str] = ()) -> None:
        self._layout = _layout(scope, tuple(strip))
        self.values: Sequence[str] = ()
        self.folded: list[str] = []
        self.others: Sequence[str] = values
        if not values or self._layout.strip:
            return
        joined = _without_origin(values)
        lines = joined.split("\n")
        self.values, self.others = values, ()
        if _is_special(joined):
            special = list(map(_is_special, lines))
            lines = [line for line, is_special in zip(lines, special, strict=True) if not is_special]
            self._divide(special)
        self.folded = fold_batch(lines)
        if "" in self.folded:  # of slashes and dots only: no path
            self._divide([not path for path in self.folded])
            self.folded = [path for path in self.folded if path]

    def _divide(self, is_other: Sequence[bool]) -> None:
        """Move some of the values to the others."""
        self.others = [*self.others, *compress(self.values, is_other)]
        self.values = [value for value, other in zip(self.values, is_other, strict=True) if not other]

    def paths(self) -> list[str]:
        """All paths that any of the values may mean, and those beyond the scope's folder."""
        bases = self._bases()
        return bases + self._relative(bases)

    def readings(self) -> list[str]:
        """All paths, at or below the scope's folder, that any of the values may mean."""
        bases, root = self._bases(), self._layout.folder
        return [base for base in bases if (base + "/").startswith(root)] + self._relative(bases) if root else bases

    def _bases(self) -> list[str]:
        bucket = self._layout.bucket
        return self.folded + [path[len(bucket) :] for path in self.folded if path.startswith(bucket)]

    def _relative(self, bases: list[str]) -> list[str]:
        found: list[str] = []
        for lead, rest in self._layout.leads:
            found += [lead + base for base in bases if not rest or (base + "/").startswith(rest)]
        return found

    def likely(self) -> tuple[Likely, Likely]:
        """Of each value the path that it most likely means: first values that are whole keys, then relative ones.

        A value of the first kind that is not matched by this path may be by another. One of the second kind has no
        reading as a whole key. Values in neither begin with the bucket's name.
        """
        root, bucket = self._layout.folder, self._layout.bucket
        if not root:
            return Likely(self.values, self.folded), Likely((), [])
        whole = [(path + "/").startswith(root) for path in self.folded]
        relative = [
            (value, root + path)
            for value, path, is_whole in zip(self.values, self.folded, whole, strict=True)
            if not is_whole and not path.startswith(bucket)
        ]
        return (
            Likely(list(compress(self.values, whole)), list(compress(self.folded, whole))),
            Likely([value for value, _ in relative], [path for _, path in relative]),
        )


class Likely(NamedTuple):
    """Values, and one path of each."""

    values: Sequence[str]
    paths: list[str]


def _without_origin(values: Sequence[str]) -> str:
    """The values as lines, without a plain scheme and host."""
    joined = "\n".join(values)
    if joined.count("\n") >= len(values):
        joined = "\n".join([value.replace("\n", " ") for value in values])
    return _ORIGIN_LINE.sub("", joined) if "://" in joined else joined


def bare_paths(value: str) -> list[str]:
    """A value without its origin: whole, and cut at `#` and `?`. Not folded."""
    value = value.strip(_AROUND)
    if _ESCAPED_ORIGIN.match(value):
        undone = _undo_escapes(_without_surrogates(value)).strip(_AROUND)
        if origin := _ORIGIN.match(undone):
            return _cuts(undone[origin.end() :])
    if origin := _ORIGIN.match(value):
        return _cuts(value[origin.end() :])
    if origin := _SCHEMELESS.match(value):
        return _cuts(value[origin.end() :]) + _cuts(value)
    return _cuts(value)


def _cuts(path: str) -> list[str]:
    """The path, and what is before the first and the last `#` and `?`: names may hold either."""
    ends = {path.find("#"), path.find("?"), path.rfind("#"), path.rfind("?")} - {-1}
    return [path, *(path[:end] for end in sorted(ends))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """A scope and its declared prefixes, folded."""

    bucket: str
    folder: str
    leads: tuple[tuple[str, str], ...]
    """Each leading part of the folder that a value may lack, with the rest of the folder."""
    raw_leads: tuple[str, ...]
    strip: tuple[str, ...]


@lru_cache(maxsize=64)
def _layout(scope: Scope, strip: tuple[str, ...]) -> _Layout:
    folder = scope.folder
    raw_leads = tuple(folder[: end + 1] for end, character in enumerate(folder) if character == "/")
    prefixes = []
    for prefix in strip:
        path = bare_paths(prefix)[0]
        folded = fold(path)
        if folded:
            prefixes.append(folded + "/" if path.rstrip().endswith(("/", "\\")) else folded)
    root = fold(folder) + "/" if fold(folder) else ""
    leads = dict.fromkeys(fold(lead) + "/" for lead in raw_leads)
    return _Layout(
        bucket=fold(scope.bucket) + "/",
        folder=root,
        leads=tuple((lead, root[len(lead) :]) for lead in leads if root.startswith(lead)),
        raw_leads=raw_leads,
        strip=tuple(prefixes),
    )


def _spread(paths: Sequence[str], folded: Sequence[str], layout: _Layout) -> Spread:
    bases = dict.fromkeys(base for path in folded for base in _dropped(path, layout) if base)
    if not layout.folder:
        return Spread(tuple(bases), (), ())
    absolute = dict.fromkeys(base for base in bases if (base + "/").startswith(layout.folder))
    relative = {lead + base: None for base in bases for lead, rest in layout.leads if (base + "/").startswith(rest)}
    for path in paths:
        if _DOTTED.search(path):
            moved = [fold(lead + path) for lead in layout.raw_leads]
            relative |= dict.fromkeys(path for path in moved if (path + "/").startswith(layout.folder))
    return Spread(
        tuple(absolute),
        tuple(path for path in relative if path not in absolute),
        tuple(base for base in bases if base not in absolute),
    )


def _dropped(folded: str, layout: _Layout) -> list[str]:
    """The path, and what is left of it without declared prefixes, without the bucket's name, and without both."""
    paths = [folded, *_stripped([folded], layout)]
    in_bucket = [path[len(layout.bucket) :] for path in paths if path.startswith(layout.bucket)]
    return [*paths, *in_bucket, *_stripped(in_bucket, layout)]


def _stripped(paths: Sequence[str], layout: _Layout) -> list[str]:
    if not layout.strip:
        return []
    return [fold(path[len(prefix) :]) for path in paths for prefix in layout.strip if path.startswith(prefix)]


def ancestors(folded: str) -> list[str]:
    """The folders of a folded path: `a/b/c` has `a` and `a/b`."""
    return [folded[:end] for end, character in enumerate(folded) if character == "/"]


def below(folders: Container[int], folded: str) -> bool:
    """Whether a folded path is in a folder, at any depth, whose fingerprint is in `folders`."""
    return any(fingerprint(folder) in folders for folder in ancestors(folded))


def fingerprint_batch(texts: Sequence[str]) -> array[int]:
    """64 bits of each folded path, the same in every process: `array("Q")`.

    The hash is the interpreter's SipHash, which marks source files in `.pyc` files and takes a fifth of blake2b's
    time. Another version of Python has another key: stored fingerprints carry `PROBE`.
    """
    data = b"".join(map(source_hash, map(str.encode, texts)))
    prints = array("Q", data)
    if sys.byteorder == "big":
        prints.byteswap()
    return prints


def fingerprint(text: str) -> int:
    """64 bits of a folded path, as `fingerprint_batch` makes them."""
    return int.from_bytes(source_hash(text.encode()), "little")


PROBE: Final = fingerprint("lamplighter/probe.jpg")
"""Two processes whose probes are equal can compare their fingerprints."""
