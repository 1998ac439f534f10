# ruff: noqa: RUF001
"""`lamplighter.media.folding`: one folded path for a key and for everything that names it (FAILURES 6, 19, 20)."""

from __future__ import annotations

import html
import json
import random
import subprocess
import sys
from array import array
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamplighter.media.folding import (
    PROBE,
    Plain,
    Scope,
    ancestors,
    below,
    fingerprint,
    fingerprint_batch,
    fold,
    fold_batch,
    readings,
    readings_batch,
    spread_batch,
)
from tests.worlds import ENCODINGS, PLACES

PIECES = (
    *"aAéÉe\u0301ßİıſǅﬁ½№℀％＆／．＼😀日本한\u1112\u1161\u11ab\u0345\u03b1\u0338=<>",
    *" \t\n\r\x0b\x1c\x85\xa0\u2003\u3000\0\x01\u200b\u200d\ufeff\xad\ufe0f",
    *"./\\+%&#?;:'\"`´«»“”-_,@~()",
    *("..", "//", "/../", "/./", "/..", "../", "%20", "%2F", "%2f", "%25", "%2525", "%E9", "%C3%A9", "%00", "%0A", "%"),
    *("&amp;", "&amp;amp;", "&#39;", "&#x2F;", "&eacute;", "&EACUTE;", "&amp", "&copy", "&#0;", "&#xD800;", "&nbsp;"),
    *("\\u00e9", "\\ud83d\\ude00", "\\ud83d", "\\u0025", "\\u002f", "\\/", "\\\\u0041", "\ud800", "\udc00", "\ud83d"),
    *("media", "photo", ".jpg", "25", "41", "2e", "u0041", "amp;", "#46;", "e%CC%81", "%e2%80%8b"),
)
NASTY = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.text(st.characters(codec=None), max_size=20)
)


@settings(max_examples=1500, deadline=None)
@given(st.lists(NASTY, max_size=5))
@example(["%252525252525252525252525252525252525252525252541", "&" + "amp;" * 200, "a/%2e%2e/b", "\0"])
def test_a_batch_folds_as_each_text_does_and_folding_again_changes_nothing(texts: list[str]) -> None:
    folded = [fold(text) for text in texts]
    assert fold_batch(texts) == folded
    assert [fold(text) for text in folded] == folded
    for text in folded:
        text.encode()
        assert not {"", ".", ".."} & set(text.split("/")) or text == ""


def test_a_batch_folds_as_each_text_does_on_a_hundred_thousand_strings() -> None:
    seed = 20261130
    rng = random.Random(seed)
    texts = {"".join(rng.choices(PIECES, k=rng.randint(3, 12))) for _ in range(112_000)}
    assert len(texts) > 100_000
    batch = sorted(texts)
    rng.shuffle(batch)
    for start in range(0, len(batch), 1000):
        part = batch[start : start + 1000]
        folded = fold_batch(part)
        for text, as_batch in zip(part, folded, strict=True):
            assert as_batch == fold(text), (seed, text)
        assert fold_batch(folded) == folded, seed


def test_escapes_nested_without_end_are_folded_in_a_bounded_number_of_rounds() -> None:
    nested = "a"
    for _ in range(100):
        nested = html.escape(quote(nested + "&%")) + "\\u0026"
        nested = nested[:20_000]
    folded = fold(nested)
    assert fold(folded) == folded
    assert fold_batch([nested, "b"]) == [folded, "b"]


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("/Media//Photo.JPG", "media/photo.jpg"),
        ("media/./x/../photo.jpg", "media/photo.jpg"),
        ("../../photo.jpg", "photo.jpg"),
        ("media\\photo.jpg", "media/photo.jpg"),
        ("media/a%20b.jpg", "media/a b.jpg"),
        ("media/a+b.jpg", "media/a b.jpg"),
        ("media/a%252Bb.jpg", "media/a b.jpg"),
        ("media/caf%E9.jpg", "media/café.jpg"),
        ("media/cafe\u0301.jpg", "media/café.jpg"),
        ("media/caf\\u00e9.jpg", "media/café.jpg"),
        ("media/%81.jpg", "media/\x81.jpg"),
        ("media/a&amp;amp;b.jpg", "media/a&b.jpg"),
        (" \u201cmedia / photo.jpg \u201d ", "media/photo.jpg"),
        ("media/a\u200b\xa0 \tb.jpg", "media/a b.jpg"),
        ("a\0b\ud800", "ab\ufffd"),
        ("\u015eI\u015eL\u0130 \u0131.JPG", "\u015fi\u015fli i.jpg"),
        ("", ""),
        ("/", ""),
        ("100%.jpg", "100%.jpg"),
    ],
)
def test_what_texts_fold_to(text: str, folded: str) -> None:
    assert fold(text) == folded
    assert fold_batch(["a", text, "b"]) == ["a", folded, "b"]


