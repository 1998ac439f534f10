"""Decides which unnamed files are kept all the same: what a value might mean, what derives from a file that is kept.

A value that no listed key matches may still name a file in a way that nothing here can read in full: relative to an
unknown folder, in a list, cut short, without extension. So a candidate stays when its name is that of such a value.

Every rule is a look-up of 64-bit fingerprints; nothing compares candidates with values pair by pair. `Names` holds 12
to 18 bytes a name of an unmatched or outside value, and of a candidate. Above `MAX_NAMES` names it keeps every
candidate. So many values are either outside this bucket, which `elsewhere` does not change, or unmatched, which the
governor refuses.
"""

from __future__ import annotations

import glob
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from enum import Enum
from typing import Final
from unicodedata import combining, normalize

from lamplighter.kernel.media import DERIVED, derived_parts, derived_pattern
from lamplighter.media.extensions import MEDIA
from lamplighter.media.fingerprints import Builder, Fingerprints, frame, from_bytes, unframe
from lamplighter.media.folding import QUOTES, ancestors, fingerprint_batch, fold

MAX_NAMES: Final = 4_000_000
"""Names of unmatched and outside values; above, every candidate is kept as ambiguous."""
MIN_BEGINNING: Final = 12
"""Letters and digits from which a name that is another's beginning counts."""
LONGEST_NAME: Final = 1024
"""Characters of a name that are read: a key has no more bytes."""
PACKAGED: Final = 4
"""Playlists up to which a folder is taken for one video's: all below it is kept. In fuller ones, and in the folder that
is listed itself, names decide."""
DERIVATIONS: Final = 4
"""How often a file may be derived from one that is derived itself."""

MAX_ENDINGS: Final = 5
"""Separators of a name in a folder of derived files at which an ending of its own may begin, from behind."""

_MAX_ORIGINALS: Final = 40
_CHUNK: Final = 100
"""Files whose originals are looked up at once: each may have a thousand."""
_ENDINGS: Final = re.compile(r"[-_.]+")
_EXTENSIONS: Final = tuple(sorted(MEDIA))
_ENDS_IN_MEDIA: Final = re.compile(rf"\.(?:{'|'.join(_EXTENSIONS)})$")
_MEDIA_ENDS: Final = re.compile(rf"\.(?:{'|'.join(_EXTENSIONS)})(?![a-z0-9])")
_EXTENSION: Final = re.compile(r"\.[a-z0-9]{1,5}$")
_EXTENSION_LENGTHS: Final = range(2, 7)
_SEPARATORS: Final = re.compile(r"[^\w/.\-~]+|(?<![a-z0-9])-+(?![a-z0-9])|[/=]+")
_WORDS: Final = re.compile(r"[\W_]+")
_PLAYLISTS: Final = (".m3u8", ".mpd", ".ism", ".ismc", ".f4m", ".smil", ".html", ".htm", ".xhtml", ".gltf")
"""Ends of the names of files that name others beside or below them: playlists of a video, pages, scenes."""
_MARKS: Final = bytes(code for code in range(128) if not chr(code).isalnum() and chr(code) != "\n")


class Kept(Enum):
    """Why a file that was a candidate is not removed."""

    NAMED = "named"
    """A value names it: its row was written while the bucket was listed."""
    EXCLUDED = "excluded"
    """A pattern of the setting `exclude` names it."""
    AMBIGUOUS = "ambiguous"
    """A value that matches no listed key, or only a part of a path, may mean it."""
    DERIVED = "derived"
    """It is derived from a file that is named or kept, or has the same original as one that is named."""


def skeleton(name: str) -> str:
    """The letters and digits of a folded name without accents; the name itself where it has none."""
    if name.isascii():
        return "".join(filter(str.isalnum, name)) or name
    plain = "".join(character for character in normalize("NFKD", name) if not combining(character))
    return "".join(filter(str.isalnum, plain)) or name


def skeletons(names: Sequence[str]) -> list[str]:
    """`[skeleton(name) for name in names]`, for folded names, at once where they are ASCII."""
    joined = "\n".join(names)
    if not names or not joined.isascii() or joined.count("\n") >= len(names):
        return list(map(skeleton, names))
    return [
        letters or name
        for letters, name in zip(joined.encode().translate(None, _MARKS).decode().split("\n"), names, strict=True)
    ]


def stem(name: str) -> str:
    """A folded name without the extensions of media files: `photo` of `photo.jpg.webp`."""
    while (end := _ENDS_IN_MEDIA.search(name)) and end.start():
        name = name[: end.start()]
    return name


