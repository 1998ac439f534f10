"""What the commands print: a line per step with its time; coloured, with a spinner, on a terminal, plain otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

console = Console(highlight=False)


class Step:
    """What a running step may say about itself; `said` ends up on its line."""

    def __init__(self) -> None:
        self.said = ""

    def say(self, text: str) -> None:
        self.said = text


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show `title` while the block runs, then one line: what was done, what it said, how long it took."""
    current, started = Step(), time.monotonic()
    try:
        if console.is_terminal:
            with console.status(escape(title)):
                yield current
        else:
            yield current
    except BaseException:
        console.print(f"[red]✗[/] {escape(title)}", soft_wrap=True)
        raise
    console.print(
        f"[green]✓[/] {escape(title):<22} {escape(current.said):<52} [dim]{time.monotonic() - started:5.1f} s[/]",
        soft_wrap=True,
    )
