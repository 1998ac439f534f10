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
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from unicodedata import combining, normalize
from urllib.parse import quote, quote_plus

from lamplighter.media import documents
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


def _split(key: str) -> tuple[str, str]:
    """A key's stem with its folder, and its extension with the dot."""
    stem, dot, extension = key.rpartition(".")
    return stem, dot + extension


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
    "HTML with a named apostrophe": lambda key: html.escape(key).replace("&#x27;", "&apos;"),
    "HTML with a decimal apostrophe": lambda key: html.escape(key).replace("&#x27;", "&#39;"),
    "HTML twice": lambda key: html.escape(html.escape(key)),
    "HTML quotes around": lambda key: f"&quot;{html.escape(key)}&quot;",
    "HTML of a URL": lambda key: html.escape(quote(key)),
    "numeric entities": _numeric,
    "JavaScript escapes": _javascript,
    "escaped slashes": lambda key: _javascript(key).replace("/", "\\/"),
    "NFC": lambda key: normalize("NFC", key),
    "NFD": lambda key: normalize("NFD", key),
    "NFD encoded": lambda key: quote(normalize("NFD", key)),
    "compatible": lambda key: normalize("NFKC", key),
    "full width": lambda key: "".join(chr(ord(c) + 0xFEE0) if c.isalnum() and c.isascii() else c for c in key),
    "soft hyphens": "\xad".join,
    "marks of direction": lambda key: f"\u202a{key}\u202c\u200e",
    "joiners dropped": lambda key: re.sub("[\u200d\ufe0f]", "", key),
    "upper case of the extension": lambda key: "".join(_split(key)[:1]) + _split(key)[1].upper(),
    "upper case": str.upper,
    "lower case": str.lower,
    "blanks": lambda key: f" \t{key}\n ",
    "NBSP": lambda key: f"\xa0{key}\xa0",
    "zero width": lambda key: "\ufeff" + "\u200b".join(key),
    "quotes": lambda key: f'"{key}"',
    "end of a line": lambda key: f"{key}\r\n",
    "slash behind": lambda key: f"{key}/",
    "doubled slashes": lambda key: key.replace("/", "//"),
    "dots": lambda key: key.replace("/", "/./"),
    "up": lambda key: key.replace("/", "/x/../"),
    "backslashes": lambda key: key.replace("/", "\\"),
}
"""Ways of writing a key that fold to it."""

SIGNATURE: Final = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20260101%2Feu-central-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20260101T000000Z&X-Amz-Expires=300&X-Amz-Signature=0a1b2c&X-Amz-SignedHeaders=host"
)

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
    "no scheme with port": lambda path, bucket: f"//cdn.example.com:8443/{path}",
    "IDN host": lambda path, bucket: f"https://b\u00fccher.example/{path}",
    "IPv6 host": lambda path, bucket: f"http://[::1]:4566/{bucket}/{path}",
    "other schemes": lambda path, bucket: f"s3a://{bucket}/{path}",
    "dual stack": lambda path, bucket: f"https://{bucket}.s3.dualstack.eu-central-1.amazonaws.com/{path}",
    "bucket": lambda path, bucket: f"{bucket}/{path}",
    "query": lambda path, bucket: f"https://cdn.example.com/{path}?X-Amz-Date=1&X-Amz-Expires=9%2F8",
    "signed": lambda path, bucket: f"https://{bucket}.s3.amazonaws.com/{path}?{SIGNATURE}",
    "imgix": lambda path, bucket: f"https://x.imgix.net/{path}?auto=format,compress&fit=crop&w=640&s=0a1b2c",
    "download": lambda path, bucket: f"/{path}?download=it.jpg",
    "fragment": lambda path, bucket: f"{path}#t=10",
    "query and fragment": lambda path, bucket: f"/{path}?v=2#t=10",
}
"""Where a written key stands in a value, all of them matched."""


QUERIES: Final = {"fragment", "query", "query and fragment", "signed", "imgix", "download"}


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _stem(key: str) -> str:
    return key.rpartition(".")[0]


