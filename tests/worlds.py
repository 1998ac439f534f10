# ruff: noqa: E501
"""Hostile worlds by seed: a bucket's keys, the rows that name them in every form, and what is truly referenced.

The oracle knows by construction: each row is made from a key that is there (referenced) or is not (missing). Pure data,
for unit tests, integration tests and the bench. `World(7)` is always the same; `str(World(7))` describes it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from unicodedata import normalize
from urllib.parse import quote, quote_plus

from lamplighter.media.folding import fold

ENCODE_URI: Final = "/!#$&'()*+,:;=?@~"

type Encoding = Callable[[str], str]
type Form = Callable[[str, "World"], str]


def _half(text: str) -> str:
    return "".join(quote(character, safe="") if n % 2 else character for n, character in enumerate(text))


def _numeric(text: str) -> str:
    return "".join(f"&#{ord(c)};" if n % 3 == 0 else f"&#x{ord(c):X};" if n % 3 == 1 else c for n, c in enumerate(text))


def _javascript(text: str) -> str:
    return "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)


ENCODINGS: Final[dict[str, Encoding]] = {
    "raw": lambda key: key,
    "quote": quote,
    "quote_plus": quote_plus,
    "plus between slashes": lambda key: quote_plus(key, safe="/"),
    "encodeURI": lambda key: quote(key, safe=ENCODE_URI),
    "encodeURIComponent": lambda key: quote(key, safe="!'()*~"),
    "Java": lambda key: quote_plus(key, safe="*/").replace("~", "%7E"),
    "half": _half,
    "over": lambda key: "".join(f"%{byte:02X}" for byte in key.encode()),
    "double": lambda key: quote(quote(key)),
    "triple": lambda key: quote(quote(quote(key, safe=""), safe=""), safe=""),
    "mixed hex": lambda key: re.sub("%[0-9A-F]{2}", lambda code: code[0].swapcase(), quote(key), count=2),
    "lower hex": lambda key: re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), quote(key)),
    "HTML": html.escape,
    "HTML of a URL": lambda key: html.escape(quote(key)),
    "numeric entities": _numeric,
    "JavaScript escapes": _javascript,
    "escaped slashes": lambda key: _javascript(key).replace("/", "\\/"),
    "NFC": lambda key: normalize("NFC", key),
    "NFD": lambda key: normalize("NFD", key),
    "NFD encoded": lambda key: quote(normalize("NFD", key)),
    "upper case": str.upper,
    "lower case": str.lower,
    "blanks": lambda key: f" \t{key}\n ",
    "NBSP": lambda key: f"\xa0{key}\xa0",
    "zero width": lambda key: "\ufeff" + "\u200b".join(key),
    "quotes": lambda key: f'"{key}"',
    "doubled slashes": lambda key: key.replace("/", "//"),
    "dots": lambda key: key.replace("/", "/./"),
    "up": lambda key: key.replace("/", "/x/../"),
    "backslashes": lambda key: key.replace("/", "\\"),
}
"""Ways of writing a key that fold to it."""

PLACES: Final[dict[str, Callable[[str, str], str]]] = {
    "raw": lambda path, bucket: path,
    "slash": lambda path, bucket: f"/{path}",
    "origin": lambda path, bucket: f"https://cdn.example.com/{path}",
    "origin with user and port": lambda path, bucket: f"HTTP://user:secret@Files.example.org:8080/{path}",
    "s3": lambda path, bucket: f"s3://{bucket}/{path}",
    "arn": lambda path, bucket: f"arn:aws:s3:::{bucket}/{path}",
    "arn of a partition": lambda path, bucket: f"arn:aws-us-gov:s3:::{bucket}/{path}",
    "path style": lambda path, bucket: f"https://s3.eu-central-1.amazonaws.com/{bucket}/{path}",
    "virtual host": lambda path, bucket: f"https://{bucket}.s3.amazonaws.com/{path}",
    "no scheme": lambda path, bucket: f"//cdn.example.com/{path}",
    "bucket": lambda path, bucket: f"{bucket}/{path}",
    "query": lambda path, bucket: f"https://cdn.example.com/{path}?X-Amz-Date=1&X-Amz-Expires=9%2F8",
    "fragment": lambda path, bucket: f"{path}#t=10",
    "query and fragment": lambda path, bucket: f"/{path}?v=2#t=10",
}
"""Where a written key stands in a value, all of them matched."""


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _stem(key: str) -> str:
    return key.rpartition(".")[0]


def _below_subfolder(key: str, world: World) -> str:
    return key.removeprefix(world.base_path).partition("/")[2] or _name(key)


RESCUED: Final[dict[str, Form]] = {
    "static": lambda key, world: f"static/{key}",
    "unknown prefix": lambda key, world: f"/assets/v1/{key.removeprefix(world.base_path)}",
    "drive": lambda key, world: "C:\\inetpub\\" + key.replace("/", "\\"),
    "file URI": lambda key, world: f"file:///srv/www/{quote(key)}",
    "below a sub-folder": _below_subfolder,
    "moved folder": lambda key, world: f"old/place/{_name(key)}",
    "JSON": lambda key, world: json.dumps({"w": 3, "path": key}),
    "PHP": lambda key, world: f's:{len(key.encode())}:"{key}";',
    "HTML": lambda key, world: f'<p>x</p><img alt="" src="/{html.escape(key)}">',
    "Markdown": lambda key, world: f"see ![it](/{quote(key)}) here",
    "srcset": lambda key, world: f"/{quote(key)} 1x, /{quote(key)}?w=2 2x",
    "list": lambda key, world: f"{quote(key)},{quote(key)}",
    "CSS": lambda key, world: f"background: url('/{quote(key)}') no-repeat",
    "Next.js": lambda key, world: f"/_next/image?url=%2F{quote(quote(key), safe='')}&w=640&q=75",
    "imgproxy": lambda key, world: f"https://img.example.com/x/rs:fit:300/plain/s3://{world.bucket}/{quote(key)}@webp",
    "Firebase": lambda key, world: f"https://fb.example.com/v0/b/{world.bucket}/o/{quote(key, safe='')}?alt=media",
    "no extension": lambda key, world: _stem(key),
    "another extension": lambda key, world: _stem(key) + ".tiff",
    "the name alone": lambda key, world: _name(key),
    "hash added": lambda key, world: f"{_stem(key)}-0a1b2c{key[len(_stem(key)) :]}",
    "folder": lambda key, world: key.rpartition("/")[0],
}
"""Forms that are not matched, and keep their file all the same."""

REFUSED: Final[dict[str, Form]] = {
    "base64": lambda key, world: "https://img.example.com/" + base64.urlsafe_b64encode(key.encode()).decode(),
    "hash": lambda key, world: hashlib.sha1(key.encode()).hexdigest(),
    "cut short": lambda key, world: _name(key)[:2],
    "a part of the name": lambda key, world: _name(key)[1:-5],
}
"""Forms that name nothing: the governor must refuse."""

WORDS: Final = (
    "photo", "IMG", "my photo", "a+b c", "100%", "50%25 off", "Tom & Jerry", "R&amp;D", "l'été «1»", "Ünïcödé",
    "e\u0301te\u0301", "日本 写真", "😀 emoji👩‍👩‍👧", "a#b", "a?b", "x;y,c=d@e$f!(1)~", "a:b", 'say "hi" now', "...dots..",
    ".hidden", "straße İstanbul", "ﬁligree ½", "tab\tand\xa0nbsp", "Report (final)", "x" * 150, "DSC", "Screenshot 2024-01-02 at",
)  # fmt: skip
EXTENSIONS: Final = ("jpg", "JPG", "png", "jpeg", "webp", "gif", "mp4", "svg")
DERIVATIONS: Final[tuple[Callable[[str, str, str], str], ...]] = (
    lambda folder, stem, ext: f"{folder}/{stem}-150x150.{ext}",
    lambda folder, stem, ext: f"{folder}/{stem}-scaled.{ext}",
    lambda folder, stem, ext: f"{folder}/{stem}.{ext}.245x245_q85_crop.{ext}",
    lambda folder, stem, ext: f"{folder}/thumbnail_{stem}.{ext}",
    lambda folder, stem, ext: f"{folder}/{stem}@2x.{ext}",
    lambda folder, stem, ext: f"{folder}/{stem}.avif",
    lambda folder, stem, ext: f"{folder}/thumbs/{stem}.{ext}",
    lambda folder, stem, ext: f"{folder}/thumbs/{stem}-scaled-300x200.webp",
)
MINORITIES: Final = ((1, 20), (1, 100), (6, 26), (40, 100))


@dataclass
class Column:
    """A reference column of a world, with the declarations that its owner made."""

    name: str
    kind: str
    """text, array, json, html or folder."""
    values: list[str] = field(default_factory=list)
    """One string a row: the value; for array and json a JSON document; for html a document."""
    strip: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ("gravatar.com", "https://other.example.net/")
    missing: int = 0
    """Rows of which the file is gone."""
    forms: list[str] = field(default_factory=list)

    @property
    def folder(self) -> bool:
        """Whether its values name folders."""
        return self.kind == "folder"

    @property
    def strings(self) -> list[str]:
        """The values as a reader of the column gives them."""
        if self.kind in {"array", "json"}:
            return [text for document in self.values for text in _strings(json.loads(document))]
        if self.kind == "html":
            return [source for document in self.values for source in re.findall(r'src="([^"]*)"', document)]
        return self.values

    def __str__(self) -> str:
        return self.name


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _strings(one)]


class World:
    """One world.

    Args:
        seed: decides everything.
        clean: one usual form, at most 1 % missing files, no other trouble.
    """

    def __init__(self, seed: int, *, clean: bool = False) -> None:
        self.seed, self.clean = seed, clean
        self._rng = rng = random.Random(f"world {seed} {clean}")
        self.bucket = rng.choice(["my-bucket", "media", "uploads", "a"])
        self.base_path = rng.choice(["", "", "uploads/", "media/", "media/Übersicht 1/", "a/b/c/"])
        self.exclude = ("keep/**", "*.svg") if rng.random() < 0.3 else ()
        self.objects: list[str] = []
        self.columns: list[Column] = []
        self.referenced: set[str] = set()
        """Keys that a row names, or that are derived from such."""
        self.undecipherable: set[str] = set()
        """Keys that are named only by rows in a form of `REFUSED`, and what derives from them."""
        self.orphans: set[str] = set()
        """Neither referenced nor excluded, nor of one folded path with a file that is."""
        self.excluded: set[str] = set()
        self._folded: set[str] = set()
        self._kinds: set[str] = set()
        self._number = rng.randrange(100, 5000)
        self._folders = [f"{self.base_path}{folder}" for folder in rng.sample(
            ["2024/01", "2024/02", "Fotos Ärzte", "users/17", "x y+z", "a", "deep/er/and/deeper"], rng.randint(2, 5)
        )]  # fmt: skip
        for number in range(rng.randint(1, 3)):
            self._add_column(number)
        if not clean and rng.random() < 0.3:
            self._add_folders()
        self._add_derived()
        for _ in range(max(1, len(self.objects) // 20)):
            self.orphans.add(self._new_key())
        if self.exclude:
            self.excluded |= {self._new_key(folder=f"{self.base_path}keep/z") for _ in range(3)}
            self.excluded |= {key for key in self.orphans if key.endswith(".svg")}
            self.orphans -= self.excluded
        self.objects += [*self.orphans, *(self.excluded - set(self.objects))]
        self.objects = sorted(set(self.objects), key=str.encode)
        self.orphans -= self.referenced

    @property
    def accepts_unmatched(self) -> list[int]:
        """The missing files of each column: what its owner sets `max_unmatched` to."""
        return [column.missing for column in self.columns]

    @property
    def missing(self) -> dict[str, int]:
        """The missing files of each column."""
        return {column.name: column.missing for column in self.columns}

    def _new_key(self, folder: str | None = None) -> str:
        rng = self._rng
        while True:
            self._number += rng.choice([1, 1, 1, 7])
            number = f"{rng.choice(['-', '_', ' '])}{self._number:04}" if rng.random() < 0.9 else ""
            token = f"-{rng.getrandbits(48):012x}" if rng.random() < 0.5 or not number else ""
            name = f"{rng.choice(WORDS)}{number}{token}.{rng.choice(EXTENSIONS)}"
            key = f"{folder or rng.choice(self._folders)}/{name}"
            if fold(key) not in self._folded:
                self._folded.add(fold(key))
                return key

    def _lead(self) -> str:
        """What values of a column leave out: leading parts of the base path, which ends with a slash, or nothing."""
        ends = [at + 1 for at, character in enumerate(self.base_path) if character == "/"]
        return self.base_path[: self._rng.choice([0, 0, *ends])]

    def _matched_form(self, lead: str) -> tuple[str, Form]:
        rng = self._rng
        encoding, place = rng.choice(list(ENCODINGS)), rng.choice(list(PLACES))
        if rng.random() < 0.4:
            encoding = rng.choice(["raw", "quote"])
        if lead:
            place = rng.choice(["raw", "raw", "slash", "origin", "query", "fragment"])
        if place in {"fragment", "query", "query and fragment"} and encoding in {"blanks", "quotes", "NBSP"}:
            encoding = "quote"

        def form(key: str, world: World) -> str:
            return PLACES[place](ENCODINGS[encoding](key.removeprefix(lead)), world.bucket)

        return f"{place}/{encoding}/{lead or '-'}", form

    def _forms(self, count: int) -> list[tuple[str, Form, bool]]:
        """A form for each of `count` rows, and whether it can be read at all."""
        rng, lead = self._rng, self._lead()
        name, usual = self._matched_form(lead)
        forms = [(name, usual, True)] * count
        if self.clean:
            return forms
        for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
            some, of = rng.choice(MINORITIES)
            kind = rng.choice(["matched", "matched", "matched", "rescued", "rescued", "refused"])
            self._kinds.add(kind)
            if kind == "matched":
                name, form = self._matched_form(rng.choice([lead, ""]))
            else:
                name = rng.choice(list(RESCUED if kind == "rescued" else REFUSED))
                form = (RESCUED if kind == "rescued" else REFUSED)[name]
            rows = rng.sample(range(count), max(1, count * some // of) if some > 1 else 1)
            for row in rows:
                forms[row] = (name, form, kind != "refused")
        return forms

    def _add_column(self, number: int) -> None:
        rng = self._rng
        kind = rng.choice(["text", "text", "text", "array", "json", "html"])
        column = Column(f"table_{number}.column_{number}", kind)
        count = rng.choice([20, 26, 60, 100, 150])
        share = rng.choice([0, 0, 0.01]) if self.clean else rng.choice([0, 0, 0.01, 0.02, 0.1])
        missing = set(rng.sample(range(count), int(count * share)))
        texts = []
        for row, planned in enumerate(self._forms(count)):
            name, form, readable = planned
            key = self._new_key()
            if row in missing:
                name, form = self._matched_form("")
                column.missing += 1
            else:
                self.objects.append(key)
                self.referenced.add(key)
                if not readable:
                    self.undecipherable.add(key)
            column.forms.append(name)
            texts.append(form(key, self))
            if rng.random() < 0.05:
                texts.append(rng.choice(["", " ", "\t\n", "\u200b"]))
            if rng.random() < 0.03 and row not in missing:
                texts.append(texts[-1])
                column.forms.append(name)
        if not self.clean or rng.random() < 0.5:
            texts += [
                f"https://www.gravatar.com/avatar/{rng.getrandbits(64):016x}.jpg?s=80",
                "https://other.example.net/x/y.png",
                "data:image/png;base64,iVBORw0KGgo=",
            ][: rng.randint(0, 3)]
        rng.shuffle(texts)
        column.values = _rows(texts, kind, rng)
        self.columns.append(column)

    def _add_folders(self) -> None:
        column = Column("albums.folder", "folder")
        for number in range(3):
            folder = f"{self.base_path}albums/{number} Ü{self._rng.randrange(1000)}"
            column.values.append(self._matched_form("")[1](folder + "/", self))
            for _ in range(self._rng.randint(1, 4)):
                key = self._new_key(folder=folder + self._rng.choice(["", "/sub"]))
                self.objects.append(key)
                self.referenced.add(key)
        if self._rng.random() < 0.3:
            column.values.append(f"{self.base_path}albums/gone")
            column.missing += 1
        self.columns.append(column)

    def _add_derived(self) -> None:
        rng = self._rng
        for key in [key for key in self.objects if rng.random() < 0.08 and len(key) < 300]:
            folder, _, name = key.rpartition("/")
            stem, _, extension = name.rpartition(".")
            derived = rng.choice(DERIVATIONS)(folder, stem, extension)
            if fold(derived) not in self._folded:
                self._folded.add(fold(derived))
                self.objects.append(derived)
                self.referenced.add(derived)
                if key in self.undecipherable:
                    self.undecipherable.add(derived)

    @property
    def is_understood(self) -> bool:
        """Whether every form in it is one of those that are matched, so that no run may refuse it."""
        return self._kinds <= {"matched"}

    def __str__(self) -> str:
        lines = [
            f"World({self.seed}, clean={self.clean}): bucket {self.bucket!r}, base_path {self.base_path!r},"
            f" {len(self.objects)} objects, {len(self.orphans)} orphans, exclude {self.exclude}"
        ]
        for column in self.columns:
            forms = {form: column.forms.count(form) for form in column.forms}
            lines.append(f"  {column} ({column.kind}): {len(column.strings)} values, {column.missing} missing, {forms}")
        return "\n".join(lines)


def _rows(texts: list[str], kind: str, rng: random.Random) -> list[str]:
    if kind == "text":
        return texts
    groups: list[list[str]] = []
    left = list(texts)
    while left:
        size = rng.randint(1, 4)
        groups.append(left[:size])
        del left[:size]
    if kind == "array":
        return [json.dumps(group) for group in groups]
    if kind == "json":
        return [json.dumps({"n": 1, "files": [{"url": text} for text in group]}) for group in groups]
    return ["<p>" + " ".join(f'<img src="{html.escape(text)}">' for text in group) + "</p>" for group in groups]
