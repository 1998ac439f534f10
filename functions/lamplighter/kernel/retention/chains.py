"""Rows of one table that refer to one another, in an order in which the database lets them go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

type Node = tuple[int, str]
"""A row: the oid of the table that stores it, and its ctid."""


def in_order(referrers: Mapping[Node, Collection[Node]]) -> Iterator[list[Node]]:
    """Yields groups of rows, each after all groups that refer to it; a group is a single row or rows in cycles.

    The groups are the strongly connected components of the graph (Tarjan 1972, "Depth-first search and linear graph
    algorithms"), without recursion because a chain can be long.

    Args:
        referrers: for each row the rows that refer to it; those that are no key are ignored.
    """
    number: dict[Node, int] = {}
    lowest: dict[Node, int] = {}
    path: list[Node] = []
    on_path: set[Node] = set()
    for start in referrers:
        if start in number:
            continue
        work = [(start, iter(referrers[start]))]
        while work:
            node, rest = work[-1]
            if node not in number:
                number[node] = lowest[node] = len(number)
                path.append(node)
                on_path.add(node)
            for other in rest:
                if other not in referrers:
                    continue
                if other not in number:
                    work.append((other, iter(referrers[other])))
                    break
                if other in on_path:
                    lowest[node] = min(lowest[node], number[other])
            else:
                work.pop()
                if work:
                    before = work[-1][0]
                    lowest[before] = min(lowest[before], lowest[node])
                if lowest[node] == number[node]:
                    group = [path.pop()]
                    while group[-1] != node:
                        group.append(path.pop())
                    on_path.difference_update(group)
                    yield group


def array_of(tids: Iterable[str]) -> str:
    """As PostgreSQL reads it."""
    return '{"' + '","'.join(tids) + '"}'


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of several tables in groups; each group goes whole, and after the rows that refer to it."""

    groups: Sequence[Sequence[Node]]

    @property
    def sql(self) -> str:
        of_tables = (
            f"(CAST(tableoid AS bigint) = {oid} AND ctid = ANY (CAST(:tids{oid} AS tid[])))" for oid in self._tids()
        )
        return f"ctid = ANY (CAST(:tids AS tid[])) AND ({' OR '.join(of_tables)})"

    def parameters(self) -> dict[str, object]:
        every = {"tids": array_of({tid for _, tid in self.nodes()})}
        return {**every, **{f"tids{oid}": array_of(tids) for oid, tids in self._tids().items()}}

    def halves(self) -> tuple[Groups, ...]:
        middle = len(self.groups) // 2
        return (Groups(self.groups[:middle]), Groups(self.groups[middle:])) if middle else ()

    def nodes(self) -> Iterator[Node]:
        return (node for group in self.groups for node in group)

    def _tids(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for oid, tid in self.nodes():
            found.setdefault(oid, []).append(tid)
        return found


@dataclass(slots=True)
class Chains:
    """Which rows can go, as far as their referrers have gone or go with them."""

    referrers: Mapping[Node, Collection[Node]]
    """The rows that refer to each row; one that is no key stays."""
    held: set[Node] = field(default_factory=set)
    """Rows that stay, and all that they refer to as soon as it was asked for."""
    kept: list[Node] = field(default_factory=list)
    """Rows that stay because a row that stays refers to them."""

    def lets_go(self, group: Sequence[Node]) -> bool:
        """Whether nothing that stays refers to a group; otherwise the group stays too."""
        others = {other for node in group for other in self.referrers[node]}.difference(group)
        if all(other in self.referrers and other not in self.held for other in others):
            return True
        self.held.update(group)
        self.kept += group
        return False

    def going(self, place: Groups) -> Groups | None:
        """The groups of a batch that can go now; the batch itself if all can."""
        groups = [group for group in place.groups if self.lets_go(group)]
        if len(groups) == len(place.groups):
            return place
        return Groups(groups) if groups else None
