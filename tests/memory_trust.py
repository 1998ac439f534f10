"""The ramp's table in memory, as `lamplighter.deletion.ramp.Table` describes it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import count

from lamplighter.deletion.ramp import Granted, Stored, Trust


class MemoryTable:
    """Trust in a dictionary. `before_write` is called once, between a read and the write that follows."""

    def __init__(self) -> None:
        self.items: dict[str, Stored] = {}
        self.runs: dict[tuple[str, str], Granted] = {}
        self.before_write: Callable[[], None] | None = None
        self.lost = 0
        self._versions = map(str, count(1))

    def read(self, scope: str) -> Stored:
        """As `Table.read`."""
        return self.items.get(scope, Stored(trust=None, version=None))

    def write(self, scope: str, trust: Trust, *, version: str | None) -> bool:
        """As `Table.write`."""
        interfere, self.before_write = self.before_write, None
        if interfere:
            interfere()
        if self.read(scope).version != version:
            self.lost += 1
            return False
        self.items[scope] = Stored(trust=trust, version=next(self._versions))
        return True

    def grant(self, scope: str, run: str, limit: int, *, epoch: str, expires: datetime) -> Granted:
        """As `Table.grant`."""
        return self.runs.setdefault((scope, run), Granted(limit, 0, epoch))

    def use(self, scope: str, run: str, items: int, *, limit: int) -> bool:
        """As `Table.use`."""
        granted = self.runs[scope, run]
        if granted.used > limit - max(items, 0):
            return False
        self.runs[scope, run] = granted._replace(used=granted.used + items)
        return True