NAMES = (
    "photo.jpg",
    "my photo.jpg",
    "a+b c.jpg",
    "100%.jpg",
    "50%25 off.jpg",
    "Tom & Jerry.png",
    "R&amp;D.png",
    "l'été «1».jpg",
    "Ünïcödé.JPG",
    "e\u0301te\u0301.jpg",
    "日本 写真.webp",
    "😀 emoji👩‍👩‍👧.gif",
    "a#b.jpg",
    "a?b.jpg",
    "a;b,c=d@e$f!(1)*~.jpg",
    "a:b.jpg",
    'say "hi" now.jpg',
    "...dots...jpg",
    ".hidden.jpg",
    "straße İstanbul.jpg",
    "ﬁligree ½.jpg",
    "\u202eevil.jpg",
    "tab\tand\xa0nbsp.jpg",
    "x" * 200 + ".jpg",
    "back\\slash.jpg",
)
SCOPES = (
    Scope("bucket", ""),
    Scope("bucket", "media/"),
    Scope("media", "media/Übersicht 1/"),
    Scope("bucket", "a/b/c/"),
)


def listed_key(name: str, scope: Scope) -> str:
    return f"{scope.folder or 'media/'}2024/{name}"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_way_of_writing_a_key_reads_as_the_key(encoding: str, place: str) -> None:
    tried = 0
    for scope in SCOPES:
        for name in NAMES:
            key = listed_key(name, scope)
            value = PLACES[place](ENCODINGS[encoding](key), scope.bucket)
            assert fold(key) in readings(value, scope), (value, scope)
            assert readings_batch(["x.jpg", value, "y"], scope)[1] == readings(value, scope)
            tried += 1
    assert tried == len(SCOPES) * len(NAMES)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_value_may_lack_leading_folders_of_base_path(encoding: str) -> None:
    for scope in SCOPES[1:]:
        for name in NAMES:
            key = listed_key(name, scope)
            for end in [n for n, character in enumerate(scope.folder) if character == "/"]:
                value = ENCODINGS[encoding](key[end + 1 :])
                assert fold(key) in readings(value, scope), (value, scope)
                assert fold(key) in readings(f"../{value}" if end == 0 else value, scope)


@pytest.mark.parametrize("wrap", [quote, lambda url: quote(url, safe=""), html.escape, json.dumps])
def test_a_whole_url_may_be_encoded(wrap) -> None:
    for name in NAMES:
        url = f"https://cdn.example.com/media/{quote(name)}?v=1&w=2"
        assert fold(f"media/{name}") in readings(wrap(url), Scope("bucket")), url
    escaped = "https:\\/\\/cdn.example.com\\/media\\/a.jpg"
    assert "media/a.jpg" in readings(escaped, Scope("bucket"))


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.one_of(NASTY, NASTY.map("https://h/b/{}".format), NASTY.map("/{}?v".format)), max_size=5),
    st.sampled_from([*SCOPES, Scope("a", "a/Photo é/")]),
    st.sampled_from([(), ("static/",), ("https://h/static/", "a"), ("", "/")]),
)
def test_a_batch_of_values_reads_as_each_value_does(values: list[str], scope: Scope, strip: tuple[str, ...]) -> None:
    expected = [readings(value, scope, strip) for value in values]
    assert readings_batch(values, scope, strip) == expected
    for paths in expected:
        assert len(set(paths)) == len(paths)
        assert "" not in paths
        assert all((path + "/").startswith(fold(scope.folder) + "/" if fold(scope.folder) else "") for path in paths)


PLAIN = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "/", "a/", "media/", "a/b/", "b/c/", "https://h/", "https://h/bucket/", "Bücket/"]),
    st.sampled_from(["a", "Photo é/", "Media/", "b c/", "bucket/", "media/Übersicht 1/"]),
    st.sampled_from(["x.jpg", "a b+c.jpg", "a%20b.jpg", "é.JPG", "", ".", " "]),
)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.one_of(PLAIN, PLAIN, NASTY), max_size=8),
    st.sampled_from([*SCOPES, Scope("a", "a/Photo é/"), Scope("media"), Scope("Bücket", "a/b/")]),
    st.sampled_from([(), (), ("static/",)]),
)
def test_plain_values_mean_what_each_means(values: list[str], scope: Scope, strip: tuple[str, ...]) -> None:
    plain = Plain(values, scope, strip)
    assert sorted([*plain.values, *plain.others]) == sorted(values)
    spreads = dict(zip(plain.values, spread_batch(plain.values, scope, strip), strict=True))
    assert plain.folded == [fold(value.removeprefix("https://h")) for value in plain.values]
    below = {path for one in spreads.values() for path in one.absolute + one.relative}
    assert set(plain.readings()) == below
    assert set(plain.paths()) == below | {path for one in spreads.values() for path in one.beyond}
    whole, relative = plain.likely()
    assert all(path == spreads[value].absolute[0] for value, path in zip(whole.values, whole.paths, strict=True))
    for value, path in zip(relative.values, relative.paths, strict=True):
        assert path in spreads[value].relative
        assert not spreads[value].absolute


