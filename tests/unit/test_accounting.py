"""`lamplighter.media.accounting`: counts, explanations, interruptions, rows that change between the readings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.media import accounting
from lamplighter.media.accounting import Account, ColumnAccount, host_of, is_blank
from lamplighter.media.folding import Plain, Scope
from lamplighter.media.rescue import Kept
from tests.unit.test_worlds import batches
from tests.worlds import World


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A column as the settings declare it."""

    name: str = "files.key"
    strip: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    folder: bool = False

    def __str__(self) -> str:
        return self.name


def account_of(
    first: list[str], keys: list[str], second: list[str] | None = None, *, scope: Scope | None = None, **declared
) -> Account:
    account = Account(scope or Scope("bucket"), [Declared(**declared)])
    account.first(0, first)
    account.listed(keys)
    account.second(0, first if second is None else second)
    return account


def count_of(*arguments, **options) -> ColumnAccount:
    return account_of(*arguments, **options).counts()[0]


def figures(count: ColumnAccount) -> tuple[int, int, int, int, int]:
    return count.values, count.matched, count.outside, count.unmatched, count.unreadable


def proposals(count: ColumnAccount) -> dict[str, str | None]:
    """What is to be declared of each group."""
    return {group.segment: group.declaration for group in count.groups}


def test_values_are_matched_outside_or_unmatched() -> None:
    count = count_of(
        [
            "m/a.jpg",
            "/m/a.jpg",
            "https://h/m/b.jpg?x",
            "m/gone.jpg",
            "bm90",
            "data:image/png;base64,x",
            "",
            " ",
            "\u200b",
        ],
        ["m/a.jpg", "m/b.jpg", "m/c.jpg"],
    )
    assert figures(count) == (6, 3, 1, 2, 1)
    assert count.missing == ("m/gone.jpg",)


@pytest.mark.parametrize("value", ["", " ", "\t\n", "\xa0", "\u200b \u200b", "\ufeff", "\0"])
def test_blank_is_no_value(value: str) -> None:
    assert is_blank(value)
    assert figures(count_of(["m/a.jpg", value], ["m/a.jpg"])) == (1, 1, 0, 0, 0)


def test_forty_of_a_hundred_rows_in_another_form_are_not_lost() -> None:
    """FAILURES 19: a sample of 20 called all 100 mapped."""
    keys = [f"media/uploads/{n}.jpg" for n in range(100)]
    values = [key if n < 60 else f"legacy/{n}.jpg" for n, key in enumerate(keys)]
    account = account_of(values, keys)
    assert figures(account.counts()[0]) == (100, 60, 0, 40, 0)
    assert {account.verdict(key) for key in keys[60:]} == {Kept.AMBIGUOUS}


def test_rows_of_another_folder_are_outside_unless_the_column_is_relative() -> None:
    scope = Scope("bucket", "up/")
    keys = ["up/a.jpg", "up/b.jpg"]
    others = bucket("other/x.jpg", "up-2/y.jpg")
    (count,) = account_of(["up/a.jpg", "other/x.jpg"], keys, scope=scope).counts(others)
    assert figures(count) == (2, 1, 1, 0, 0)
    count = count_of(["up/a.jpg", "b.jpg", "other/x.jpg"], keys, scope=scope)
    assert figures(count) == (3, 2, 0, 1, 0)
    assert proposals(count) == {"other/": '"elsewhere": ["other/"]'}
    declared = count_of(["up/a.jpg", "b.jpg", "other/x.jpg"], keys, scope=scope, elsewhere=("other/",))
    assert figures(declared) == (3, 2, 1, 0, 0)
    assert figures(count_of(["up/a.jpg", "x.jpg", "up/gone.jpg"], keys, scope=scope)) == (3, 1, 0, 2, 0)