def _below_subfolder(key: str, world: World) -> str:
    return key.removeprefix(world.base_path).partition("/")[2] or _name(key)


def _as_windows(key: str) -> str:
    """UTF-8 read as cp1252, where that can be done."""
    try:
        return key.encode().decode("cp1252")
    except UnicodeDecodeError:
        return key


def _wordpress(key: str) -> str:
    """Serialised metadata of an attachment, with one smaller size."""
    small = _name(_stem(key)) + "-150x150" + _split(key)[1]
    return (
        f'a:3:{{s:5:"width";i:1200;s:4:"file";s:{len(key.encode())}:"{key}";s:5:"sizes";a:1:{{s:9:"thumbnail";'
        f'a:1:{{s:4:"file";s:{len(small.encode())}:"{small}";}}}}}}'
    )


def _strapi(key: str) -> str:
    """Formats of an image as JSON."""
    name = _name(key)
    formats = {"thumbnail": {"ext": _split(key)[1], "hash": f"thumbnail_{_stem(name)}", "url": f"/u/thumbnail_{name}"}}
    return json.dumps({"name": name, "formats": formats})


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
    "CDN host alone": lambda key, world: f"cdn.example.com/{quote(key)}",
    "Azure": lambda key, world: f"https://account.blob.core.windows.net/container/{quote(key)}",
    "access point": lambda key, world: f"arn:aws:s3:eu-central-1:111122223333:accesspoint/media/object/{key}",
    "UNC": lambda key, world: "\\\\server\\share\\" + key.replace("/", "\\"),
    "file URI of a drive": lambda key, world: f"file:///C:/inetpub/{quote(key)}",
    "dot behind": lambda key, world: f"{key}.",
    "session": lambda key, world: f"/{quote(key)};jsessionid=0A1B2C",
    "matrix": lambda key, world: f"/{quote(key.rpartition('/')[0])};v=1/{quote(_name(key))}",
    "style behind": lambda key, world: f"{quote(key)}!thumb",
    "size behind": lambda key, world: f"{quote(key)}:large",
    "path behind": lambda key, world: f"/{quote(key)}/resize/300x",
    "Cloudinary": lambda key, world: f"https://res.example.com/demo/image/upload/c_fill,w_300/v1612345678/{quote(key)}",
    "Cloudinary fetch": lambda key, world: (
        f"https://res.example.com/demo/image/fetch/f_auto/https://cdn.example.com/{quote(key)}"
    ),
    "Thumbor": lambda key, world: f"https://t.example.com/unsafe/300x200/smart/{quote(key, safe='')}",
    "Cloudflare": lambda key, world: f"/cdn-cgi/image/width=80,quality=75/{quote(key)}",
    "proxy": lambda key, world: f"https://images.example.com/?url=cdn.example.com/{quote(key)}&w=300",
    "Shopify": lambda key, world: f"{quote(_stem(key))}_600x{_split(key)[1]}?v=16",
    "Ghost": lambda key, world: f"/content/images/size/w600/{quote(_name(key))}",
    "Drupal": lambda key, world: f"/sites/default/files/styles/thumbnail/public/{quote(_name(key))}?itok=aB3_x",
    "Discourse": lambda key, world: f"/optimized/1X/{quote(_name(_stem(key)))}_2_690x388.jpeg",
    "Mastodon": lambda key, world: f"{key.rpartition('/')[0]}/small/{_name(key)}",
    "ImageFieldFile": lambda key, world: f"<ImageFieldFile: {key}>",
    "array as text": lambda key, world: '{"' + key.replace('"', '\\"') + '"}',
    "hstore": lambda key, world: f'"file"=>"{key}"',
    "BBCode": lambda key, world: f"[img]https://cdn.example.com/{quote(key)}[/img]",
    "wiki": lambda key, world: f"[[File:{_name(key)}|thumb]]",
    "WordPress": lambda key, world: _wordpress(key),
    "Strapi": lambda key, world: _strapi(key),
    "double UTF-8": lambda key, world: key.encode().decode("latin-1"),
    "double UTF-8 of Windows": lambda key, world: _as_windows(key),
    "accents dropped": lambda key, world: "".join(c for c in normalize("NFD", key) if not combining(c)),
    "Turkish upper case": lambda key, world: _stem(key).replace("i", "\u0130").upper() + _split(key)[1],
}
"""Forms that are not matched, and keep their file all the same."""