def cuts(name: str) -> set[str]:
    """The skeletons of what begins or ends a stem, cut at a separator; not the whole."""
    words = [word for word in _WORDS.split(name) if word]
    found = [part for n in range(1, len(words)) for part in ("".join(words[:n]), "".join(words[n:]))]
    return set(found if name.isascii() else map(skeleton, found))


def name_of(folded: str) -> str:
    """The last segment of a folded path."""
    return folded.rpartition("/")[2]


def pieces(text: str) -> tuple[set[str], set[str]]:
    """The stems of all names that a folded text may hold: full names, and what may be a name or a part of one.

    A full name is the last segment, or goes back from a media extension to a slash, a quote or the extension before;
    other pieces stand between blanks and other separators. A full name counts where it is another's beginning, too.
    """
    cut = {text, *uncut(text)}
    full = {name_of(part)[-LONGEST_NAME:] for part in cut}
    others: set[str] = set()
    previous = 0
    for end in _MEDIA_ENDS.finditer(text):
        name = name_of(text[max(previous, end.end() - LONGEST_NAME) : end.end()])
        full |= {name, name.lstrip(" ,;|'\""), re.split(r"['\"]", name)[-1]}
        others |= {re.split(mark, name)[-1] for mark in (r"[\s,;|]", r"[=:(<>{}\[\]]", r"[^\w.\-~]")}
        previous = end.end()
    if len(text) <= 4 * LONGEST_NAME:
        others |= {part for part in _SEPARATORS.split(text) if len(part) >= 4}
    full = {stem(piece.strip()) for piece in full} - {""}
    return full, {stem(piece.strip()) for piece in others} - {""} - full


def uncut(text: str) -> list[str]:
    """A folded text without query and fragment; nothing where the text before them is no path by itself."""
    ends = {text.find("?"), text.find("#")} - {-1}
    parts = [text[:end] for end in ends]
    return [part for part in parts if _ENDS_IN_MEDIA.search(part)] if _MEDIA_ENDS.search(text) else parts


def has_media_name(folded: str) -> bool:
    """Whether a folded text has the extension of an image or a video anywhere."""
    return _MEDIA_ENDS.search(folded) is not None


