"""`lamplighter.media.rescue`: a file that a value may mean, or that derives from a kept one, stays."""

from __future__ import annotations

import time

import pytest

from lamplighter.kernel.media import DERIVED
from lamplighter.media import rescue
from lamplighter.media.fingerprints import Builder, Fingerprints
from lamplighter.media.folding import fingerprint_batch, fold
from lamplighter.media.rescue import Exclusions, Kept, Names, Patterns, pieces, skeleton, stem, why_kept


def sealed(paths: list[str]) -> Fingerprints:
    builder = Builder()
    builder.add(fingerprint_batch(paths))
    return builder.seal()


def may_mean(key: str, *, unmatched: tuple[str, ...] = (), matched: tuple[str, ...] = (), root: str = "") -> bool:
    names = Names()
    names.add_candidates([fold(key)], root=root)
    names.add_unmatched(map(fold, unmatched))
    names.add_segments(map(fold, unmatched), matched=False)
    names.add_segments(map(fold, matched), matched=True)
    paths = sealed([fold(one) for one in (*unmatched, *matched)])
    answers = names.may_mean(["0/0.bmp", fold(key), "1"], paths, root=root)
    assert (answers[0], answers[2]) == (False, False)
    return answers[1]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("media/2024/photo.jpg", {"matched": ("2024/photo.jpg",)}),
        ("media/2024/photo.jpg", {"matched": ("photo.jpg",)}),
        ("media/Été 1.jpg", {"unmatched": ("old/place/ete_1.png",)}),
        ("media/My Photo (1).jpg", {"unmatched": ("my-photo-1",)}),
        ("media/a-rather-long-name.jpg", {"unmatched": ("a-rather-long-na",)}),
        ("media/a-rather-long-name.jpg", {"unmatched": ("a-rather-long-name7f3a.jpg",)}),
        ("media/photo-7f3a.jpg", {"unmatched": ("photo.jpg",)}),
        ("media/7f3a_photo.jpg", {"unmatched": ("photo.jpg",)}),
        ("media/photo.jpg", {"unmatched": ("photo-7f3a.jpg",)}),
        ("media/photo.jpg", {"unmatched": ('{"a": "x/photo.jpg", "b": 2}',)}),
        ("media/b.jpg", {"unmatched": ("/a.jpg 1x, /b.jpg 2x",)}),
        ("media/my b.jpg", {"unmatched": ("/a.jpg,/x/my b.jpg,/c.jpg",)}),
        ("media/photo.jpg", {"unmatched": ("background: url('/x/photo.jpg')",)}),
        ("media/photo.jpg", {"unmatched": ("/_next/image?url=%2Fx%2Fphoto.jpg&w=640",)}),
        ("media/photo.jpg", {"unmatched": ("https://i/rs:fit/plain/s3://b/photo.jpg@webp",)}),
        ("videos/abc/seg1.mp4", {"matched": ("videos/abc.m3u8",)}),
        ("albums/summer/1/x.jpg", {"unmatched": ("summer",)}),
        ("media/日本.jpg", {"unmatched": ("x/日本.png",)}),
        ("media/😀.jpg", {"unmatched": ("x/😀.png",)}),
    ],
)
def test_what_a_value_may_mean_is_ambiguous(key: str, values: dict[str, tuple[str, ...]]) -> None:
    assert may_mean(key, **values)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("media/photo.jpg", {"unmatched": ("media/other.jpg",)}),
        ("media/img-1234.jpg", {"unmatched": ("media/img-1235.jpg",)}),
        ("media/screenshot 2024 at 17.png", {"unmatched": ("media/screenshot 2024 at 18.png",)}),
        ("media/report.jpg", {"unmatched": ("report7.jpg",)}),
        ("media/12/orphan.jpg", {"matched": ("media/12.jpg",)}),
        ("media/orphan.jpg", {"unmatched": ("media",), "root": "media/"}),
        ("media/photography.jpg", {"unmatched": ("photo.jpg",)}),
    ],
)
def test_another_name_is_not(key: str, values: dict[str, tuple[str, ...]]) -> None:
    assert not may_mean(key, **values)


def test_skeletons_and_stems() -> None:
    assert skeleton("ete\u0301-1_b") == "ete1b"
    assert skeleton("---") == "---"
    assert stem("photo.jpg.webp") == "photo"
    assert stem(".jpg") == ".jpg"
    full, others = pieces("x/my photo.jpg other.png")
    assert "my photo" in full
    assert "other" in full | others