def _digest(key: str) -> str:
    return hashlib.sha1(key.encode()).hexdigest()


def _token(key: str, length: int) -> str:
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "".join(letters[byte % 36] for byte in hashlib.sha256(key.encode()).digest())[:length]


def _base64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


REFUSED: Final[dict[str, Form]] = {
    "base64": lambda key, world: "https://img.example.com/" + base64.urlsafe_b64encode(key.encode()).decode(),
    "hash": lambda key, world: hashlib.sha1(key.encode()).hexdigest(),
    "cut short": lambda key, world: _name(key)[:2],
    "a part of the name": lambda key, world: _name(key)[1:-5],
    "Active Storage": lambda key, world: _token(key, 28),
    "Moodle": lambda key, world: f"{_digest(key)[:2]}/{_digest(key)[2:4]}/{_digest(key)}",
    "id": lambda key, world: str(int(_digest(key)[:6], 16)),
    "UUID": lambda key, world: str(uuid.uuid5(uuid.NAMESPACE_URL, key)),
    "hash as a name": lambda key, world: f"img/{_digest(key)}{_split(key)[1]}",
    "hash at a host": lambda key, world: f"https://img.example.com/x/{_digest(key)}{_split(key)[1]}",
    "hash in a URL of its own": lambda key, world: f"upload://{_token(key, 27)}.jpeg",
    "base64 as a name": lambda key, world: f"https://img.example.com/x/{_base64(key)}.webp",
    "imgproxy in base64": lambda key, world: f"/sig/rs:fit:300/{_base64(f's3://{world.bucket}/{key}')}.jpg",
    "hash in this folder": lambda key, world: f"{world.base_path}{_digest(key)}{_split(key)[1]}",
    "hash in the folder above": lambda key, world: f"{world.base_path.partition('/')[0]}/{_digest(key)}.jpg",
    "cut at a letter": lambda key, world: re.split(r"[^\x00-\x7f]", key)[0],
    "escape of JavaScript": lambda key, world: "".join(c if c.isascii() else f"%u{ord(c):04X}" for c in key),
    "quoted-printable": lambda key, world: quote(key, safe="/-_ ").replace("%", "="),
    "octal": lambda key, world: "".join(chr(b) if b < 128 else f"\\{b:03o}" for b in key.encode()),
    "Turkish lower case": lambda key, world: key.replace("I", "\u0131").lower(),
    "bytes": lambda key, world: repr(key.encode()),
    "question marks": lambda key, world: "".join(c if c.isascii() else "?" for c in normalize("NFD", key)),
    "ASCII alone": lambda key, world: key.encode("ascii", "replace").decode(),
}
"""Forms that name nothing: the governor must refuse."""