def bucket(*keys: str) -> Callable[[str], Iterator[list[str]]]:
    """A bucket to ask for the keys that begin with a prefix, in batches of two."""

    def neighbours(prefix: str) -> Iterator[list[str]]:
        found = sorted(key for key in keys if key.startswith(prefix))
        yield from (found[n : n + 2] for n in range(0, max(1, len(found)), 2))

    return neighbours


@pytest.mark.parametrize(
    ("folder", "value", "declaration"),
    [
        ("up/", "img/5f2b.jpg", "img/"),
        ("up/", "https://i.net/img/5f2b.jpg", "i.net"),
        ("m/up/", "m/img/5f2b.jpg", "m/img/"),
        ("up/", "/sig/rs:fit:300/czM6.jpg", "sig/"),
    ],
)
def test_a_path_of_a_folder_that_is_not_there_is_unmatched(folder: str, value: str, declaration: str) -> None:
    """An application may call `up/photo.jpg` so: counted as outside, no limit stopped the removal of its file."""
    scope, keys = Scope("bucket", folder), {f"{folder}a.jpg", f"{folder}photo.jpg"}
    account = account_of([f"{folder}a.jpg", value], sorted(keys), scope=scope)
    (count,) = account.counts(bucket(*keys, "m/other/z.jpg"))
    assert figures(count) == (2, 1, 0, 1, 0)
    assert list(proposals(count).values()) == [f'"elsewhere": ["{declaration}"]']
    declared = account_of([f"{folder}a.jpg", value], sorted(keys), scope=scope, elsewhere=(declaration,))
    assert figures(declared.counts(bucket(*keys))[0]) == (2, 1, 1, 0, 0)


@pytest.mark.parametrize(
    ("folder", "value", "key"),
    [
        ("up/", "other/x.jpg", "other/x.jpg"),
        ("up/", "https://cdn.net/other%201/x.jpg?v=1", "other 1/x.jpg"),
        ("up/", "s3://bucket/other/x.jpg", "other/x.jpg"),
        ("up/", "https://s3.amazonaws.com/bucket/other/x.jpg", "other/x.jpg"),
        ("m/up/", "m/other/x.jpg", "m/other/x.jpg"),
        ("m/up/", "m/x.jpg", "m/x.jpg"),
        ("up/", "up-2/x.jpg", "up-2/x.jpg"),
        ("up/", "/other//A%CC%88/./x.JPG", "other/\u00c4/x.jpg"),
    ],
)
def test_a_path_of_another_folder_is_outside_if_the_object_is_there(folder: str, value: str, key: str) -> None:
    """`img/<hash>.jpg` may be what an application calls `up/photo.jpg`: that there is a folder img/ proves nothing."""
    account = account_of([f"{folder}a.jpg", value], [f"{folder}a.jpg"], scope=Scope("bucket", folder))
    assert figures(account.counts(bucket(f"{folder}a.jpg", key))[0]) == (2, 1, 1, 0, 0)
    others = (f"{key}.png", key.replace("x.", "y."), f"{key[:-5]}z/x.jpg")
    assert figures(account.counts(bucket(f"{folder}a.jpg", *others))[0]) == (2, 1, 0, 1, 0)
    assert figures(account.counts(bucket(f"{folder}a.jpg", *others, key))[0]) == (2, 1, 1, 0, 0)


def test_of_paths_of_another_folder_each_is_looked_for() -> None:
    there = [f"img/{n}.jpg" for n in range(26)]
    values = ["up/a.jpg", *there, *there[:3], "img/5f2b.jpg", "img/9c1d.jpg", "img/9c1d.jpg"]
    account = account_of(values, ["up/a.jpg", "up/photo.jpg"], scope=Scope("bucket", "up/"))
    (count,) = account.counts(bucket("up/a.jpg", *there))
    assert figures(count) == (33, 1, 29, 3, 0)
    assert count.missing == ("img/5f2b.jpg", "img/9c1d.jpg", "img/9c1d.jpg")
    assert [(group.segment, group.count, group.examples) for group in count.groups] == [
        ("img/", 3, ["img/5f2b.jpg", "img/9c1d.jpg"])
    ]


