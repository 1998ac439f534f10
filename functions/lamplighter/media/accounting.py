"""Accounts for every value of the reference columns: two readings of the values around one listing of the bucket.

1. `first` takes the values of all columns and keeps the fingerprints of what they may mean.
2. `listed` takes the keys of the bucket and marks what the values name. What no value names is a candidate.
3. `second` takes the values again, from a later snapshot, and counts each: matched, outside or unmatched.
4. `verdicts` says why each candidate is kept; None: no value names it or may mean it.

A path of another folder is outside only where the bucket has that object: `img/<hash>.jpg` may be a name that an
application gives to `uploads/photo.jpg`, which nothing here can read. So the other folders are listed, too, as far as
`MAX_ELSEWHERE` keys; what is not found there is unmatched.

All take batches of some thousand. The memory is that of `fingerprints` and `rescue`, and a bounded number of examples.
A listing that goes on elsewhere takes `sealed_to_bytes` and `progress_to_bytes`; ranges of keys that were listed side
by side are combined by `add_progress`.
"""

from __future__ import annotations

import html
import json
import re
import string
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Final, Protocol
from urllib.parse import unquote, unquote_plus

from lamplighter.kernel.media import DERIVED
from lamplighter.media.extensions import MEDIA, is_media
from lamplighter.media.fingerprints import Builder, Fingerprints, frame, from_bytes, unframe
from lamplighter.media.folding import (
    Plain,
    Scope,
    Spread,
    ancestors,
    bare_paths,
    fingerprint_batch,
    fold,
    fold_batch,
    readings_batch,
    spread_batch,
)
from lamplighter.media.rescue import Exclusions, Kept, Names, Patterns, any_of, has_media_name, uncut, why_kept

MAX_GROUPS: Final = 200
"""Groups of unmatched values a column; values of others count as one more group."""
EXAMPLES: Final = 3
"""Values that are shown of each group."""
MAX_MISSING: Final = 10_000
"""Unmatched values a column that are kept as they are, for the list of missing files."""
OTHERS: Final = ("", "other folders")
"""The group of values that are of no other group."""
MAX_PLACES: Final = 1000
"""Beginnings of keys a column that are listed in other folders."""
MAX_ELSEWHERE: Final = 200_000
"""Keys of other folders that are listed, to see whether they have the objects that values name there."""

_BLANK: Final = "\0\xad\u200b\u200c\u200d\u2060\ufeff"
_CUTTING: Final = re.compile(r"[?#%&]|\\u")
"""What a value has that is cut at a `?` or `#`, written as it is or escaped."""
_HOST: Final = re.compile(r"(?:[a-z][a-z0-9+.\-]*:)?[/\\]{2,}(?:[^/\\?#@]*@)?([^/\\?#:]+)", re.I)


class Column(Protocol):
    """A reference column, as the settings declare it. `str(column)` is its name."""

    @property
    def strip(self) -> Sequence[str]:
        """Prefixes that are no part of keys."""

    @property
    def elsewhere(self) -> Sequence[str]:
        """Hosts or prefixes of files that are not in this bucket."""

    @property
    def folder(self) -> bool:
        """Whether its values name folders."""


