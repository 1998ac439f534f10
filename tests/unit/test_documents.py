"""`lamplighter.media.documents`: the paths in HTML, Markdown, CSS, JSON and running text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.media.documents import in_json, in_markup


def counted(document: str) -> list[str]:
    return [text for text, is_counted in in_markup([document]) if is_counted]


@pytest.mark.parametrize(
    ("document", "paths"),
    [
        ('<img src="/a/b.jpg">', ["/a/b.jpg"]),
        ("<img alt='x.jpg' src='a b.jpg'>", ["x.jpg", "a b.jpg"]),
        ("<img src=a.jpg><img src=b.png/>", ["a.jpg", "b.png/"]),
        ('<img class="big" src="files/17">', ["files/17"]),
        ('<video poster="/p/1"><source src="/v/2"></video>', ["/p/1", "/v/2"]),
        ('<img srcset="a.jpg 1x, b.jpg 2x">', ["a.jpg", "b.jpg"]),
        ('<img srcset="/resize/w=1,h=2/a.jpg 100w, b 2x">', ["/resize/w=1,h=2/a.jpg", "b"]),
        ('<p style="color: red; background: url(a.jpg)">', ["a.jpg"]),
        ("p { background: url( 'a b.jpg' ) }", ["a b.jpg"]),
        ('<a href="/about">x</a><script src="/app.js"></script>', []),
        ('<iframe src="https://video.example/embed/7"></iframe>', []),
        ("![an image](a.jpg)", ["a.jpg"]),
        ('![an [old] image](a b.jpg "The title")', ["a b.jpg"]),
        ("![an image](files/17) and [a link](files/18)", ["files/17"]),
        ("[a link](<a (1) b.jpg>) [b](c(1).jpg)", ["a (1) b.jpg", "c(1).jpg"]),
        ("[x]: a.jpg\n[y]: <b.jpg>", ["a.jpg", "<b.jpg>"]),
        ("see uploads/a.jpg, b.png?x=1.jpg and c.mp4.", ["uploads/a.jpg", "b.png?x=1.jpg", "c.mp4"]),
        ('{"src": "a.jpg", "text": "b%2Ejpg"}', ["a.jpg", "b%2Ejpg"]),
        (r"<img src=\"a.jpg\">", ["a.jpg"]),
        ("no.jpgx a.jpg2 .txt", []),
    ],
)
def test_paths_are_found_where_they_stand(document: str, paths: list[str]) -> None:
    assert counted(document) == paths


def test_words_before_a_path_may_belong_to_its_name() -> None:
    hints = {text for text, is_counted in in_markup(["see: my summer photo.jpg"]) if not is_counted}

    assert {"summer photo.jpg", "my summer photo.jpg"} <= hints


@pytest.mark.parametrize(
    "unit",
    ["A", "a=", '="', "![", "](", "url(", '<img src="', "[a]: ", "a.b-c:", "((", "[", ".jpg", " .jpg?", "<img ", "%2e"],
)
def test_megabytes_without_a_delimiter_are_read_in_little_time(unit: str) -> None:
    began = time.process_time()

    list(in_markup([unit * (300_000 // len(unit)) + " a.jpg"]))

    assert time.process_time() - began < 20


@given(st.text(alphabet="ab. <>=/\"'()[]!{}?#,;:\\\n%2ejpgsrcurl", max_size=80))
def test_any_text_can_be_read(document: str) -> None:
    list(in_markup([document]))
    list(in_json([document]))


def test_json_gives_its_strings_and_the_names_of_members_that_are_files() -> None:
    document = '{"a.jpg": {"caption": "Two", "list": ["b.jpg", 1, null]}, "other": "c.png"}'

    assert list(in_json([document])) == [("a.jpg", True), ("Two", False), ("b.jpg", True), ("c.png", True)]