SEVERAL: Final[dict[str, Callable[[list[str]], str]]] = {
    "lines": "\n".join,
    "semicolons": lambda keys: ";".join(map(quote, keys)),
    "bars": "|".join,
    "URLs": lambda keys: " ".join(f"https://cdn.example.com/{quote(key)}" for key in keys),
    "URLs with queries": lambda keys: ",".join(f"https://cdn.example.com/{quote(key)}?v=1" for key in keys),
    "signed URLs": lambda keys: ",".join(f"https://cdn.example.com/{quote(key)}?{SIGNATURE}" for key in keys),
    "srcset": lambda keys: ", ".join(f"/{quote(key)}?w={n} {n}x" for n, key in enumerate(keys, 1)),
    "hyperlink of Access": lambda keys: "#".join(map(quote, keys)),
    "paths with fragments": lambda keys: " ".join(f"{quote(key)}#t=1" for key in keys),
    "marked": lambda keys: (
        f"https://x.imgix.net/{quote(keys[0])}?w=3&mark=" + ",".join(quote(k, safe="") for k in keys)
    ),
    "poster": lambda keys: f"/{quote(keys[0])}?" + "&".join(f"poster{n}=/{quote(k)}" for n, k in enumerate(keys)),
    "JSON in a query": lambda keys: f"/{quote(keys[0])}?crop={quote(json.dumps({'of': keys}))}",
    "JSON in a fragment": lambda keys: f"{quote(keys[0])}#{json.dumps(keys)}",
    "list of JSON": json.dumps,
    "JSON with queries": lambda keys: json.dumps([f"/{quote(key)}?v=1" for key in keys]),
    "list of Python": lambda keys: "[" + ", ".join(f"'{key}'" for key in keys) + "]",
    "fallback": lambda keys: f"url({quote(keys[0])}?#iefix), " + ", ".join(f"url({quote(k)})" for k in keys),
}
"""Values that name two or three files at once."""

