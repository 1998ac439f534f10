"""`lamplighter.media.references` on a real Postgres."""

from __future__ import annotations

import json
import re
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from lamplighter.kernel.media import Reference
from lamplighter.media.references import References, profile

BUCKET = "media-bucket"
FOLDER = "prod/up loads/"
SOURCE = Reference(table="media_files", column="storage_key")

KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
PREFIXES = ["", "/", "https://cdn.example.com/", "http://localhost:9000/", "s3://media-bucket/", "//cdn.example.com/"]


def javascript(key: str) -> str:
    """encodeURIComponent of each folder."""
    return "/".join(quote(part, safe="!'()*~-_.") for part in key.split("/"))


ENCODINGS = [
    str,
    quote,
    lambda key: quote_plus(key, safe="/"),
    javascript,
    lambda key: quote(key, safe="/!#$&'()*+,:;=?@~"),
    lambda key: re.sub("%..", lambda code: code[0].lower(), quote(key)),
]


def profiled(
    engine: Engine, *values: str | None, held: frozenset[str] = frozenset(), folder: str = FOLDER
) -> References:
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE media_files"))
        connection.execute(
            text("INSERT INTO media_files (storage_key) SELECT json_array_elements_text(CAST(:values AS json))"),
            {"values": json.dumps(values)},
        )
    with engine.begin() as connection:
        return profile(connection, [SOURCE], bucket=BUCKET, folder=folder, exists=held.__contains__)


def missing(engine: Engine, references: References, *keys: str) -> list[str]:
    with engine.begin() as connection:
        return [keys[n] for n in references.missing(connection, keys)]


@example(name="?", others=[], prefix=PREFIXES[2], encode=str, lead="", path_style=False)  # looks like a query
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    name=KEYS,
    others=st.lists(KEYS, max_size=3),
    prefix=st.sampled_from(PREFIXES),
    encode=st.sampled_from(ENCODINGS),
    lead=st.sampled_from(["", "prod/", FOLDER]),
    path_style=st.booleans(),
)
def test_whatever_way_a_key_is_stored_it_is_never_missing(
    engine: Engine, name: str, others: list[str], prefix: str, encode: object, lead: str, path_style: bool
) -> None:
    """FAILURES 6: each form alone, for any key; whether or not the sample found objects."""
    key = FOLDER + name
    tail = f"{BUCKET}/{encode(key)}" if path_style and prefix else encode(key.removeprefix(lead))  # type: ignore[operator]
    usual = [f"{FOLDER}usual-{n}.jpg" for n in range(3)]

    references = profiled(engine, prefix + tail, *usual, held=frozenset(usual))

    unknown = [FOLDER + "unknown/" + other for other in others if FOLDER + "unknown/" + other != key]
    assert missing(engine, references, key, *usual, *unknown) == unknown


def test_the_profile_counts_what_it_can_map_and_what_not(engine: Engine) -> None:
    keys = [f"{FOLDER}{n}.jpg" for n in range(50)]
    values = [
        *keys[:30],
        *(f"/{key}" for key in keys[30:40]),
        *(f"https://cdn.example.com/{quote(key)}" for key in keys[40:45]),
        *(f"https://gone.example.com/{key}" for key in ["a", "b"]),
        "https://cdn.example.com/x.jpg?width=7",
        "",
    ]

    count = profiled(engine, *values, held=frozenset(keys)).columns[0].count

    assert (count.values, count.mapped, count.unmapped) == (49, 45, 4)
    assert any("https://gone.example.com/ (2, 0 of 2 sampled found)" in one for one in count.unmapped_examples)


def test_more_prefixes_than_are_told_apart_are_unmapped(engine: Engine) -> None:
    keys = [f"{n}.jpg" for n in range(30)]
    references = profiled(engine, *(f"https://host-{key}/{key}" for key in keys), held=frozenset(keys), folder="")

    count = references.columns[0].count
    assert (count.values, count.mapped, count.unmapped) == (30, 20, 10)
    assert "further prefixes (10)" in count.unmapped_examples


def test_most_of_a_sample_has_to_exist(engine: Engine) -> None:
    keys = [f"{n:02}.jpg" for n in range(20)]

    assert profiled(engine, *keys, held=frozenset(keys[:10]), folder="").columns[0].count.unmapped == 0
    assert profiled(engine, *keys, held=frozenset(keys[:9]), folder="").columns[0].count.unmapped == 20


def test_a_large_column_is_sampled_and_searched_by_its_index(engine: Engine) -> None:
    """The planner must not scan the table for each batch, statistics or none."""
    keys = [f"{n:06}.jpg" for n in range(50_000)]
    references = profiled(engine, *keys, held=frozenset(keys), folder="")
    asked = {"keys": json.dumps(keys[:4000]), "prefix0": "", "from0": 1}

    with engine.connect() as connection:
        plan = connection.execute(text(f"EXPLAIN {references._usual.text}"), asked).scalars().all()

    assert any("Index" in line and "ix_media_files_storage_key" in line for line in plan), plan
    assert not any("Seq Scan" in line for line in plan), plan
    assert missing(engine, references, *keys[:100], "x.jpg") == ["x.jpg"]


def test_a_column_of_a_view_and_names_that_need_quotes_work(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "my app"; '))
        connection.execute(text('CREATE TABLE "my app"."User Files" ("The Key" varchar(99))'))
        connection.execute(text("""INSERT INTO "my app"."User Files" VALUES ('a.jpg')"""))
    source = Reference(table="my app.User Files", column="The Key")

    with engine.begin() as connection:
        references = profile(connection, [source], bucket=BUCKET, folder="", exists={"a.jpg"}.__contains__)

    assert references.columns[0].count.mapped == 1
    assert missing(engine, references, "a.jpg", "b.jpg") == ["b.jpg"]


@pytest.mark.parametrize("keys", [[], ["only.jpg"]])
def test_an_empty_table_names_nothing(engine: Engine, keys: list[str]) -> None:
    references = profiled(engine, folder="")

    assert references.columns[0].count.values == 0
    assert missing(engine, references, *keys) == keys