def test_a_relative_column_names_nothing_of_another_folder() -> None:
    """Its `img/1.jpg` may mean `up/img/1.jpg`, even where a column of whole keys names the other one."""
    account = Account(Scope("bucket", "up/"), [Declared(name="relative"), Declared(name="whole")])
    columns = [["b.jpg", "img/1.jpg"], ["up/b.jpg", "img/1.jpg"]]
    for number, values in enumerate(columns):
        account.first(number, values)
    account.listed(["up/b.jpg"])
    for number, values in enumerate(columns):
        account.second(number, values)
    relative, whole = account.counts(bucket("up/b.jpg", "img/1.jpg"))
    assert figures(relative) == (2, 1, 0, 1, 0)
    assert figures(whole) == (2, 1, 1, 0, 0)


def test_what_is_not_found_in_a_folder_that_is_too_large_is_unmatched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_ELSEWHERE", 5)
    asked: list[str] = []

    def neighbours(prefix: str) -> Iterator[list[str]]:
        asked.append(prefix)
        for key in there:
            yield [key]
        raise AssertionError("nothing more is to be listed")

    there = [f"img/{n}.jpg" for n in range(10)]
    account = account_of(["up/a.jpg", *there, "other/x.jpg"], ["up/a.jpg"], scope=Scope("bucket", "up/"))
    (count,) = account.counts(neighbours)
    assert figures(count) == (12, 1, 5, 6, 0)
    assert asked == ["img/"]
    assert count.groups[0].declaration == '"elsewhere": ["img/"]'


def test_paths_of_other_folders_are_counted_exactly_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_MISSING", 20)
    values = [f"img{n % 300}/{n}.jpg" for n in range(2000)]
    account = account_of(["up/a.jpg", *values], ["up/a.jpg"], scope=Scope("bucket", "up/"))
    (count,) = account.counts(bucket(*values[::2]))
    assert figures(count) == (2001, 1, 1000, 1000, 0)
    assert sum(group.count for group in count.groups) == 1000
    assert len(count.groups) <= 201
    assert count.missing == tuple(values[1:20:2])


def test_no_folder_of_matched_values_is_proposed_as_elsewhere() -> None:
    """That would take every missing avatar for a file of something else, in any number."""
    scope = Scope("bucket", "up/")
    keys = [f"up/avatars/{n}.jpg" for n in range(3)]
    values = [key.removeprefix("up/") for key in keys]
    one = count_of([*values, "avatars/default.png", "avatars/default.png"], keys, scope=scope)
    assert figures(one) == (5, 3, 0, 2, 0)
    assert one.groups[0].declaration == '"elsewhere": ["avatars/default.png"]'
    assert one.groups[0].examples == ["avatars/default.png"]
    two = count_of([*values, "avatars/default.png", "avatars/gone.png", "w/x.png", "w/y.png"], keys, scope=scope)
    assert {group.segment: group.declaration for group in two.groups} == {
        "avatars/": None,
        "w/": '"elsewhere": ["w/"]',
    }


def test_names_without_a_folder_are_declared_by_a_view() -> None:
    count = count_of(["1.jpg", "2.jpg"], ["a/1.jpg", "b/2.jpg"])
    assert count.groups[0].declaration == "a view that joins the columns of a path"


def test_declared_hosts_and_prefixes_are_elsewhere() -> None:
    values = [
        "a.jpg",
        "https://www.gravatar.com/x.jpg",
        "https://cdn.net/img/y.jpg",
        "legacy/z.jpg",
        "https://gravatar.com.evil/q.jpg",
    ]
    declared = ("gravatar.com", "https://cdn.net/img/", "legacy/")
    assert figures(count_of(values, ["a.jpg"], elsewhere=declared)) == (5, 1, 3, 1, 0)
    assert figures(count_of(["a.jpg", "/b.jpg", "//h/c.jpg"], ["a.jpg"], elsewhere=("/", " ", ""))) == (3, 1, 0, 2, 0)
    assert host_of("HTTPS://u:p@Host.Example:8080/x") == "host.example"
    assert host_of("a/b") == ""