@dataclass(slots=True)
class Group:
    """Unmatched values of one host and first segment."""

    host: str
    segment: str
    """The first folder with its slash; empty for names without a folder."""
    far: bool = False
    """Whether these are paths of another folder of the bucket."""
    count: int = 0
    examples: list[str] = field(default_factory=list)
    fitting: Counter[str] = field(default_factory=Counter)
    """Prefixes without which values would match, and how many."""
    only: str | None = None
    """The value that all of them are."""

    @property
    def declaration(self) -> str | None:
        """What to declare if these values are no faults."""
        if self.fitting:
            return f'"strip": {json.dumps([self.fitting.most_common(1)[0][0]], ensure_ascii=False)}'
        elsewhere = None
        if self.only is not None and self.count > 1 and not self.host:
            elsewhere = self.only  # a placeholder that the application itself has
        elif self.host or (self.far and self.segment.endswith("/")):
            elsewhere = self.host or self.segment
        if elsewhere:
            return f'"elsewhere": {json.dumps([elsewhere], ensure_ascii=False)}'
        if not self.segment and self.examples:
            return "a view that joins the columns of a path"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnAccount:
    """What became of the values of one column. `values == matched + outside + unmatched`."""

    column: str
    values: int
    """Not counting NULL and blank."""
    matched: int
    """Name a listed key."""
    outside: int
    """Name an object of another folder of the bucket, in a column of whole keys, or what is declared elsewhere."""
    unmatched: int
    unreadable: int
    """Unmatched values without the extension of a media file."""
    groups: tuple[Group, ...]
    """Unmatched values by host and first segment, the largest first."""
    missing: tuple[str, ...]
    """Unmatched values with the extension of a media file, at most `MAX_MISSING`."""

    def __post_init__(self) -> None:
        if self.values != self.matched + self.outside + self.unmatched:
            raise AssertionError(f"{self.column}: {self.values} values are not accounted for: {self}")