class Names:
    """What decides whether a candidate is ambiguous. First candidates are added, then values, then it is asked."""

    def __init__(self, *, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self._candidates = Builder()
        self._lengths: set[int] = set()
        """Of the candidates' skeletons: beginnings of other lengths need not be looked up."""
        self._name_lengths: set[int] = set()
        self._folders: set[int] = set()
        self._folder_lengths: set[int] = set()
        self._sealed: Fingerprints | None = None
        self._names: tuple[Builder, Builder] = Builder(), Builder()
        self._asked: tuple[Fingerprints, Fingerprints] | None = None
        self._count = 0
        self._longer: set[int] = set()
        self._hinted: set[int] = set()
        self._named_folders: set[int] = set()
        self._playlists: Counter[int] = Counter()
        """Of folders, how many values name a playlist in them."""
        self._playlist_names: set[int] = set()
        self._playlist_lengths: set[int] = set()

    def add_candidates(self, folded: Sequence[str], *, root: str = "") -> None:
        """Add the folded keys of candidates; folders that `root` ("" or ending with a slash) names are not counted."""
        whole = skeletons([stem(name_of(key)) for key in folded])
        self._candidates.add(fingerprint_batch(whole))
        self._lengths.update(map(len, whole))
        parents = {key.rpartition("/")[0] for key in folded}
        folders = {segment for parent in parents for segment in (parent + "/").removeprefix(root).split("/")} - {""}
        self._folders.update(fingerprint_batch(list(folders)))
        self._folder_lengths.update(map(len, folders))

    def add_segments(self, paths: Iterable[str], *, matched: bool) -> None:
        """Add folded paths that values name, of which the last segment may be a folder of candidates."""
        paths = list(paths)
        if matched:
            self._add_playlists([path for path in paths if path.endswith(_PLAYLISTS)])
        if not self._folders:
            return
        lengths = {length + extension for length in self._folder_lengths for extension in (0, *_EXTENSION_LENGTHS)}
        names = {name for path in paths if len(name := path[path.rfind("/") + 1 :]) in lengths}
        stems = {_EXTENSION.sub("", name) for name in names} - names
        if matched:  # 12.jpg does not name the folder of December
            stems = {one for one in stems if not (len(one) <= 4 and one.isdecimal())}
        names |= stems
        self._named_folders.update(self._folders.intersection(fingerprint_batch(list(names))))

    def _add_playlists(self, paths: Sequence[str]) -> None:
        names = [skeleton(name_of(path).rpartition(".")[0]) for path in paths]
        self._playlists.update(fingerprint_batch([path.rpartition("/")[0] for path in paths]))
        self._playlist_names.update(fingerprint_batch(names))
        self._playlist_lengths.update(map(len, names))

    def add_hints(self, texts: Iterable[str]) -> None:
        """Add folded texts that may hold names of candidates, in full. They take no memory where they do not."""
        if self._sealed is None:
            self._sealed = self._candidates.seal()
        names = [skeleton(one) for text in texts for some in pieces(text) for one in some]
        prints = fingerprint_batch(names)
        self._hinted.update(one for one, hit in zip(prints, self._sealed.contains(prints), strict=True) if hit)

    def add_unmatched(self, texts: Iterable[str]) -> None:
        """Add the folded texts of values that match nothing, or are outside."""
        if self._sealed is None:
            self._sealed = self._candidates.seal()
        for text in texts:
            full, others = pieces(text)
            self._count += len(full) + len(others)
            if self._count > self._max_names:
                return
            whole = skeletons(list(full))
            self._names[0].add(fingerprint_batch(whole))
            self._names[1].add(fingerprint_batch(skeletons(list(others))))
            shorter = {one for name in full for one in cuts(name)}
            for one in whole:
                shorter.update(one[:end] for end in self._lengths if MIN_BEGINNING <= end < len(one))
            self._name_lengths.update(map(len, whole))
            prints = fingerprint_batch(list(shorter))
            self._longer.update(one for one, hit in zip(prints, self._sealed.contains(prints), strict=True) if hit)

    def forget_values(self) -> None:
        """Forget what was added of values: they are read again."""
        self._names, self._asked, self._count = (Builder(), Builder()), None, 0
        self._longer.clear()
        self._hinted.clear()
        self._playlists.clear()
        self._playlist_names.clear()
        self._playlist_lengths.clear()
        self._name_lengths.clear()
        self._named_folders.clear()

    def to_bytes(self) -> bytes:
        """What was added of candidates."""
        self._sealed = self._sealed or self._candidates.seal()
        sets = (array("Q", some).tobytes() for some in (self._folders, self._folder_lengths, self._lengths))
        return frame(self._sealed.to_bytes(), *sets)

    def add_bytes(self, data: bytes) -> None:
        """Add the candidates that `to_bytes` of this or another object wrote."""
        candidates, folders, folder_lengths, lengths = unframe(data)
        self._candidates = Builder()
        for some in (self._sealed, from_bytes(candidates)):
            if some is not None:
                self._candidates.add(some.values())
        self._sealed = None
        self._folders.update(array("Q", folders))
        self._folder_lengths.update(array("Q", folder_lengths))
        self._lengths.update(array("Q", lengths))

    def may_mean(self, folded: Sequence[str], paths: Fingerprints, *, root: str = "") -> list[bool]:
        """Which of the files with these folded keys some value may mean.

        Args:
            paths: the fingerprints of the whole paths of all values.
            root: the folded folder that is listed, "" or ending with a slash.
        """
        if self._count > self._max_names:
            return [True] * len(folded)
        if self._asked is None:
            self._asked = self._names[0].seal(), self._names[1].seal()
        full, others = self._asked
        stems = [stem(name_of(key)) for key in folded]
        whole = skeletons(stems)
        prints = fingerprint_batch(whole)
        lengths = [length for length in self._name_lengths if length >= MIN_BEGINNING]
        tried = [
            [one, *cuts(name), *[one[:end] for end in lengths if end < len(one)]]
            for one, name in zip(whole, stems, strict=True)
        ]
        reasons = [
            [one in self._longer or one in self._hinted for one in prints],
            others.contains(prints),
            any_of(tried, full.contains),
            any_of([_suffixes(key) for key in folded], paths.contains),
        ]
        if self._named_folders:
            folders = [key.removeprefix(root).split("/")[:-1] for key in folded]
            reasons.append(any_of(folders, lambda prints: [one in self._named_folders for one in prints]))
        if self._playlists:
            reasons.append([self._is_segment(key, name, root) for key, name in zip(folded, whole, strict=True)])
        return list(map(any, zip(*reasons, strict=True)))

    def _is_segment(self, folded: str, name: str, root: str) -> bool:
        """Whether a file may belong to a video whose playlist a value names."""
        above = ["", *ancestors(folded)]
        counts = [self._playlists[one] for one in fingerprint_batch(above)]
        own = [count for folder, count in zip(above, counts, strict=True) if folder and len(folder) >= len(root)]
        if any(0 < count <= PACKAGED for count in own):
            return True
        if not any(counts):
            return False
        beginnings = [name[:end] for end in self._playlist_lengths if 0 < end <= len(name)]
        return not self._playlist_names.isdisjoint(fingerprint_batch(beginnings))


def _suffixes(folded: str) -> list[str]:
    return [folded[at + 1 :] for at, character in enumerate(folded) if character == "/"]


def any_of(groups: Sequence[Sequence[str]], contains: Callable[[array[int]], list[bool]]) -> list[bool]:
    """Of each group of paths, whether the fingerprint of any of them is contained; all are looked up at once."""
    found = contains(fingerprint_batch([path for group in groups for path in group]))
    if True not in found:
        return [False] * len(groups)
    answers, end = [], 0
    for group in groups:
        start, end = end, end + len(group)
        answers.append(True in found[start:end])
    return answers


class Patterns:
    """Patterns of derived files, each of an original's name in the same folder or, with `/` at the end, of folders.

    In a pattern `{name}` is the original's name with or without extension, `{n}` digits, `{any}` anything in a name.
    A derived file may have any media extension, and also the original's name and another extension.

    Raises:
        ValueError: a pattern says nothing; names the pattern and what is accepted.
    """

    def __init__(self, patterns: Iterable[str] = DERIVED) -> None:
        patterns = tuple(patterns)
        self._folders: list[re.Pattern[str]] = []
        self._names: list[re.Pattern[str]] = []
        for pattern in patterns:
            if derived_pattern(pattern).endswith("/"):
                self._folders.append(re.compile(f"(?=/({_folders_of(pattern)})/)"))
            else:
                self._names.append(_compiled(pattern))
        every = "|".join(pattern.pattern.replace("?P<name>", "?:") for pattern in self._names)
        self._any_name = re.compile(every or "(?!)")
        folders = "|".join(_folders_of(pattern) for pattern in patterns if pattern.endswith("/"))
        self._any_folder = re.compile(f"/(?:{folders})/" if folders else "(?!)")
        self._mark = _mark_of(patterns)

    def originals(self, folded: str, extensions: Collection[str] = _EXTENSIONS) -> Iterator[list[str]]:
        """The folded paths of what the file may be derived from, nearest first, in groups of one name each.

        Args:
            extensions: those of media files that listed keys have.
        """
        seen = {folded}
        level = [folded]
        for _ in range(DERIVATIONS):
            upper: list[str] = []
            for path in level:
                yield _with_extensions(path, folded, extensions)
                upper += [one for one in self._undone(path) if one not in seen]
                seen.update(upper)
            level = upper
            if not level or len(seen) > _MAX_ORIGINALS:
                break
        for path in level:
            yield _with_extensions(path, folded, extensions)

    def bases(self, paths: Sequence[str]) -> list[str]:
        """The paths, without extension, of what these files may be derived from."""
        found: list[str] = []
        if not self._is_marked("\n/".join(paths)):
            return found
        for path in filter(self._is_marked, paths):
            level, seen = [path], {path}
            for _ in range(DERIVATIONS):
                level = [one for above in level for one in self._undone(above) if one not in seen]
                seen.update(level)
                level = [one for one in level if self._is_marked(one)]
                if not level or len(seen) > _MAX_ORIGINALS:
                    break
            split = (one.rpartition("/") for one in seen - {path})
            found += {folder + slash + stem(name) for folder, slash, name in split}
        return found

    def _is_marked(self, path: str) -> bool:
        return self._mark.search(f"/{path}") is not None

    def _undone(self, path: str) -> list[str]:
        folder, slash, name = path.rpartition("/")
        bare = stem(name)
        found = [
            folder + slash + match["name"].lstrip(" " + QUOTES)
            for tried in dict.fromkeys((bare, name))
            if self._any_name.fullmatch(tried)
            for pattern in self._names
            if (match := pattern.fullmatch(tried))
        ]
        inside = f"/{folder}/"
        if self._any_folder.search(inside):
            # Beside the folder, below it or in the folder of originals; in there a name may have any ending.
            names = [name, *(bare[: end.start()] for end in [*_ENDINGS.finditer(bare)][-MAX_ENDINGS:])]
            for match in (match for pattern in self._folders for match in pattern.finditer(inside)):
                before, after = inside[1 : match.start(1)], inside[match.end(1) + 1 :]
                found += [f"{before}{above}{after}{one}" for above in ("", "original/") for one in names if one]
        return list(dict.fromkeys(found))


def _compiled(pattern: str) -> re.Pattern[str]:
    words = {"{name}": "(?P<name>.+)", "{n}": "[0-9]{1,20}+", "{any}": ".*"}
    return re.compile(
        "".join(words.get(part) or re.escape(part.casefold().replace("+", " ")) for part in derived_parts(pattern))
    )


def _folders_of(pattern: str) -> str:
    """A regular expression of the folders of a pattern, without slashes around them."""
    parts = derived_parts(fold(pattern))
    return "".join("[0-9]{1,20}+" if part == "{n}" else re.escape(part) for part in parts)


def _mark_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """What every path has that derives from another: the folder, or what the name begins or ends with.

    Searched for in lines that begin with a slash. The alternatives begin with different characters, which `re` looks
    for first: that is 20 times faster than to try each at every character.
    """
    words = {"{n}": "[0-9]+", "{any}": ".*"}
    by_first: defaultdict[str, list[str]] = defaultdict(list)
    for pattern in patterns:
        if pattern.endswith("/"):
            by_first["/"].append(_folders_of(pattern) + "/")
            continue
        parts = [
            words.get(part) or ("\0" if part == "{name}" else re.escape(part.casefold().replace("+", " ")))
            for part in derived_parts(pattern)
        ]
        before, _, after = "".join(parts).partition("\0")
        if before:
            by_first["/"].append(before)
        else:
            first = re.match(r"\\.|[^\[.]", after)
            start = first[0] if first else ""
            by_first[start].append(f"{after[len(start) :]}(?=[.]|$)")
    every = "|".join(f"{start}(?:{'|'.join(rest)})" for start, rest in by_first.items())
    return re.compile(every or "(?!)", re.MULTILINE)


def _with_extensions(path: str, besides: str, extensions: Collection[str]) -> list[str]:
    folder, slash, name = path.rpartition("/")
    bare = folder + slash + stem(name)
    paths = dict.fromkeys([path, bare, *(f"{bare}.{extension}" for extension in extensions)])
    return [one for one in paths if one != besides]


class Exclusions:
    """Glob patterns of keys that are never removed: `*` stays in a folder, `**` does not; case does not matter.

    A pattern without a slash is of names in any folder. Others are of keys, or of paths below the listed folder.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        found = [pattern.strip("/") if "/" in pattern else f"**/{pattern}" for pattern in patterns]
        each = [glob.translate(one.casefold(), recursive=True, include_hidden=True, seps="/") for one in found]
        self._any = re.compile("|".join(each)) if each else None

    def names(self, key: str, *, folder: str = "") -> bool:
        """Whether a pattern names the key."""
        if self._any is None:
            return False
        tried = {key, key.removeprefix(folder)}
        return any(self._any.match(one.strip("/").casefold()) is not None for one in tried)


def why_kept(
    folded: Sequence[str],
    *,
    may_mean: Callable[[Sequence[str]], list[bool]],
    is_named: Callable[[Sequence[str]], list[bool]],
    is_candidate: Callable[[Sequence[str]], list[bool]],
    patterns: Patterns,
    extensions: Collection[str] = _EXTENSIONS,
) -> list[Kept | None]:
    """Why each of the files with these folded keys is kept, or None.

    Args:
        may_mean: which files a value may mean, by their folded keys.
        is_named: which folded keys are listed and named.
        is_candidate: which folded keys are listed and not named.
        extensions: those of media files that listed keys have.
    """
    kept: list[Kept | None] = [Kept.AMBIGUOUS if is_meant else None for is_meant in may_mean(folded)]
    unclear = [n for n, why in enumerate(kept) if why is None]
    for start in range(0, len(unclear), _CHUNK):
        some = unclear[start : start + _CHUNK]
        originals = {n: [path for group in patterns.originals(folded[n], extensions) for path in group] for n in some}
        paths = list({path for group in originals.values() for path in group})
        keeps = {path for path, named in zip(paths, is_named(paths), strict=True) if named}
        listed = [path for path, is_listed in zip(paths, is_candidate(paths), strict=True) if is_listed]
        keeps.update(path for path, is_meant in zip(listed, may_mean(listed), strict=True) if is_meant)
        for n in some if keeps else ():
            if not keeps.isdisjoint(originals[n]):
                kept[n] = Kept.DERIVED
    return kept
