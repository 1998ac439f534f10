"""Finds the paths that a document holds: HTML, Markdown, JSON, or any text with paths in it.

What has the extension of a media file, or stands where only an image or video can, is a value, and counted. Everything
else that stands where a path stands (a link without extension, a string of JSON) is a hint: it keeps what it names, and
is not counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from lamplighter.media.extensions import MEDIA

_MEDIA: Final = re.compile(rf"(?:\.|%2e)(?:{'|'.join(sorted(MEDIA))})(?![A-Za-z0-9])", re.IGNORECASE)
# All repetitions are bounded: what is read here was written by others, and may be megabytes without a delimiter.
_PLACES: Final = re.compile(
    r"""
      (?<![\w:.-])(?P<name>[\w:.-]{1,60})\s{0,9}=\s{0,9}
        (?:\\?"(?P<double>[^"]{0,8000})"|\\?'(?P<single>[^']{0,8000})')
    | \b(?P<bare>src|href|poster|data|action)\s{0,9}=\s{0,9}(?P<unquoted>[^\s"'<>\\]{1,8000})
    | \burl\(\s{0,9}
        (?:"(?P<url_double>[^"]{0,8000})"|'(?P<url_single>[^']{0,8000})'|(?P<url>[^()"'\n]{0,2000}))\s{0,9}\)
    | (?P<image>!\[(?:[^\[\]]|\[[^\[\]]{0,200}\]){0,500})?
      \]\(\s{0,9}
        (?:<(?P<angle>[^>\n]{0,4000})>|(?P<link>(?:[^()\n]|\((?:[^()\n]|\([^()\n]{0,200}\)){0,200}\)){0,4000}))\s{0,9}\)
    | ^[ ]{0,3}\[[^\]\n]{1,200}\]:[ \t]{0,9}(?P<definition>\S{1,8000})
    """,
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
"""Where a document has a path: an attribute, a CSS url(), a link of Markdown or its definition."""
_TAG: Final = re.compile(r"<(?:img|image|picture|source|video|audio|track|input)\b[^<]*\Z", re.IGNORECASE)
"""Before an attribute, that it is of an element whose `src` can only be media."""
_CANDIDATE: Final = re.compile(r"[\s,]*(\S*[^\s,])(?:\s+[^,]{0,100})?(?:,|\Z)")
"""One image of a `srcset`, before its descriptor."""
_TITLE: Final = re.compile(r"""\s(?:"[^"]{0,1000}"|'[^']{0,1000}'|\([^()]{0,1000}\))\s{0,9}\Z""")
_QUERY: Final = re.compile(r"""[?#][^\s"'<>()\[\]{}|,;*`]{0,2000}""")
_STOPS: Final = "\n\r\t \f\v\xa0\"'<>()[]{}|,;=*`"
"""What a path in running text does not hold."""
_BREAKS: Final = re.compile(r"""[\n"'<>|,;=]""")
_BEFORE: Final = 1100
"""Characters before an extension that are looked at: a key has at most 1,024 bytes."""
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


def at_path(results: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """What a JSON path selects, as JSON: each string is counted; of an object or a list, what `in_json` counts.

    Rows differ: where one has a path, another has an object that holds it.
    """
    for result in results:
        value = json.loads(result)
        if isinstance(value, str):
            yield value, True
        else:
            yield from ((text, is_counted(text)) for text in _strings(value))


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
            yield from _in_place(place, document)
            at = place.end()
        yield from _in_text(document[at:])


def _in_place(place: re.Match[str], document: str) -> Iterator[tuple[str, bool]]:
    found = place.groupdict()
    name = (found.pop("name") or found.pop("bare") or "").lower()
    is_image = found.pop("image") is not None or name == "poster"
    path = next((text for group, text in found.items() if text is not None and group != "bare"), "").removesuffix("\\")
    if place["link"] is not None:
        path = _TITLE.sub("", path)
    if name.endswith("srcset"):
        yield path, False
        yield from ((one, True) for one in _CANDIDATE.findall(path))
    elif name and name not in _PATHS and not name.startswith("data-"):
        if is_counted(path):
            yield path, False
            yield from in_markup([path]) if name == "style" else _in_text(path)
    else:
        is_image = is_image or (name == "src" and _TAG.search(document, max(0, place.start() - 2000), place.start()))
        yield path, bool(is_image) or is_counted(path)


def _in_text(text: str) -> Iterator[tuple[str, bool]]:
    """Paths in running text: from the last blank or the like counted, with the words before as hints."""
    previous = 0
    for end in _MEDIA.finditer(text):
        if end.start() < previous:
            continue  # in the query of the path before
        window = text[max(previous, end.end() - _BEFORE) : end.end()]
        name = window[max(map(window.rfind, _STOPS)) + 1 :]
        query = _QUERY.match(text, end.end())
        previous = query.end() if query else end.end()
        path = name + (query[0] if query else "")
        yield path, True
        words = _BREAKS.split(window[: len(window) - len(name)])[-1].split(" ")
        for count in range(1, min(_WORDS, len(words)) + 1):
            yield " ".join(words[-count:]) + path, False