def reason(key: str, *, named: tuple[str, ...] = (), kept: tuple[str, ...] = (), patterns: Patterns | None = None):
    _, why = why_kept(
        ["unrelated.bmp", fold(key)],
        may_mean=lambda paths: [path in kept for path in paths],
        is_named=lambda paths: [path in named for path in paths],
        is_candidate=lambda paths: [path in kept for path in paths],
        patterns=patterns or Patterns(),
    )
    return why


@pytest.mark.parametrize(
    "key",
    [
        "m/photo-150x150.jpg",
        "m/photo-scaled.jpg",
        "m/photo.jpg.245x245_q85_crop.jpg",
        "m/photo.jpg.245x245_q85_crop-smart_upscale.jpg",
        "m/thumbnail_photo.jpg",
        "m/photo@2x.jpg",
        "m/photo.webp",
        "m/photo.jpg.webp",
        "m/thumbs/photo.jpg",
        "thumbs/m/photo.png",
        "m/photo-scaled-300x200.webp",
        "m/thumbs/photo-e1690000000-150x150@2x.jpg",
    ],
)
def test_what_derives_from_a_named_or_a_kept_file_is_kept(key: str) -> None:
    assert reason(key, named=("m/photo.jpg",)) is Kept.DERIVED
    assert reason(key, kept=("m/photo.jpg",)) is Kept.DERIVED
    assert reason(key, named=("m/photos.jpg", "n/photo.jpg", "photo.jpg")) is None


@pytest.mark.parametrize(
    ("key", "original"),
    [
        ("1/conversions/my-photo-preview.jpg", "1/my-photo.png"),
        ("1/responsive-images/photo___media_library_original_1024_768.jpg", "1/photo.jpg"),
        ("files/109/small/abc.png", "files/109/original/abc.mp4"),
        ("optimized/1X/ab12cd34ef_2_100x100.jpg", "original/1X/ab12cd34ef.jpg"),
        ("2024/p_o.jpg", "2024/p.jpg"),
        ("size/w600/2024/photo.jpg", "2024/photo.jpg"),
        ("content/images/size/w1000/2024/01/photo.webp", "content/images/2024/01/photo.jpg"),
        ("size/w600/photo.jpg", "photo.jpg"),
        ("size/w30/thumbs/2024/photo-150x150.jpg", "2024/photo.jpg"),
    ],
)
def test_files_that_applications_derive_are_kept(key: str, original: str) -> None:
    """laravel-medialibrary, Mastodon, Discourse and Ghost name the original alone."""
    assert reason(key, named=(fold(original),)) is Kept.DERIVED
    assert reason(key, named=(fold("z/" + original),)) is None


@pytest.mark.parametrize(
    ("pattern", "key", "is_derived"),
    [
        ("size/w{n}/", "m/size/w600/photo.jpg", True),
        ("size/w{n}/", "m/Size/W600/photo.jpg", True),
        ("size/w{n}/", "m/size/w/photo.jpg", False),
        ("size/w{n}/", "m/size/w6x/photo.jpg", False),
        ("size/w{n}/", "m/size/photo.jpg", False),
        ("size/w{n}/", "m/w600/photo.jpg", False),
        ("size/w{n}/", "m/size/a/w600/photo.jpg", False),
        ("size/w{n}/", "m/presize/w600/photo.jpg", False),
        ("size/w{n}/", "m/size/w600/other.jpg", False),
        ("{n}x{n}/", "m/150x150/photo.jpg", True),
        ("cache/{n}/", "cache/150/m/photo.jpg", True),
        ("a/a/", "m/a/a/a/photo.jpg", False),
        ("a.b/", "m/axb/photo.jpg", False),
        ("a.b/", "m/a.b/photo.jpg", True),
    ],
)
def test_a_folder_pattern_may_have_segments_and_digits(pattern: str, key: str, is_derived: bool) -> None:
    patterns = Patterns([pattern])
    assert reason(key, named=("m/photo.jpg",), patterns=patterns) is (Kept.DERIVED if is_derived else None)
    assert reason("m/a/photo.jpg", named=("m/photo.jpg",), patterns=patterns) is None