def test_unmatched_values_are_grouped_with_what_to_declare() -> None:
    keys = [f"m/{n}.jpg" for n in range(9)]
    values = ["m/0.jpg", *(f"static/m/{n}.jpg" for n in range(1, 9)), "https://gravatar.com/avatar/1.jpg", "m/gone.jpg"]
    count = count_of(values, keys)
    assert figures(count) == (11, 1, 0, 10, 0)
    assert [(group.host, group.segment, group.count, group.examples, group.declaration) for group in count.groups] == [
        ("", "static/", 8, [f"static/m/{n}.jpg" for n in (1, 2, 3)], '"strip": ["static/"]'),
        ("gravatar.com", "avatar/", 1, ["https://gravatar.com/avatar/1.jpg"], '"elsewhere": ["gravatar.com"]'),
        ("", "m/", 1, ["m/gone.jpg"], None),
    ]
    declared = count_of(values, keys, strip=("static/",), elsewhere=("gravatar.com",))
    assert figures(declared) == (11, 9, 1, 1, 0)


def test_ten_thousand_groups_are_shown_in_bounded_space() -> None:
    values = ["a.jpg", *(f"folder{n}/{'x' * 500}.jpg" for n in range(10_000))]
    count = count_of(values, ["a.jpg"])
    assert len(count.groups) <= 201
    assert sum(group.count for group in count.groups) == count.unmatched == 10_000
    assert all(len(example) <= 120 for group in count.groups for example in group.examples)


def test_a_row_that_is_written_during_the_listing_keeps_its_file() -> None:
    """FAILURES 5."""
    account = account_of(["m/a.jpg"], ["m/a.jpg", "m/new.jpg", "m/old.jpg"], ["m/a.jpg", "/m/new.jpg"])
    assert account.verdict("m/new.jpg") is Kept.NAMED
    assert account.verdict("m/old.jpg") is None
    assert figures(account.counts()[0]) == (2, 2, 0, 0, 0)


def test_a_folder_names_all_below_it_in_both_readings() -> None:
    keys = ["albums/1/x.jpg", "albums/1/2/y.jpg", "albums/10/z.jpg", "albums/new/n.jpg"]
    account = Account(Scope("bucket"), [Declared(folder=True)])
    account.first(0, ["/Albums/1/"])
    assert account.listed(keys) == [True, True, False, False]
    account.second(0, ["/Albums/1/", "albums/new"])
    assert figures(account.counts()[0]) == (2, 2, 0, 0, 0)
    assert account.verdict("albums/new/n.jpg") is Kept.NAMED
    assert account.verdict("albums/10/z.jpg") is None


def test_the_marker_of_a_folder_is_no_file() -> None:
    """Consoles write an empty object `albums/2024/`: a value with this name names the folder, not the marker."""
    keys = ["a.jpg", "albums/2024/", "albums/2024/x.jpg"]
    values = ["a.jpg", "albums/2024"]
    assert figures(count_of(values, keys)) == (2, 1, 0, 1, 1)
    declared = account_of(values, keys, folder=True)
    assert figures(declared.counts()[0]) == (2, 2, 0, 0, 0)
    assert declared.verdict("albums/2024/x.jpg") is Kept.NAMED
    assert figures(count_of(["albums/empty/"], ["albums/empty/"], folder=True)) == (1, 1, 0, 0, 0)


@pytest.mark.parametrize("name", ["2024", "7", "summer"])
def test_a_matched_name_without_extension_may_be_a_folder(name: str) -> None:
    account = account_of([f"albums/{name}"], [f"albums/{name}", f"albums/{name}/x.jpg"])
    assert account.verdict(f"albums/{name}/x.jpg") is Kept.AMBIGUOUS