WORDS: Final = (
    "photo", "IMG", "my photo", "a+b c", "100%", "50%25 off", "Tom & Jerry", "R&amp;D", "l'été «1»", "Ünïcödé",
    "e\u0301te\u0301", "日本 写真", "😀 emoji👩‍👩‍👧", "a#b", "a?b", "x;y,c=d@e$f!(1)~", "a:b", 'say "hi" now', "...dots..",
    ".hidden", "straße İstanbul", "ﬁligree ½", "tab\tand\xa0nbsp", "Report (final)", "x" * 150, "DSC", "Screenshot 2024-01-02 at",
    "\ud55c\uae00 \uc0ac\uc9c4", "\u05e9\u05dc\u05d5\u05dd", "\u015eI\u015eL\u0130 \u0131spanak", "wei\u00df GR\u00d6\u1e9eE", "\uff26\uff35\uff2c\uff2c", "it's Jo's", "\U0001f3f3\ufe0f\u200d\U0001f308 \u2764\ufe0f",
    "co\xadop", "\u03c4\u03b5\u03c3\u03c4", "\u0444\u043e\u0442\u043e", "Tho\u030a\u0308ng", "INITIAL II",
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
KINDS: Final = ("text", "text", "text", "text", "array", "json", "html", "strings", "document")
UNCOUNTED: Final = frozenset({"strings", "document"})
"""Kinds of columns in which only what looks like a file is counted."""
HIDING: Final = frozenset({"over", "half", "numeric entities", "full width", "soft hyphens", "zero width"})
"""Encodings that hide the extension: running text and JSON within HTML are looked through for plain ones."""
NAMELESS: Final = frozenset(
    {"folder", "base64", "hash", "cut short", "a part of the name", "Active Storage", "Moodle", "id", "UUID"}
    | {"cut at a letter", "Turkish lower case"}
)
"""Forms that do not look like a file: such a column must be declared by the path of its strings."""
MINORITIES: Final = ((1, 20), (1, 100), (6, 26), (40, 100))


@dataclass(frozen=True)
class Planned:
    """How a row is written."""

    name: str
    form: Form = lambda key, world: key
    several: Callable[[list[str]], str] | None = None
    """Instead of `form`, of a row that names two or three files."""
    readable: bool = True


@dataclass
class Column:
    """A reference column of a world, with the declarations that its owner made."""

    name: str
    kind: str
    """text, array, json (of a declared path), strings (all of a JSON document), html (images), document or folder."""
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
        return self.read[0]

    @property
    def read(self) -> tuple[list[str], list[str]]:
        """Values and hints, as the reader of the column gives them."""
        if self.kind in {"array", "json"}:
            return [text for document in self.values for text in _strings(json.loads(document))], []
        if self.kind in {"html", "document", "strings"}:
            found = list((documents.in_json if self.kind == "strings" else documents.in_markup)(self.values))
            return [text for text, counted in found if counted], [text for text, counted in found if not counted]
        return self.values, []

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
        self.neighbours: list[str] = []
        """Keys of the bucket that are not below the base path."""
        self.columns: list[Column] = []
        self.referenced: set[str] = set()
        """Keys that a row names, or that are derived from such."""
        self.undecipherable: set[str] = set()
        """Keys that are named only by rows in a form of `REFUSED`, and what derives from them."""
        self.orphans: set[str] = set()
        """Neither referenced nor excluded, nor of one folded path with a file that is."""
        self.excluded: set[str] = set()
        self.origin: dict[str, str] = {}
        """Of each key that a row names, its form and the column's kind."""
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
        if not clean and rng.random() < 0.1:
            self._add_playlists()
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

    def _matched_form(self, lead: str, kind: str = "text") -> tuple[str, Form]:
        rng = self._rng
        encodings = [one for one in ENCODINGS if kind not in UNCOUNTED or one not in HIDING]
        encoding, place = rng.choice(encodings), rng.choice(list(PLACES))
        if rng.random() < 0.4:
            encoding = rng.choice(["raw", "quote"])
        if lead:
            place = rng.choice(["raw", "raw", "slash", "origin", "query", "fragment"])
        if place in QUERIES and encoding in {"blanks", "quotes", "NBSP", "HTML quotes around", "end of a line"}:
            encoding = "quote"

        def form(key: str, world: World) -> str:
            return PLACES[place](ENCODINGS[encoding](key.removeprefix(lead)), world.bucket)

        return f"{place}/{encoding}/{lead or '-'}", form

    def _forms(self, count: int, kind: str) -> list[Planned]:
        """How each of `count` rows is written."""
        rng, lead = self._rng, self._lead()
        name, usual = self._matched_form(lead, kind)
        forms = [Planned(name, usual)] * count
        if self.clean:
            return forms
        for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
            some, of = rng.choice(MINORITIES)
            planned = self._minority(kind, lead)
            rows = rng.sample(range(count), max(1, count * some // of) if some > 1 else 1)
            for row in rows:
                forms[row] = planned
        return forms

    def _minority(self, kind: str, lead: str) -> Planned:
        rng = self._rng
        sort = rng.choice(["matched", "matched", "matched", "rescued", "rescued", "refused", "several"])
        self._kinds.add(sort)
        if sort == "matched":
            return Planned(*self._matched_form(rng.choice([lead, ""]), kind))
        if sort == "several":
            name = rng.choice(list(SEVERAL))
            return Planned(name, several=SEVERAL[name])
        forms = RESCUED if sort == "rescued" else REFUSED
        name = rng.choice([one for one in forms if kind not in UNCOUNTED or one not in NAMELESS])
        return Planned(name, forms[name], readable=sort == "rescued")

    def _add_column(self, number: int) -> None:
        rng = self._rng
        kind = rng.choice(["text", "text", "text", "array", "json", "html"] if self.clean else KINDS)
        if kind in UNCOUNTED:
            self._kinds.add(kind)
        column = Column(f"table_{number}.column_{number}", kind)
        count = rng.choice([20, 26, 60, 100, 150])
        share = rng.choice([0, 0, 0.01]) if self.clean else rng.choice([0, 0, 0.01, 0.02, 0.1])
        missing = set(rng.sample(range(count), int(count * share)))
        texts = []
        for row, usual in enumerate(self._forms(count, kind)):
            planned = Planned(*self._matched_form("", kind)) if row in missing else usual
            column.missing += row in missing
            keys = [self._new_key() for _ in range(rng.randint(2, 3) if planned.several else 1)]
            if row not in missing:
                self.objects += keys
                self.referenced.update(keys)
                self.origin.update(dict.fromkeys(keys, f"{planned.name} ({kind})"))
                if not planned.readable:
                    self.undecipherable.update(keys)
            column.forms.append(planned.name)
            texts.append(planned.several(keys) if planned.several else planned.form(keys[0], self))
            if rng.random() < 0.05:
                texts.append(rng.choice(["", " ", "\t\n", "\u200b"]))
            if rng.random() < 0.03 and row not in missing:
                texts.append(texts[-1])
                column.forms.append(planned.name)
        if not self.clean or rng.random() < 0.5:
            texts += [
                f"https://www.gravatar.com/avatar/{rng.getrandbits(64):016x}.jpg?s=80",
                "https://other.example.net/x/y.png",
                "data:image/png;base64,iVBORw0KGgo=",
            ][: rng.randint(0, 3)]
        texts += self._elsewhere(column)
        rng.shuffle(texts)
        column.values = _rows(texts, kind, rng)
        self.columns.append(column)

    def _elsewhere(self, column: Column) -> list[str]:
        """Values of whole keys that name files of other folders, and in some worlds of hosts that nobody declared."""
        rng = self._rng
        if not self.base_path or not all(form.endswith("/-") for form in column.forms) or rng.random() < 0.5:
            return []
        folder = rng.choice(["exports/2024", "avatars", "img", f"{self.base_path.rstrip('/')}-2"])
        keys = [f"{folder}/{n}-{rng.getrandbits(32):08x}.png" for n in range(rng.randint(1, 6))]
        other = random.Random(f"gone {self.seed} {column}")
        gone = not self.clean and other.random() < 0.2
        column.missing += gone
        self.neighbours += keys[gone:]
        column.forms.append("another folder")
        if not self.clean and rng.random() < 0.1:
            self._kinds.add("stranger")
            return [*keys, "https://img.partner.example/photos/1.jpg"]
        return keys

    def _add_playlists(self) -> None:
        """Videos in segments: a row names the playlist, which names the segments."""
        rng, column = self._rng, Column("videos.playlist", "text")
        flat = rng.random() < 0.5
        for number in range(rng.randint(1, 6)):
            name = f"clip {rng.getrandbits(40):010x}"
            folder = f"{self.base_path}{rng.choice(['', 'hls/'])}" if flat else f"{self.base_path}hls/{number}/"
            playlist = f"{folder}{name if flat else 'index'}.{rng.choice(['m3u8', 'mpd'])}"
            segments = [f"{folder}{name}_{n:05}.mp4" if flat else f"{folder}720p/seg-{n}.mp4" for n in range(3)]
            column.values.append(self._matched_form("")[1](playlist, self))
            self.objects += [playlist, *segments]
            self.referenced.update(segments)
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
    if kind == "strings":
        return [
            json.dumps({"title": "A title", "cover": group[0], "more": [{"url": one} for one in group[1:]]})
            for group in groups
        ]
    if kind == "document":
        return [
            "<p>A text.</p>\n"
            + "\n".join(
                rng.choice(WRAPPERS if text.isprintable() and "\\" not in text else WRAPPERS[:5])(text)
                for text in group
            )
            for group in groups
        ]
    return ["<p>" + " ".join(f'<img src="{html.escape(text)}">' for text in group) + "</p>" for group in groups]


WRAPPERS: Final[tuple[Callable[[str], str], ...]] = (
    lambda text: f'<a href="{html.escape(text)}">it</a>',
    lambda text: f"<IMG alt='' SRC = '{html.escape(text)}'>",
    lambda text: f'<video poster="{html.escape(text)}"></video>',
    lambda text: f'<div data-src="{html.escape(text)}"></div>',
    lambda text: f"""<div style="background: url('{html.escape(text)}')"></div>""",
    lambda text: f"<div data-options='{html.escape(json.dumps({'img': text}))}'></div>",
    lambda text: f'<!-- wp:image {{"url":{json.dumps(text)}}} -->',
    lambda text: f"![it]({quote(text, safe='/:?&=#%')})",
    lambda text: f'![it](<{text}> "A title")' if not re.search("[<>\n]", text) else f"![it]({quote(text)})",
)
"""Where a document has a path."""