@pytest.mark.parametrize("scope", [*SCOPES, Scope("media")])
def test_keys_and_plain_urls_are_plain(scope: Scope) -> None:
    keys = [f"{scope.folder or 'media/'}2026/Camera-{n} (é)/a b+c%20{n}.jpg" for n in range(99)]
    keys += [f"{start}{key}" for start in ("/", "https://cdn.example.com/") for key in keys]
    plain = Plain(keys, scope)
    assert (plain.values, plain.others) == (keys, ())
    assert plain.likely()[0].values == keys
    mixed = Plain([*keys, "a?b", "/"], scope)
    assert (mixed.values, mixed.others) == (keys, ["a?b", "/"])
    if scope.folder:
        plain = Plain([f"{n}.jpg" for n in range(99)], scope)
        assert plain.likely()[1].paths == [f"{fold(scope.folder)}/{n}.jpg" for n in range(99)]


def test_keys_of_one_class_keep_each_other() -> None:
    assert len({fold(key) for key in ("m/a b", "m/a+b", "m/a%20b", "M/A B", "m//a\xa0b")}) == 1
    for value in ("m/a b", "m/a+b", "m/a%20b"):
        for key in ("m/a b", "m/a+b", "m/a%20b"):
            assert fold(key) in readings(value, Scope("bucket"))


def test_declared_prefixes_are_dropped_and_also_kept() -> None:
    scope = Scope("bucket", "media/")
    assert readings("static/a.jpg", scope) == ("media/static/a.jpg",)
    assert set(readings("/Static/a.jpg", scope, ["static/"])) == {"media/static/a.jpg", "media/a.jpg"}
    assert "media/a.jpg" in readings("https://h/bucket/static/media/a.jpg", scope, ["static/"])
    assert "media/a.jpg" in readings("https://h/v1/media/a.jpg", scope, ["https://h/v1/"])
    assert "media/a.jpg" in readings("img_a.jpg", scope, ["img_"])
    assert "media/a.jpg" not in readings("statics/a.jpg", scope, ["static/"])


def test_no_reading_is_outside_the_folder() -> None:
    scope = Scope("bucket", "a/b/")
    assert readings("x.jpg", scope) == ("a/b/x.jpg",)
    assert readings("b/x.jpg", scope) == ("a/b/x.jpg", "a/b/b/x.jpg")
    assert readings("../c/x.jpg", scope) == ("a/b/c/x.jpg",)
    assert readings("a/b", scope) == ("a/b", "a/b/a/b")
    assert readings("  ", scope) == ()


def test_a_folder_names_all_below_it() -> None:
    folders = set(fingerprint_batch(readings("/Albums/1/", Scope("bucket"))))
    assert below(folders, fold("albums/1/2/x.jpg"))
    assert not below(folders, fold("albums/10/x.jpg"))
    assert not below(folders, fold("albums/1"))
    assert ancestors("a/b/c") == ["a", "a/b"]


@given(st.lists(NASTY, max_size=20))
def test_fingerprints_of_a_batch_are_those_of_each_text(texts: list[str]) -> None:
    folded = fold_batch(texts)
    prints = fingerprint_batch(folded)
    assert prints == array("Q", map(fingerprint, folded))


def test_fingerprints_are_the_same_in_every_process_and_differ_between_texts() -> None:
    program = "from lamplighter.media.folding import *; print(PROBE, fingerprint('media/é.jpg'))"
    for seed in ("0", "1"):
        answer = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": "functions", "PYTHONHASHSEED": seed},
        )
        assert answer.stdout.split() == [str(PROBE), str(fingerprint("media/é.jpg"))]
    texts = [f"media/{n:x}/{n * 7919:032x}.jpg" for n in range(200_000)]
    prints = fingerprint_batch(texts)
    assert len(set(prints)) == len(texts)
    assert abs(sum(one >> 63 for one in prints) / len(texts) - 0.5) < 0.01
    assert len({one & 0xFFFF for one in prints}) > 62_000