@pytest.mark.parametrize(
    "value", ["https://h/a/1.jpg?w=3&mark=%2Fb%2F2.jpg", "a/1.jpg#b/2.jpg", "a/1.jpg?x#b/2.jpg", "a/1.jpg?f=2.jpg"]
)
def test_a_query_of_a_matched_value_may_name_another_file(value: str) -> None:
    """Image services take watermarks and fallbacks as parameters."""
    account = account_of([value], ["a/1.jpg", "b/2.jpg", "c/3.jpg"])
    assert figures(account.counts()[0]) == (1, 1, 0, 0, 0)
    assert account.verdict("b/2.jpg") is Kept.AMBIGUOUS
    assert account.verdict("c/3.jpg") is None


@pytest.mark.parametrize("index", ["master.m3u8", "manifest.mpd", "index.html", "MASTER.M3U8?t=1"])
@pytest.mark.parametrize("hinted", [False, True])
def test_what_a_playlist_or_a_page_names_stays_with_it(index: str, hinted: bool) -> None:
    keys = ["v/1/master.m3u8", "v/1/manifest.mpd", "v/1/index.html", "v/1/1080p.mp4", "v/1/img/t.jpg", "v/2/1080p.mp4"]
    account = Account(Scope("bucket"), [Declared()])
    texts = ([], [f"/v/1/{index}"]) if hinted else ([f"/v/1/{index}"], [])
    account.first(0, *texts)
    account.listed(keys)
    account.second(0, *texts)
    assert [account.verdict(key) for key in keys[3:]] == [Kept.AMBIGUOUS, Kept.AMBIGUOUS, None]


@pytest.mark.parametrize(
    ("named", "kept"),
    [
        ("m/photo-scaled.jpg", ["m/photo.jpg", "m/photo-150x150.jpg", "m/photo.heic"]),
        ("m/photo-300x200.jpg", ["m/photo.jpg", "m/photo-150x150.jpg", "m/photo-scaled.jpg"]),
        ("m/photo-e1690000000-300x200.jpg", ["m/photo.jpg", "m/photo-e1690000000.jpg"]),
        ("m/photo.jpg.245x245_q85_crop.jpg", ["m/photo.jpg", "m/photo.jpg.90x90_q85.jpg"]),
        ("m/thumbs/photo.jpg", ["m/photo.jpg"]),
        ("thumbnail_photo.jpg", ["photo.jpg", "large_photo.jpg"]),
        ("f/109/small/abc.jpg", ["f/109/original/abc.mp4"]),
    ],
)
def test_the_original_of_a_named_file_and_what_else_derives_from_it_are_kept(named: str, kept: list[str]) -> None:
    """WordPress names `photo-scaled.jpg`; the upload and its thumbnails are named after `photo.jpg`."""
    other = ["m/other.jpg", "n/photo.jpg"]
    account = account_of([named], [named, *kept, *other])
    assert [account.verdict(key) for key in kept] == [Kept.DERIVED] * len(kept)
    assert [account.verdict(key) for key in other] == [None, None]
    without = account_of([named], [named, *kept[1:]])
    assert [without.verdict(key) for key in kept[1:]] == [Kept.DERIVED] * len(kept[1:])


def test_hints_keep_and_are_not_counted() -> None:
    account = Account(Scope("bucket"), [Declared()])
    account.first(0, ["a.jpg"], ["b.jpg", "nothing"])
    assert account.listed(["a.jpg", "b.jpg", "c.jpg"]) == [True, True, False]
    account.second(0, ["a.jpg"], ["b.jpg", "nothing", "c.jpg"])
    assert figures(account.counts()[0]) == (1, 1, 0, 0, 0)
    assert account.verdict("c.jpg") is Kept.NAMED