def test_folders_that_overlap_are_each_tried() -> None:
    assert set(Patterns(["a/a/"]).bases(["a/a/b/a/a/a/photo.jpg"])) >= {"b/a/a/a/photo", "a/a/b/a/photo", "b/a/photo"}
    assert set(Patterns(["x/", "x/y/"]).bases(["x/y/photo.jpg"])) >= {"y/photo", "photo"}
    assert set(Patterns(["x/y/", "y/z/"]).bases(["x/y/z/photo.jpg"])) >= {"z/photo", "x/photo"}


def test_a_file_does_not_derive_from_itself_and_an_unnamed_original_keeps_nothing() -> None:
    assert reason("m/photo.jpg", named=("m/photo.jpg",)) is None
    assert reason("m/photo-150x150.jpg") is None
    assert reason("m/photo.jpg", kept=("m/photo.jpg",)) is Kept.AMBIGUOUS


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "{name}",
        "{n}",
        "{name}{n}",
        "{name}{any}",
        "{name}{name}-",
        "/",
        "//",
        "/a/",
        "a//b/",
        "a/../b/",
        "./",
        "{n}/",
        "{n}/{n}/",
        "{name}/a/",
        "a/{any}/",
        "a/{x}/",
        "x/{name}",
        "{x}-{name}",
        "{any}-{name}-{any}",
        "{name}+",
        "(x+)+",
    ],
)
def test_a_pattern_that_says_nothing_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"derived: .* takes \{name\} once") as refused:
        Patterns([pattern])
    assert repr(pattern) in str(refused.value)


def test_no_pattern_takes_long_over_a_long_name() -> None:
    patterns = Patterns([*DERIVED, "{n}-{any}-{name}-{n}-{n}"])
    name = "1-" * 500 + "x"
    start = time.process_time()
    for _ in range(20):
        assert list(patterns.originals(f"m/{name}.jpg"))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("pattern", "key", "is_named"),
    [
        ("static/**", "static/a/b.jpg", True),
        ("static/**", "media/static/b.jpg", True),
        ("static/**", "media/other/static/b.jpg", False),
        ("static/*", "static/a/b.jpg", False),
        ("*.svg", "media/a/B.SVG", True),
        ("logo.*", "media/logo.png", True),
        ("a/*/c.jpg", "media/a/b/c.jpg", True),
        ("a/[bc]/c.jpg", "a/b/c.jpg", True),
        ("", "a.jpg", False),
        (".hidden/**", "media/.hidden/x.jpg", True),
    ],
)
def test_exclusions(pattern: str, key: str, is_named: bool) -> None:
    assert Exclusions([pattern]).names(key, folder="media/") is is_named
    assert not Exclusions([]).names(key)


def test_above_the_bound_of_names_everything_is_kept() -> None:
    names = Names(max_names=10)
    names.add_candidates(["m/orphan.jpg"])
    names.add_unmatched(f"m/value-{n}.jpg" for n in range(11))
    assert names.may_mean(["m/orphan.jpg"], sealed([])) == [True]
    names.forget_values()
    assert names.may_mean(["m/orphan.jpg"], sealed([])) == [False]


def looked_up(size: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many texts are hashed for so many unmatched values and as many candidates."""
    hashed = 0

    def counting(texts: list[str]):
        nonlocal hashed
        hashed += len(texts)
        return fingerprint_batch(texts)

    monkeypatch.setattr(rescue, "fingerprint_batch", counting)
    names = Names()
    keys = [f"media/photo-of-something-{n:06}.jpg" for n in range(size)]
    names.add_candidates(keys)
    names.add_unmatched(f"other/photo-of-something-{n:06}.jpg" for n in range(size, 2 * size))
    paths = sealed([])
    assert not any(names.may_mean(keys, paths))
    return hashed


def test_as_many_candidates_as_values_cost_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (looked_up(size, monkeypatch) for size in (500, 5000))
    assert many <= 11 * few
    assert many <= 60 * 2 * 5000


@pytest.mark.parametrize("pattern", DERIVED)
@pytest.mark.parametrize("name", ["photo", "a b", "x.jpg", "ärger-2", "1x1"])
def test_what_derives_from_another_is_found_among_many(pattern: str, name: str) -> None:
    """`bases` looks only at paths that have the pattern's mark."""
    made = pattern.replace("{name}", name).replace("{n}", "150").replace("{any}", "q85")
    path = f"m/{made}{name}.jpg" if pattern.endswith("/") else f"m/{made}.jpg"
    patterns = Patterns([pattern])
    assert patterns.bases(["m/other.jpg", fold(path), "n/other.jpg"]), path
    assert not patterns.bases(["m/other.jpg"])
