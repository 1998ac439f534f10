"""A set of 64-bit fingerprints with a mark on each, in about 9 bytes a fingerprint, that fits in one object of S3.

The fingerprints of all values are added, sealed, and then probed and marked by what the bucket lists. The sealed
fingerprints and their marks are stored apart: a continuation loads both, and parallel readers of key ranges load the
fingerprints once each and combine their marks with OR.

Below `SET_BELOW` fingerprints a Python set holds them, which is faster; above, a sorted array with an index of its
cells. Measured by `bench/fingerprints.py` a million fingerprints: 21 MiB sealed, 26 MiB at the most while they are
added and sealed, 0.6 us each to add, 0.6-0.9 us each to probe. A set of 300,000 takes 22 MiB.
"""

from __future__ import annotations

import struct
import sys
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Final
from zlib import crc32

from lamplighter.media.folding import PROBE

SET_BELOW: Final = 300_000
"""Fingerprints up to which a Python set is used."""
CELL: Final = 32
"""Fingerprints that share an entry of the sorted array's index, about."""

_PARTS: Final = 256
"""Partitions by the highest byte, into which fingerprints are read."""
_HEADER: Final = struct.Struct("<4sQQI")
"""Kind, probe of the hash, number of fingerprints, their checksum."""
_FINGERPRINTS: Final = b"LFP1"
_MARKS: Final = b"LFM1"
_TO_DIGITS: Final = bytes([48, 49]) + bytes(254)
_FROM_DIGITS: Final = bytes(49) + b"\x01" + bytes(206)


