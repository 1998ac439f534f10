"""HTML and SVG as text in which every value is escaped, unless it is markup already."""

from __future__ import annotations

import html
from typing import Final

VOID: Final = frozenset({"meta"})
"""Elements without an end."""


class Markup(str):
    """Text that is markup, and stays as it is."""

    __slots__ = ()


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """An element. Attributes are spelled with `_` for `-`, and one after `class` or `for`; None leaves one out."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{told}>" + ("" if name in VOID else f"{join(*content)}</{name}>"))


def join(*content: object) -> Markup:
    """All of it, one after the other."""
    return Markup("".join(each if isinstance(each, Markup) else html.escape(str(each)) for each in content))
