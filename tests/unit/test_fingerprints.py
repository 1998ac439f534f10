"""`lamplighter.media.fingerprints`: both ways of holding fingerprints do what two Python sets do."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.media import fingerprints
from lamplighter.media.fingerprints import Builder, Fingerprints, from_bytes

EDGES = st.sampled_from([0, 1, 2**56 - 1, 2**56, 2**63, 2**64 - 2, 2**64 - 1])
PRINTS = st.lists(st.one_of(EDGES, st.integers(0, 2**64 - 1), st.integers(0, 40)), max_size=60)
AS_SET = 10**9
AS_ARRAY = -1


def sealed(batches: list[list[int]], set_below: int) -> Fingerprints:
    builder = Builder(set_below=set_below)
    for batch in batches:
        builder.add(array("Q", batch))
    return builder.seal()


@settings(deadline=None)
@given(st.lists(PRINTS, max_size=4), st.lists(PRINTS, max_size=3), PRINTS, st.sampled_from([AS_SET, AS_ARRAY, 20]))
def test_it_does_what_two_sets_do(
    added: list[list[int]], probed: list[list[int]], asked: list[int], below: int
) -> None:
    members = {one for batch in added for one in batch}
    marked: set[int] = set()
    store = sealed(added, below)
    for batch in probed:
        assert store.mark(array("Q", batch)) == [one in members for one in batch]
        marked |= members & set(batch)
    everything = [*asked, *members]
    assert store.contains(everything) == [one in members for one in everything]
    assert store.marked(everything) == [one in marked for one in everything]
    assert all((one in store) == (one in members) for one in everything)
    assert (len(store), store.count_marked()) == (len(members), len(marked))


@settings(deadline=None)
@given(PRINTS, st.lists(PRINTS, max_size=4), st.sampled_from([AS_SET, AS_ARRAY]))
def test_the_marks_of_readers_of_ranges_are_combined(added: list[int], ranges: list[list[int]], below: int) -> None:
    whole = sealed([added], below)
    data = whole.to_bytes()
    assert len(data) == 24 + 8 * len(whole)
    for part in ranges:
        one = from_bytes(data)
        one.mark(part)
        bitmap = one.marks_to_bytes()
        assert len(bitmap) == 24 + (len(whole) + 7) // 8
        whole.add_marks(bitmap)
    marked = set(added) & {one for part in ranges for one in part}
    assert whole.marked(added) == [one in marked for one in added]
    assert whole.count_marked() == len(marked)
    again = from_bytes(data)
    again.add_marks(whole.marks_to_bytes())
    assert (again.to_bytes(), again.marks_to_bytes()) == (data, whole.marks_to_bytes())


def test_both_ways_store_the_same_bytes() -> None:
    rng = random.Random(7)
    prints = [rng.getrandbits(64) for _ in range(20_000)]
    few, many = sealed([prints], AS_SET), sealed([prints[:9000], prints[9000:]], 100)
    for store in (few, many):
        store.mark(prints[::3])
    assert type(few) is not type(many)
    assert few.to_bytes() == many.to_bytes()
    assert few.marks_to_bytes() == many.marks_to_bytes()


def test_above_the_limit_stored_fingerprints_are_an_array_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "SET_BELOW", 100)
    rng = random.Random(8)
    prints = [rng.getrandbits(64) for _ in range(5000)]
    data = sealed([prints], 100).to_bytes()
    assert type(from_bytes(data)) is type(sealed([prints], 100))
    assert from_bytes(data).contains(prints) == [True] * 5000


def test_what_another_hash_made_or_is_damaged_is_refused() -> None:
    store, other = sealed([[1, 2, 3]], AS_SET), sealed([[1, 2, 4]], AS_SET)
    data = store.to_bytes()
    another_hash = data[:4] + bytes([data[4] ^ 1]) + data[5:]
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    for bad, why in (
        (another_hash, "another version"),
        (damaged, "damaged"),
        (data[:-1], "damaged"),
        (b"", "holds no fingerprints"),
        (store.marks_to_bytes(), "holds no fingerprints"),
    ):
        with pytest.raises(ValueError, match=why):
            from_bytes(bad)
    for bad, why in (
        (other.marks_to_bytes(), "other fingerprints"),
        (store.marks_to_bytes() + b"0", "other fingerprints"),
        (data, "holds no fingerprints"),
    ):
        with pytest.raises(ValueError, match=why):
            store.add_marks(bad)