class Account:
    """One account of a bucket's folder. See the module's description for the order of calls.

    Args:
        scope: what is listed.
        columns: the reference columns; batches of values give the position of theirs.
        derived: patterns of derived files.
        exclude: glob patterns of keys that are never removed.
    """

    def __init__(
        self, scope: Scope, columns: Sequence[Column], *, derived: Iterable[str] = DERIVED, exclude: Iterable[str] = ()
    ) -> None:
        self._scope = scope
        self._root = fold(scope.folder) + "/" if fold(scope.folder) else ""
        self._columns = columns
        self._patterns = Patterns(derived)
        self._exclusions = Exclusions(exclude)
        self._reading = Builder()
        self._reading_folders = Builder()
        self._sealed: tuple[Fingerprints, Fingerprints] | None = None
        self._unnamed = Builder()
        self._unnamed_folders = Builder()
        self._candidates: tuple[Fingerprints, Fingerprints] | None = None
        self._names = Names()
        self._extensions: set[str] = set()
        """Of media files, folded, that listed keys have."""
        self.begin_second()

    # -- the first reading -----------------------------------------------------------------------------------------

    def first(self, column: int, values: Sequence[str], hints: Sequence[str] = ()) -> None:
        """Take values, and hints: texts that keep what they name and are not counted."""
        plain = self._plain(column, [*values, *hints])
        paths = plain.paths()
        for spread in self._spread(column, plain.others):
            paths += spread.absolute
            paths += spread.relative
            paths += spread.beyond
        prints = fingerprint_batch(paths)
        self._reading.add(prints)
        if self._columns[column].folder:
            self._reading_folders.add(prints)

    def _plain(self, column: int, texts: Sequence[str]) -> Plain:
        return Plain(texts, self._scope, self._columns[column].strip)

    def _spread(self, column: int, texts: Sequence[str]) -> list[Spread]:
        return spread_batch(texts, self._scope, self._columns[column].strip)

    # -- the listing -----------------------------------------------------------------------------------------------

    def listed(self, keys: Sequence[str]) -> list[bool]:
        """Take listed keys of all kinds, and say which of them values name. The others are candidates."""
        paths, folders = self._seal()
        folded = fold_batch(keys)
        if any(key.endswith("/") for key in keys):  # the marker of a folder is no file: only a folder's column names it
            folded = [f"{one}/\0" if key.endswith("/") else one for one, key in zip(folded, keys, strict=True)]
        self._extensions |= MEDIA.intersection([key[key.rfind(".") + 1 :] for key in folded])
        named = paths.mark(fingerprint_batch(folded))
        if len(folders):
            above = {key: ancestors(key) for key in {key.rpartition("/")[0] + "/" for key in folded}}
            every = list({folder for some in above.values() for folder in some})
            found = dict(zip(every, folders.mark(fingerprint_batch(every)), strict=True))
            named = [
                one or any(found[folder] for folder in above[key.rpartition("/")[0] + "/"])
                for one, key in zip(named, folded, strict=True)
            ]
        unnamed = [key for key, is_named in zip(folded, named, strict=True) if not is_named]
        self._unnamed.add(fingerprint_batch(unnamed))
        if any(column.folder for column in self._columns):
            self._unnamed_folders.add(fingerprint_batch(list({one for key in unnamed for one in ancestors(key)})))
        media = [key for key in unnamed if is_media(key)]
        self._names.add_candidates(media, root=self._root)
        return named

    def _seal(self) -> tuple[Fingerprints, Fingerprints]:
        if self._sealed is None:
            self._sealed = self._reading.seal(), self._reading_folders.seal()
        return self._sealed

    # -- the second reading ----------------------------------------------------------------------------------------

    def begin_second(self) -> None:
        """Forget what `second` took: the values are read from their beginning."""
        self._tallies = [_Tally() for _ in self._columns]
        self._names.forget_values()
        self._originals = Builder()
        self._sealed_originals: Fingerprints | None = None

    def second(self, column: int, values: Sequence[str], hints: Sequence[str] = ()) -> None:
        """Take and count values, read after the listing; and hints, which keep what they name."""
        values = [value for value in values if value[:1].isalnum() or not is_blank(value)]
        self._tallies[column].values += len(values)
        left: Sequence[str] = values if self._columns[column].folder else self._count_plain(column, values)
        if left or hints:
            self._count(column, left, hints)

    def _count_plain(self, column: int, values: Sequence[str]) -> Sequence[str]:
        """Count the plain values that are matched by what they most likely mean, all at once; which are left."""
        paths, _ = self._seal()
        new, _ = self._list_ended()
        tally = self._tallies[column]
        plain = self._plain(column, values)
        new.mark(fingerprint_batch(plain.readings()))
        whole, relative = plain.likely()
        matched: set[str] = set()
        for likely in (whole, relative):
            prints = fingerprint_batch(likely.paths)
            hit = paths.marked(prints)
            if False in hit:
                hit = [a or b for a, b in zip(hit, new.contains(prints), strict=True)]
            if True not in hit:
                continue
            count = hit.count(True)
            tally.matched += count
            tally.relative += count if likely is relative else 0
            named = list(compress(likely.paths, hit))
            self._add_matched(tally, named, relative=named if likely is relative else ())
            if count == len(values):
                return ()
            matched.update(compress(likely.values, hit))
        return [value for value in values if value not in matched]

    def _count(self, column: int, values: Sequence[str], hints: Sequence[str]) -> None:
        """Count values by all that they may mean, one by one."""
        paths, folders = self._seal()
        new, new_folders = self._list_ended()
        tally = self._tallies[column]
        spreads = self._spread(column, [*values, *hints])
        flat = [one for spread in spreads for one in (*spread.absolute, *spread.relative)]
        prints = fingerprint_batch(flat)
        hit = [a or b for a, b in zip(paths.marked(prints), new.mark(prints), strict=True)]
        if self._columns[column].folder:
            found = zip(hit, folders.marked(prints), new_folders.mark(prints), strict=True)
            hit = [a or b or c for a, b, c in found]
        matched: list[str] = []
        relative: list[str] = []
        left: list[tuple[str, Spread]] = []
        names: list[str] = []
        end = 0
        for value, spread in zip(values, spreads, strict=False):
            start, middle = end, end + len(spread.absolute)
            end = middle + len(spread.relative)
            if True in hit[start:middle]:
                tally.matched += 1
                matched.append(flat[hit.index(True, start)])
            elif True in hit[middle:end]:
                tally.matched += 1
                tally.relative += 1
                matched.append(flat[hit.index(True, middle)])
                relative.append(matched[-1])
            else:
                left.append((value, spread))
                continue
            if _CUTTING.search(value):
                names += _names_behind(value, spread)
        for spread in spreads[len(values) :]:
            start, end = end, end + len(spread.absolute) + len(spread.relative)
            if True in hit[start:end]:
                matched.append(flat[hit.index(True, start)])
            else:  # without its folder or its extension
                names += (*spread.absolute, *spread.beyond, *spread.relative)[:1]
        self._add_matched(tally, matched, relative=relative)
        self._names.add_hints(names)
        if left:
            self._unmatched(column, tally, left)

    def _add_matched(self, tally: _Tally, paths: Sequence[str], *, relative: Sequence[str]) -> None:
        """Add folded paths that values name, and those of them that are relative to the scope's folder."""
        new, _ = self._list_ended()
        self._names.add_segments(paths, matched=True)
        if len(new):
            self._originals.add(fingerprint_batch(self._patterns.bases(paths)))
        if len(tally.folders) < MAX_GROUPS:
            tally.folders.update({path.removeprefix(self._root).partition("/")[0] + "/" for path in relative})

    def _list_ended(self) -> tuple[Fingerprints, Fingerprints]:
        if self._candidates is None:
            self._candidates = self._unnamed.seal(), self._unnamed_folders.seal()
        return self._candidates

    def _unmatched(self, column: int, tally: _Tally, left: list[tuple[str, Spread]]) -> None:
        texts = fold_batch([value for value, _ in left])
        self._names.add_unmatched(texts)
        inner = [text for value, _ in left for text in _strings_of_json(value)]
        self._names.add_unmatched(fold_batch(inner))
        written = (*(value for value, _ in left), *inner)
        self._names.add_unmatched(fold_batch([text for one in written if (text := _read_once(one))]))
        self._names.add_segments([path for text in texts for path in (text, *uncut(text))], matched=False)
        for (value, spread), text in zip(left, texts, strict=True):
            host = host_of(value)
            if value.strip()[:5].lower() == "data:" or self._is_elsewhere(column, value, host):
                tally.outside += 1
                continue
            path = (*spread.absolute, *spread.beyond, *spread.relative, "")[0]
            readable = has_media_name(text)
            fitting = self._fitting(value)
            # A path in another folder of the bucket. Whether the column's values are whole keys, and whether there is
            # such a folder, is known at the end.
            if self._root and not spread.absolute and readable and "/" in (*spread.beyond, "")[0]:
                group = _departing(path, self._root)
                tally.far.add(value, host, group, fitting=fitting, beyond=spread.beyond, places=self._places(value))
            else:
                segment, slash, _ = path.partition("/")
                tally.near.add(value, host, segment + slash if slash else "", readable=readable, fitting=fitting)

    def _places(self, value: str) -> tuple[str, ...]:
        """What keys would begin with that are where the value's path is, without that of the folder that is listed."""
        path = bare_paths(value)[-1].strip().lstrip("/\\")
        written = dict.fromkeys([path, unquote(path)])
        bucket = self._scope.bucket + "/"
        in_bucket = [one.removeprefix(bucket) for one in written if one.startswith(bucket)]
        return tuple(dict.fromkeys(_departing(one, self._scope.folder) for one in (*written, *in_bucket)))

    def _is_elsewhere(self, column: int, value: str, host: str) -> bool:
        bare = value.strip().casefold()
        for place in self._columns[column].elsewhere:
            declared = place.strip().casefold()
            inside = declared.strip("/")
            if not inside:
                continue
            if host and (host == inside or host.endswith("." + inside)):
                return True
            without = bare.partition("://")[2] or bare.lstrip("/")
            if bare.startswith(declared) or (without + "/").startswith(declared.partition("://")[2] or inside + "/"):
                return True
        return False

    def _fitting(self, value: str) -> str:
        """The first leading folders of the value without which it names a listed key, or nothing."""
        paths, _ = self._seal()
        new, _ = self._list_ended()
        path = bare_paths(value)[-1].strip().lstrip("/\\")
        ends = [at + 1 for at, character in enumerate(path) if character == "/"][:4]
        for end, some in zip(ends, readings_batch([path[end:] for end in ends], self._scope), strict=True):
            prints = fingerprint_batch(some)
            if True in paths.marked(prints) or True in new.contains(prints):
                return path[:end]
        return ""

    # -- the result ------------------------------------------------------------------------------------------------

    def counts(self, neighbours: Callable[[str], Iterable[Sequence[str]]] = lambda _: ()) -> list[ColumnAccount]:
        """The account of each column.

        Args:
            neighbours: batches of all keys of the bucket that begin with a prefix. Asked of each other folder that
                values name, until it gave `MAX_ELSEWHERE` keys.
        """
        asked = {place for tally in self._tallies if not tally.relative for place in tally.far.places}
        left = MAX_ELSEWHERE
        for tally in self._tallies:
            tally.far.seal()
        for place in sorted(asked):
            if any(place != other and place.startswith(other) for other in asked):
                continue
            for keys in neighbours(place):
                prints = fingerprint_batch(fold_batch(keys[:left]))
                for tally in self._tallies:
                    tally.far.mark(prints)
                left -= len(keys)
                if left <= 0:
                    return self._accounts()
        return self._accounts()

    def _accounts(self) -> list[ColumnAccount]:
        return [tally.account(str(column)) for column, tally in zip(self._columns, self._tallies, strict=True)]

    def verdict(self, key: str) -> Kept | None:
        """Why a listed key, which `listed` did not find named, is kept; None: it is an orphan."""
        return self.verdicts([key])[0]

    def verdicts(self, keys: Sequence[str]) -> list[Kept | None]:
        """The verdict of each key."""
        new, new_folders = self._list_ended()
        folded = fold_batch(keys)
        prints = fingerprint_batch(folded)
        # What was not listed here was not compared with the second reading: it stays.
        named = [a or not b for a, b in zip(new.marked(prints), new.contains(prints), strict=True)]
        if len(new_folders):
            in_named = any_of(list(map(ancestors, folded)), new_folders.marked)
            named = [a or b for a, b in zip(named, in_named, strict=True)]
        found = [Kept.NAMED if is_named else None for is_named in named]
        for n, key in enumerate(keys):
            if self._exclusions.names(key, folder=self._scope.folder):
                found[n] = Kept.EXCLUDED
        unclear = [n for n, kept in enumerate(found) if kept is None]
        paths, _ = self._seal()
        reasons = why_kept(
            [folded[n] for n in unclear],
            may_mean=lambda some: self._names.may_mean(some, paths, root=self._root),
            is_named=self._are_named,
            is_candidate=lambda some: new.contains(fingerprint_batch(some)),
            patterns=self._patterns,
            extensions=self._extensions,
        )
        for n, kept in zip(unclear, reasons, strict=True):
            found[n] = kept
        return found

    def _are_named(self, folded: Sequence[str]) -> list[bool]:
        prints = fingerprint_batch(folded)
        paths, _ = self._seal()
        new, _ = self._list_ended()
        if self._sealed_originals is None:
            self._sealed_originals = self._originals.seal()
        found = zip(paths.marked(prints), new.marked(prints), self._sealed_originals.contains(prints), strict=True)
        return [a or b or c for a, b, c in found]

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def sealed_to_bytes(self) -> bytes:
        """What the first reading gave; it does not change after that. 8 bytes a reading."""
        return frame(*(store.to_bytes() for store in self._seal()))

    def progress_to_bytes(self) -> bytes:
        """What the listing gave so far. Ends it for this object: another goes on, with `add_sealed`, `add_progress`."""
        marks = [store.marks_to_bytes() for store in self._seal()]
        extensions = " ".join(sorted(self._extensions)).encode()
        return frame(*marks, *(store.to_bytes() for store in self._list_ended()), self._names.to_bytes(), extensions)

    def add_sealed(self, data: bytes) -> None:
        """Take a first reading that `sealed_to_bytes` wrote.

        Raises:
            ValueError: it is damaged, or of another version of Python: begin with the first reading.
        """
        paths, folders = map(from_bytes, unframe(data))
        self._sealed = paths, folders

    def add_progress(self, data: bytes) -> None:
        """Take what `progress_to_bytes` wrote after the same first reading; any number of times, of any ranges of keys.

        Raises:
            ValueError: as `add_sealed`.
        """
        *marks, keys, folders, names, extensions = unframe(data)
        for store, bitmap in zip(self._seal(), marks, strict=True):
            store.add_marks(bitmap)
        for builder, stored in ((self._unnamed, keys), (self._unnamed_folders, folders)):
            builder.add(from_bytes(stored).values())
        self._names.add_bytes(names)
        self._extensions.update(extensions.decode().split())