class Fingerprints(ABC):
    """A sealed set of fingerprints; each can be marked."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __contains__(self, fingerprint: object) -> bool: ...

    @abstractmethod
    def contains(self, prints: Iterable[int]) -> list[bool]:
        """Which of the fingerprints are in the set."""

    @abstractmethod
    def mark(self, prints: Sequence[int]) -> list[bool]:
        """Mark those of the fingerprints that are in the set; which of them are."""

    @abstractmethod
    def marked(self, prints: Iterable[int]) -> list[bool]:
        """Which of the fingerprints are in the set and marked."""

    @abstractmethod
    def count_marked(self) -> int:
        """How many are marked."""

    def to_bytes(self) -> bytes:
        """The sorted fingerprints, 8 bytes each behind a header; without the marks."""
        values = _little_endian(self.values())
        return b"".join([_HEADER.pack(_FINGERPRINTS, PROBE, len(values), crc32(values)), memoryview(values)])

    def marks_to_bytes(self) -> bytes:
        """The marks as a bitmap in the order of `to_bytes`, behind a header."""
        values = self.values()
        digits = bytes(self._flags()).translate(_TO_DIGITS)
        bits = int(digits or b"0", 2).to_bytes((len(values) + 7) // 8)
        return _HEADER.pack(_MARKS, PROBE, len(values), crc32(_little_endian(values))) + bits

    def add_marks(self, data: bytes) -> None:
        """Mark also what is marked in a bitmap by `marks_to_bytes`.

        Raises:
            ValueError: the bitmap is of other fingerprints.
        """
        values = self.values()
        count, checksum, bits = _opened(data, _MARKS)
        if count != len(values) or checksum != crc32(_little_endian(values)) or len(bits) != (count + 7) // 8:
            raise ValueError("The marks belong to other fingerprints; read the values again.")
        digits = f"{int.from_bytes(bits):0{count}b}".encode() if count else b""
        self._add_flags(values, digits.translate(_FROM_DIGITS))

    @abstractmethod
    def values(self) -> array[int]:
        """The fingerprints, sorted."""

    @abstractmethod
    def _flags(self) -> bytes | bytearray: ...

    @abstractmethod
    def _add_flags(self, values: array[int], flags: bytes) -> None: ...


def from_bytes(data: bytes) -> Fingerprints:
    """The fingerprints, none of them marked, that `Fingerprints.to_bytes` wrote.

    Raises:
        ValueError: the data is damaged, or its fingerprints are of another hash than this process makes.
    """
    count, checksum, body = _opened(data, _FINGERPRINTS)
    if len(body) != 8 * count or crc32(body) != checksum:
        raise ValueError("The stored fingerprints are damaged; read the values again.")
    values = array("Q")
    values.frombytes(body)
    return _sealed(_little_endian(values))


class Builder:
    """Collects fingerprints, in any order and any number of times each."""

    def __init__(self, *, set_below: int = SET_BELOW) -> None:
        self._set_below = set_below
        self._members: set[int] = set()
        self._parts: list[array[int]] = []

    def add(self, prints: Iterable[int]) -> None:
        """Add a batch."""
        if not self._parts:
            self._members.update(prints)
            if len(self._members) <= self._set_below:
                return
            self._parts = [array("Q") for _ in range(_PARTS)]
            prints, self._members = self._members, set()
        batch = array("Q", sorted(prints))
        end = 0
        for number, part in enumerate(self._parts):
            start, end = end, bisect_left(batch, (number + 1) << 56, end) if number + 1 < _PARTS else len(batch)
            part.extend(batch[start:end])

    def seal(self) -> Fingerprints:
        """The set of all that was added. Sorts part by part, and frees each: the builder is empty afterwards."""
        if not self._parts:
            members, self._members = self._members, set()
            return _Few(members)
        values = array("Q")
        self._parts.reverse()
        while self._parts:
            values.extend(array("Q", sorted(set(self._parts.pop()))))
        return _Many(values) if values else _Few(set())


class _Few(Fingerprints):
    """A Python set, and another of the marked."""

    def __init__(self, members: set[int]) -> None:
        self._members = members
        self._marked: set[int] = set()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, fingerprint: object) -> bool:
        return fingerprint in self._members

    def contains(self, prints: Iterable[int]) -> list[bool]:
        return list(map(self._members.__contains__, prints))

    def mark(self, prints: Sequence[int]) -> list[bool]:
        found = self._members.intersection(prints)
        self._marked |= found
        return list(map(found.__contains__, prints)) if found else [False] * len(prints)

    def marked(self, prints: Iterable[int]) -> list[bool]:
        return list(map(self._marked.__contains__, prints))

    def count_marked(self) -> int:
        return len(self._marked)

    def values(self) -> array[int]:
        return array("Q", sorted(self._members))

    def _flags(self) -> bytes:
        return bytes(map(self._marked.__contains__, self.values()))

    def _add_flags(self, values: array[int], flags: bytes) -> None:
        self._marked.update(value for value, flag in zip(values, flags, strict=True) if flag)


class _Many(Fingerprints):
    """A sorted array with at least one element, the positions at which its cells begin, and a byte a mark.

    A cell holds the fingerprints whose highest bits are equal.
    """

    def __init__(self, values: array[int]) -> None:
        self._values = values
        self._marks = bytearray(len(values))
        bits = (len(values) // CELL).bit_length()
        self._shift = 64 - bits
        self._starts = array("I", [0])
        for cell in range(1, 1 << bits):
            self._starts.append(bisect_left(values, cell << self._shift, self._starts[-1]))
        self._starts.append(len(values))
        last = len(values) - 1  # a search that ends there or before finds a value to compare with
        while self._starts[-1] > last:
            self._starts.pop()
        self._starts.extend(repeat(last, (1 << bits) + 1 - len(self._starts)))

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, fingerprint: object) -> bool:
        return isinstance(fingerprint, int) and self._positions([fingerprint])[0] >= 0

    def contains(self, prints: Iterable[int]) -> list[bool]:
        values, starts, shift = self._values, self._starts, self._shift
        return [
            values[bisect_left(values, one, starts[cell := one >> shift], starts[cell + 1])] == one for one in prints
        ]

    def mark(self, prints: Sequence[int]) -> list[bool]:
        positions = self._positions(prints)
        for position in positions:
            if position >= 0:
                self._marks[position] = 1
        return [position >= 0 for position in positions]

    def marked(self, prints: Iterable[int]) -> list[bool]:
        marks = self._marks
        return [position >= 0 and marks[position] == 1 for position in self._positions(prints)]

    def count_marked(self) -> int:
        return self._marks.count(1)

    def _positions(self, prints: Iterable[int]) -> list[int]:
        """Where each fingerprint is, or -1."""
        values, starts, shift = self._values, self._starts, self._shift
        return [
            at if values[at := bisect_left(values, one, starts[cell := one >> shift], starts[cell + 1])] == one else -1
            for one in prints
        ]

    def values(self) -> array[int]:
        return self._values

    def _flags(self) -> bytearray:
        return self._marks

    def _add_flags(self, values: array[int], flags: bytes) -> None:
        both = int.from_bytes(self._marks) | int.from_bytes(flags)
        self._marks = bytearray(both.to_bytes(len(values)))


def frame(*parts: bytes) -> bytes:
    """The parts as one text of bytes, each behind its length."""
    return b"".join(piece for part in parts for piece in (struct.pack("<Q", len(part)), part))


def unframe(data: bytes) -> list[bytes]:
    """The parts of `frame`.

    Raises:
        ValueError: the data is cut off.
    """
    parts, at = [], 0
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at : at + 8], "little")
        if end > len(data):
            raise ValueError("The stored data is cut off; read the values again.")
        parts.append(data[at + 8 : end])
        at = end
    return parts


def _sealed(values: array[int]) -> Fingerprints:
    return _Few(set(values)) if len(values) <= SET_BELOW else _Many(values)


def _opened(data: bytes, kind: bytes) -> tuple[int, int, memoryview]:
    """Count and checksum of a header, and what is behind it."""
    if len(data) < _HEADER.size or data[:4] != kind:
        raise ValueError("The stored data holds no fingerprints; read the values again.")
    _, probe, count, checksum = _HEADER.unpack_from(data)
    if probe != PROBE:
        raise ValueError("The stored fingerprints are of another version of Python; read the values again.")
    return count, checksum, memoryview(data)[_HEADER.size :]


def _little_endian(values: array[int]) -> array[int]:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values
