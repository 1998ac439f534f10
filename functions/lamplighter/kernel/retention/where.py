"""The SQL condition of a rule: what makes it one expression over the row, and how it is written for SQLAlchemy.

PostgreSQL's lexical rules decide what is code and what is a string or a comment ("SQL Syntax", 4.1). Whether the
expression is valid only the database knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_TOKEN: Final = re.compile(
    r"""
    (?P<line_comment>--[^\n\r]*)
    |(?P<block_comment>/\*)
    |(?P<string>'(?:[^']|'')*')
    |(?P<identifier>"(?:[^"]|"")*")
    |(?P<word>[^\W\d][\w$]*)
    |(?P<dollar>\$(?:[^\W\d]\w*)?\$)
    |(?P<escaped>\\:)
    |(?P<cutoff>(?<![:\w\\]):cutoff(?!\w))
    |(?P<space>\s+)
    |(?P<character>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COLON: Final = re.compile(r"(?<!\\):")
_BLOCK: Final = re.compile(r"/\*|\*/")


class BadWhere(ValueError):
    """A condition is no single expression over the row. The message continues a sentence that names the field."""


def check(where: str) -> None:
    """Demands one expression over the row; it may read other tables inside `EXISTS (SELECT ...)` only.

    Raises:
        BadWhere: says what is wrong.
    """
    opened: list[bool] = []
    """For each open parenthesis, whether it is inside an EXISTS."""
    before, empty = "", True
    for kind, text in _tokens(where):
        if kind in ("space", "line_comment", "block_comment"):
            continue
        empty = False
        if kind == "string" and "\\'" in text:
            raise BadWhere("takes no backslash before a quote; write a quote inside a string twice")
        if text == "(":
            opened.append(before == "exists" or (bool(opened) and opened[-1]))
        elif text == ")":
            if not opened:  # it would end the parenthesis that every `where` is put into, and the clock with it
                raise BadWhere("closes a parenthesis that it has not opened")
            opened.pop()
        elif kind == "character" and text in ";$":
            reason = "takes one expression, without a semicolon" if text == ";" else "takes no parameter but :cutoff"
            raise BadWhere(reason)
        elif kind == "character" and text == "%":  # the driver's sign for a parameter
            raise BadWhere("takes no operator %; write mod(a, b)")
        elif kind == "character" and text in "'\"":
            raise BadWhere("has a quote that does not end")
        before = text.lower() if kind == "word" else ""
        if before in ("select", "table") and not (opened and opened[-1]):
            raise BadWhere("reads other tables only inside EXISTS (SELECT ...)")
    if opened:
        raise BadWhere("opens a parenthesis that it does not close")
    if empty:
        raise BadWhere("takes an SQL expression over the row")


def reads_tables(where: str) -> bool:
    """Whether a condition reads other tables."""
    return any(kind == "word" and text.lower() == "exists" for kind, text in _tokens(where))


def bound(where: str) -> str:
    r"""The condition for SQLAlchemy's `text`: of all colons only that of `:cutoff` begins a parameter.

    A colon that is written `\:`, as earlier versions asked for, stays one. Comments go, and strings are written as the
    driver knows them: it takes a quote inside of these for the beginning of a string.
    """
    return "".join(map(_sent, _tokens(where)))


def _sent(token: tuple[str, str]) -> str:
    kind, text = token
    if kind == "cutoff":
        return text
    if kind in ("line_comment", "block_comment"):
        return " "
    if kind == "dollar" and "\\" not in text:
        mark = text[: text.index("$", 1) + 1]
        text = "'" + text[len(mark) : -len(mark)].replace("'", "''") + "'"
    return _COLON.sub(r"\\:", text)


def _tokens(where: str) -> Iterator[tuple[str, str]]:
    """Kind and text of each token.

    Raises:
        BadWhere: a string or a comment does not end.
    """
    position = 0
    while match := _TOKEN.match(where, position):
        kind, end = str(match.lastgroup), match.end()
        if kind == "block_comment":
            end = _end_of_comment(where, end)
        elif kind == "dollar":
            closing = where.find(match[0], end)
            if closing < 0:
                raise BadWhere("has a quote that does not end")
            end = closing + len(match[0])
        yield kind, where[position:end]
        position = end


def _end_of_comment(where: str, position: int) -> int:
    """Where a comment ends, which may hold others."""
    depth = 1
    while match := _BLOCK.search(where, position):
        depth += 1 if match[0] == "/*" else -1
        position = match.end()
        if depth == 0:
            return position
    raise BadWhere("has a comment that does not end")