@dataclass(slots=True)
class _Remains:
    """Values that match nothing."""

    unreadable: int = 0
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def add(self, value: str, host: str, segment: str, *, readable: bool, fitting: str, far: bool = False) -> None:
        self.unreadable += not readable
        if readable and len(self.missing) < MAX_MISSING:
            self.missing.append(value)
        key = (host, segment[:100])
        if key not in self.groups and len(self.groups) >= MAX_GROUPS:
            key = OTHERS
        group = self.groups.setdefault(key, Group(*key, far=far))
        shown = value if len(value) <= 120 else value[:117] + "..."
        group.only = shown if shown == value and (not group.count or group.only == value) else None
        group.count += 1
        if len(group.examples) < EXAMPLES and shown not in group.examples:
            group.examples.append(shown)
        if fitting and (fitting in group.fitting or len(group.fitting) < MAX_GROUPS):
            group.fitting[fitting] += 1

    def add_unseen(self, host: str, segment: str) -> None:
        """Count one more path of another folder, of which only the group is known."""
        group = self.groups.setdefault((host, segment), Group(host, segment, far=True))
        group.only = None
        group.count += 1


class _Far:
    """Values that name paths of other folders, until it is known whether the bucket has such objects.

    Of each value its group and 12 bytes a reading are kept; of the first `MAX_MISSING`, what is shown of them.
    """

    def __init__(self) -> None:
        self.places: set[str] = set()
        """What keys begin with that have these paths; not folded. At most `MAX_PLACES`."""
        self._keys: dict[tuple[str, str], int] = {}
        self._groups = array("I")
        """Of each value, its group."""
        self._prints = array("Q")
        self._owners = array("I")
        """Of each fingerprint, its value."""
        self._first: list[tuple[str, str]] = []
        """Of the first values, the text and its fitting prefix."""
        self._sealed = Builder().seal()

    def add(
        self, value: str, host: str, segment: str, *, fitting: str, beyond: Sequence[str], places: Iterable[str]
    ) -> None:
        if len(self.places) < MAX_PLACES:
            self.places.update(places)
        key = (host, segment[:100])
        if key not in self._keys and len(self._keys) >= MAX_GROUPS:
            key = OTHERS
        prints = fingerprint_batch(beyond)
        self._prints.extend(prints)
        self._owners.extend([len(self._groups)] * len(prints))
        self._groups.append(self._keys.setdefault(key, len(self._keys)))
        if len(self._first) < MAX_MISSING:
            self._first.append((value, fitting))

    def seal(self) -> None:
        """All values were added; none is marked."""
        builder = Builder()
        builder.add(self._prints)
        self._sealed = builder.seal()

    def mark(self, prints: Sequence[int]) -> None:
        """Mark the values that name the listed keys of these fingerprints."""
        self._sealed.mark(prints)

    def count_into(self, remains: _Remains, *, found: bool) -> int:
        """Add the values to the remains, if `found` without those that are marked; how many those are."""
        marked = set(compress(self._owners, self._sealed.marked(self._prints))) if found else set()
        keys = list(self._keys)
        for number, group in enumerate(self._groups):
            if number in marked:
                continue
            if number < len(self._first):
                value, fitting = self._first[number]
                remains.add(value, *keys[group], readable=True, fitting=fitting, far=True)
            else:
                remains.add_unseen(*keys[group])
        return len(marked)