@pytest.mark.parametrize(
    "value",
    [
        "/m/a.jpg?w=1 1x, /m/b c.jpg?w=2 2x",
        "https://cdn.net/m/a.jpg?v=1,https://cdn.net/m/b%20c.jpg?v=1",
        "m/a.jpg#m/b%20c.jpg#",
        "https://x.imgix.net/m/a.jpg?w=3&mark=%2Fm%2Fb+c.jpg",
        'm/a.jpg?crop={"of": ["m/b c.jpg"]}',
        "m/a.jpg?crop=%7B%22of%22%3A%22m%5C%2Fb%20c.jpg%22%7D",
        "m/a.jpg?of=" + quote(json.dumps(["m/x?&#y.jpg", "m/b c.jpg"])),
        "https%3A%2F%2Fcdn.net%2Fm%2Fa.jpg%3Fmark%3Dm%2Fb%2520c.jpg",
        r"https\u003a\u002f\u002fcdn.net/m/a.jpg\u003fmark=m/b\u0020c.jpg",
        "https&colon;//cdn.net/m/a.jpg&quest;mark=m/b&nbsp;c.jpg",
    ],
)
def test_a_value_that_matches_by_its_first_path_keeps_what_it_names_behind_it(value: str) -> None:
    account = account_of([value], ["m/a.jpg", "m/b c.jpg", "m/d.jpg", "m/b c-2.jpg"])
    assert figures(account.counts()[0]) == (1, 1, 0, 0, 0)
    assert account.verdict("m/b c.jpg") is Kept.AMBIGUOUS
    assert account.verdict("m/d.jpg") is None
    assert account.verdict("m/b c-2.jpg") is None


@pytest.mark.parametrize(
    "name", ["m/b?c.jpg", "m/b#c.jpg", "m/b&c=d.jpg", "m/50%25 b.jpg", 'm/say "b".jpg', "m/\u00fcb\\c.jpg"]
)
@pytest.mark.parametrize(
    "write",
    [
        lambda name: f"m/a.jpg?v=1&crop={quote(json.dumps({'of': [name]}))}",
        lambda name: f"m/a.jpg?v=1&crop={quote(json.dumps([name], ensure_ascii=False))}#t=1",
        lambda name: f"m/a.jpg#{json.dumps([quote(name)])}",
        lambda name: f"m/a.jpg?{json.dumps([quote(name)])}",
    ],
)
def test_json_behind_a_path_is_read_before_its_escapes_are_undone(name: str, write: Callable[[str], str]) -> None:
    """The quote, `?` or `&` of a name ends nothing."""
    account = account_of([write(name)], ["m/a.jpg", name, "m/zz.jpg"])
    assert figures(account.counts()[0]) == (1, 1, 0, 0, 0)
    assert account.verdict(name) is Kept.AMBIGUOUS
    assert account.verdict("m/zz.jpg") is None


@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
@pytest.mark.parametrize("write", [json.dumps, lambda some: json.dumps(some, ensure_ascii=False)])
def test_a_double_encoding_inside_of_json_is_undone(wrong: str, write: Callable[[object], str]) -> None:
    keys = ["m/\u03c4\u03b5\u03c3\u03c4 1.jpg", "m/\u00fc 2.jpg"]
    account = account_of(
        ["m/a.jpg", write([{"path": key.encode().decode(wrong)} for key in keys])], ["m/a.jpg", *keys, "m/b.jpg"]
    )
    assert account.counts()[0].unmatched == 1
    assert {account.verdict(key) for key in keys} == {Kept.AMBIGUOUS}
    assert account.verdict("m/b.jpg") is None


@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_a_name_in_utf8_that_was_encoded_twice_keeps_its_file(wrong: str) -> None:
    """ewww-image-optimizer 3, paperclip 2325: such rows are stored where a path is taken for Latin-1."""
    keys = [
        "m/\u03c4\u03b5\u03c3\u03c4 1.jpg",
        "m/\u00fc 2.jpg",
        "m/\ud55c\uae00 3.jpg" if wrong == "latin-1" else "m/\u00e9 3.jpg",
    ]
    account = account_of(["m/a.jpg", *(key.encode().decode(wrong) for key in keys)], ["m/a.jpg", *keys, "m/b.jpg"])
    assert account.counts()[0].unmatched == 3
    assert {account.verdict(key) for key in keys} == {Kept.AMBIGUOUS}
    assert account.verdict("m/b.jpg") is None


