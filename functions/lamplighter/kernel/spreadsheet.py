"""Text that may be opened in a spreadsheet, which runs what looks like a formula (OWASP, "CSV Injection")."""

from __future__ import annotations

from typing import Final

FORMULA: Final = frozenset("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 - full-width, which Excel reads alike
"""What a formula begins with."""


def harmless(value: str) -> str:
    """The value, with an apostrophe before it if a spreadsheet would make a formula of it."""
    return f"'{value}" if value.lstrip()[:1] in FORMULA or value[:1] in FORMULA else value