@dataclass(slots=True)
class _Tally:
    values: int = 0
    matched: int = 0
    relative: int = 0
    """Matched only as relative to the scope's folder."""
    folders: set[str] = field(default_factory=set)
    """The first folders of these below the scope's, of which at most `MAX_GROUPS` are kept."""
    outside: int = 0
    near: _Remains = field(default_factory=_Remains)
    far: _Far = field(default_factory=_Far)
    """Below another folder of the bucket: outside if the column holds whole keys and the object is there, else
    unmatched."""

    def account(self, column: str) -> ColumnAccount:
        far = _Remains()
        found = self.far.count_into(far, found=self.relative == 0)
        for group in far.groups.values():  # beside values that match, this is no folder of something else
            group.far = group.segment not in self.folders
        groups = sorted([*self.near.groups.values(), *far.groups.values()], key=lambda group: -group.count)
        return ColumnAccount(
            column=column,
            values=self.values,
            matched=self.matched,
            outside=self.outside + found,
            unmatched=sum(group.count for group in groups),
            unreadable=self.near.unreadable,
            groups=tuple(groups),
            missing=tuple([*self.near.missing, *far.missing][:MAX_MISSING]),
        )


def _departing(path: str, folder: str) -> str:
    """The beginning of a path up to the first segment that is not the folder's, and the slash behind it, if any."""
    end = 0
    for segment in folder.split("/"):
        before, end = end, path.find("/", end) + 1
        if not end or path[before : end - 1] != segment:
            break
    return path[:end] if end else path