def test_a_hint_without_folder_or_extension_keeps_what_has_its_name() -> None:
    account = Account(Scope("bucket"), [Declared()])
    account.first(0, ["m/a.jpg"], ["photo_1a2b", "m/other"])
    account.listed(["m/a.jpg", "m/photo_1a2b.jpg", "m/other.png", "m/third.png"])
    account.second(0, ["m/a.jpg"], ["photo_1a2b", "m/other"])
    assert figures(account.counts()[0]) == (1, 1, 0, 0, 0)
    assert account.verdict("m/photo_1a2b.jpg") is account.verdict("m/other.png") is Kept.AMBIGUOUS
    assert account.verdict("m/third.png") is None


def test_a_playlist_keeps_its_segments() -> None:
    """A row names the playlist of a video, and the playlist, which nothing reads, names the rest."""
    keys = ["v/1/index.m3u8", "v/1/720p/seg-1.mp4", "v/1/init.mp4", "v/2/seg-1.mp4"]
    account = account_of(["/v/1/index.m3u8"], keys)
    assert [account.verdict(key) for key in keys[1:]] == [Kept.AMBIGUOUS, Kept.AMBIGUOUS, None]

    for folder in ("", "up/"):  # what is listed is no video's folder
        keys = [f"{folder}intro.m3u8", f"{folder}intro_00001.mp4", f"{folder}photo.jpg", f"{folder}2024/photo.jpg"]
        account = account_of(keys[:1], keys, scope=Scope("bucket", folder))
        assert [account.verdict(key) for key in keys[1:]] == [Kept.AMBIGUOUS, None, None]

    many = [f"v/clip{n}.mpd" for n in range(9)]
    account = account_of(many, [*many, "v/clip3_00001.mp4", "v/other_00001.mp4"])
    assert account.verdict("v/clip3_00001.mp4") is Kept.AMBIGUOUS
    assert account.verdict("v/other_00001.mp4") is None


def test_excluded_is_said_first() -> None:
    account = Account(Scope("bucket", "m/"), [Declared()], exclude=["*.svg"])
    account.first(0, ["m/a.jpg"])
    account.listed(["m/a.jpg", "m/b.svg"])
    account.second(0, ["m/a.jpg"])
    assert account.verdict("m/b.svg") is Kept.EXCLUDED


def outcome(account: Account, world: World) -> object:
    return account.counts(), [account.verdict(key) for key in world.objects]


@pytest.mark.parametrize("seed", range(12))
def test_interrupted_listings_and_ranges_side_by_side_give_the_same(seed: int) -> None:
    world = World(seed)

    def fresh() -> Account:
        return Account(Scope(world.bucket, world.base_path), world.columns, exclude=world.exclude)

    def second(account: Account) -> Account:
        for number, column in enumerate(world.columns):
            for values in batches(column.strings):
                account.second(number, values)
        return account

    whole = fresh()
    for number, column in enumerate(world.columns):
        whole.first(number, column.strings)
    sealed = whole.sealed_to_bytes()
    whole.listed(world.objects)
    expected = outcome(second(whole), world)
    whole.begin_second()
    assert outcome(second(whole), world) == expected, "a second reading that starts over"

    progress: list[bytes] = []
    for keys in batches(world.objects, 50):
        part = fresh()
        part.add_sealed(sealed)
        if seed % 2 and progress:
            part.add_progress(progress.pop())
        part.listed(keys)
        progress.append(part.progress_to_bytes())
    assert (len(progress) == 1) == bool(seed % 2) or len(world.objects) <= 50
    combined = fresh()
    combined.add_sealed(sealed)
    for one in progress:
        combined.add_progress(one)
    assert outcome(second(combined), world) == expected, "listed in parts"


