"""What the commands print: a line per step with its time; coloured, with a spinner, on a terminal, plain otherwise."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich import box
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

READABLE: Final = 100
"""Columns beyond which text is hard to read, however wide the terminal."""

console = Console(highlight=False)
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = READABLE  # nobody's terminal folds what is read from a file


class Step:
    """What a running step may say about itself; `said` ends up on its line."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        self.said = ""
        self.advance = advance
        """Tell that so many more of the total are done."""

    def say(self, text: str) -> None:
        self.said = text


@contextmanager
def step(title: str, total: int | None = None) -> Iterator[Step]:
    """Show `title` while the block runs, then one line: what was done, what it said, how long it took.

    On a terminal there is a spinner meanwhile, and a bar where there is a total.
    """
    counted = (BarColumn(), MofNCompleteColumn()) if total else ()
    started = time.monotonic()
    try:
        bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), *counted,
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        with bar:
            task = bar.add_task(escape(title), total=total)
            current = Step(lambda more: bar.advance(task, more))
            yield current
    except BaseException:
        console.print(f"[red]✗[/] {escape(title)}", soft_wrap=True)
        raise
    console.print(
        f"[green]✓[/] [dim]{time.monotonic() - started:5.1f} s[/]  {escape(title):<10} {escape(current.said)}",
        soft_wrap=True,
    )


def say(sentence: str) -> None:
    """Show a sentence, in lines that can be read."""
    console.print(escape(sentence), width=min(console.width, READABLE))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
    lines: bool = False,
) -> None:
    """Show a table; columns in `right` are aligned so, those in `whole` are not folded, `lines` are drawn between rows,
    a `Text` keeps its style."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_lines=lines)
    for column in columns:
        justify: JustifyMethod = "right" if column in right else "left"
        shown.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else escape(str(cell)) for cell in row))
    console.print(shown, width=min(console.width, READABLE))