def _names_behind(value: str, spread: Spread) -> list[str]:
    """The folded texts behind a `?` or `#` of a matched value that hold other files' names.

    A list of URLs with queries, a srcset, or an image with a watermark matches by its first path alone.
    """
    whole = max((*spread.absolute, *spread.beyond), key=len, default="")
    cut = min(whole.find("?") % (len(whole) + 1), whole.find("#") % (len(whole) + 1))
    behind = whole[cut + 1 :]
    if not has_media_name(behind):
        return []
    parts = []
    for text in dict.fromkeys((value, unquote(value))):  # as written, JSON has no `?` or `&` of its own
        parts += [part.partition("=")[2] or part for part in re.split(r"[?#&]", text)[1:]]
        parts.append(re.split(r"[?#]", text, maxsplit=1)[-1])
    parts = list(dict.fromkeys([*parts, *map(unquote_plus, parts)]))
    return [behind, *fold_batch([text for part in parts for text in _strings_of_json(part)])]


def _read_once(value: str) -> str:
    """A value whose UTF-8 was taken for cp1252 or Latin-1, as it was before; empty where that is not so."""
    value = html.unescape(unquote(value))
    if value.isascii():
        return ""
    try:
        return b"".join(map(_byte, value)).decode()
    except UnicodeError:
        return ""


def _byte(character: str) -> bytes:
    """Windows reads five bytes as control characters that Python's cp1252 does not have."""
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")


def _strings_of_json(value: str) -> list[str]:
    """The strings of a value that is JSON, HTML-escaped or not: JSON writes some characters in its own way."""
    value = html.unescape(value) if "&quot;" in value or "&#" in value else value
    if value.lstrip()[:1] not in {"{", "[", '"'}:
        return []
    found: list[str] = []
    try:
        pending: list[object] = [json.loads(value)]
    except (ValueError, RecursionError):
        return []
    while pending:
        match pending.pop():
            case str(text):
                found.append(text)
            case list(several):
                pending += several
            case dict(members):
                pending += [*members, *members.values()]
    return found


def is_blank(value: str) -> bool:
    """Whether a value is empty, white space or characters without width: no reference."""
    return not value.strip(_BLANK + string.whitespace + "\xa0") or value.isspace()


def host_of(value: str) -> str:
    """The host of a URL, folded; empty where there is none."""
    found = _HOST.match(value.strip())
    return found[1].casefold() if found else ""
