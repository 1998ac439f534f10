"""The order in which rows go that refer to one another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lamplighter.kernel.retention.chains import Chains, Groups, Node, in_order

rows = st.integers(0, 9).map(lambda n: (n % 2, f"(0,{n})"))
graphs = st.dictionaries(rows, st.sets(rows, max_size=4), max_size=10)


def reached(graph: dict[Node, set[Node]], node: Node) -> set[Node]:
    """The rows that refer to a row, directly or not."""
    found, pending = set[Node](), [node]
    while pending:
        for other in graph.get(pending.pop(), ()):
            if other not in found:
                found.add(other)
                pending.append(other)
    return found


@given(graph=graphs)
def test_each_row_comes_once_after_its_referrers_and_with_those_of_its_ring(graph: dict[Node, set[Node]]) -> None:
    done = set[Node]()
    for group in in_order(graph):
        ring = {other for other in graph if other in reached(graph, group[0]) and group[0] in reached(graph, other)}
        assert set(group) == ring | {group[0]}
        assert len(group) == len(set(group))
        done |= set(group)
        assert all(other in done or other not in graph for node in group for other in graph[node])
    assert done == graph.keys()


@given(graph=graphs, refused=st.sets(rows, max_size=3))
def test_what_a_row_refers_to_that_stays_stays_too(graph: dict[Node, set[Node]], refused: set[Node]) -> None:
    chains = Chains(graph)
    gone = set[Node]()
    for group in in_order(graph):
        if not chains.lets_go(group):
            continue
        if refused & set(group):
            chains.held.update(group)
        else:
            gone |= set(group)

    for node in graph:
        stay = {other for other in {node} | reached(graph, node) if other not in graph or other in refused}
        assert (node in gone) == (not stay)
    assert set(chains.kept) <= graph.keys() - gone


def test_a_chain_of_a_hundred_thousand_rows_needs_no_deep_stack() -> None:
    graph: dict[Node, set[Node]] = {(1, str(n)): {(1, str(n + 1))} for n in range(100_000)}

    [*order] = in_order(graph)

    assert order == [[(1, str(n))] for n in reversed(range(100_000))]


def test_groups_are_halved_between_groups() -> None:
    place = Groups([[(1, "(0,1)"), (1, "(0,2)")], [(2, "(0,1)")]])

    first, second = place.halves()

    assert [*first.groups, *second.groups] == place.groups
    assert first.halves() == second.halves() == ()
    assert place.parameters() == {
        "tids": place.parameters()["tids"],
        "tids1": '{"(0,1)","(0,2)"}',
        "tids2": '{"(0,1)"}',
    }
    assert "= 1 AND" in place.sql
    assert "= 2 AND" in place.sql