def test_progress_of_another_reading_is_refused() -> None:
    one, other = account_of(["a.jpg"], ["a.jpg"]), account_of(["b.jpg"], ["b.jpg"])
    with pytest.raises(ValueError, match="other fingerprints"):
        one.add_progress(other.progress_to_bytes())
    with pytest.raises(ValueError, match="cut off"):
        one.add_sealed(other.sealed_to_bytes()[:-1])


def test_a_key_that_was_not_listed_here_stays() -> None:
    """Another attempt of the run may have listed it: no value was compared with it."""
    account = account_of(["m/a.jpg"], ["m/a.jpg", "m/b.jpg"])
    assert account.verdict("m/b.jpg") is None
    assert account.verdict("m/c.jpg") is Kept.NAMED


class OneByOne(Account):
    """Takes no value for plain."""

    def _plain(self, column: int, texts: Sequence[str]) -> Plain:
        plain = super()._plain(column, ())
        plain.others = texts
        return plain

    def _count_plain(self, column: int, values: Sequence[str]) -> Sequence[str]:
        return values


KEYS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "a/", "a/b/", "a/a/b/", "b/", "c/b/"]),
    st.sampled_from(["x", "Y y", "é", "x/12", "12"]),
    st.sampled_from([".jpg", ".webp", ".txt", "-150x150.jpg"]),
)
WRITTEN = st.builds(
    lambda form, key: form.format(key),
    st.sampled_from(
        ["{}", "{}", "{}", "/{}", "a/{}", "https://h/{}", "b/{}", "{}?v=1", "../{}", "%2e/{}", "s/{}", " "]
    ),
    KEYS,
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(KEYS, max_size=12, unique=True),
    st.lists(WRITTEN, max_size=12),
    st.lists(WRITTEN, max_size=6),
    st.lists(WRITTEN, max_size=2),
    st.sampled_from([Scope("bucket"), Scope("a"), Scope("bucket", "a/"), Scope("a", "a/b/"), Scope("b", "a/b/")]),
    st.sampled_from([{}, {}, {}, {"strip": ("s/",)}, {"folder": True}, {"elsewhere": ("c/",)}]),
)
def test_plain_values_are_counted_as_one_by_one(
    keys: list[str], values: list[str], new: list[str], hints: list[str], scope: Scope, declared: dict
) -> None:
    keys = [key for key in keys if key.startswith(scope.folder)]
    outcomes = []
    for kind in (Account, OneByOne):
        account = kind(scope, [Declared(**declared)])
        account.first(0, values, hints)
        named = account.listed(keys)
        account.second(0, [*values[1:], *new], hints[1:])
        outcomes.append((named, account.counts(), account.verdicts(keys), [account.verdict(key) for key in keys]))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][2] == outcomes[0][3]


@pytest.mark.parametrize(
    ("scope", "value"),
    [
        (Scope("bucket"), "media/{}.jpg"),
        (Scope("media"), "https://cdn.example.com/media/{}.jpg"),
        (Scope("media", "media/"), "/media/{}.jpg"),
        (Scope("bucket", "media/"), "{}.jpg"),
    ],
)
def test_plain_values_that_all_match_are_not_looked_at_one_by_one(
    scope: Scope, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [value.format(n) for n in range(500)]
    keys = [f"media/{n}.jpg" for n in range(501)]
    monkeypatch.setattr(Account, "_count", None)
    monkeypatch.setattr(Account, "_spread", lambda _self, _column, texts: list(texts) and pytest.fail("one by one"))
    account = account_of(values, keys, scope=scope)
    assert figures(account.counts()[0]) == (500, 500, 0, 0, 0)
    assert [key for key in keys if account.verdict(key) is None] == ["media/500.jpg"]
