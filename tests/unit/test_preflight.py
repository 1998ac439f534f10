"""The judgements of the preflight: what facts mean, without a database or a bucket."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lamplighter.deletion.buckets import shortened
from lamplighter.kernel.inspection import (
    BIG,
    Description,
    ForeignKey,
    Needs,
    Part,
    faults,
    unindexed,
    unreadable_referrers,
)
from lamplighter.kernel.preflight import (
    AURORA_STORAGE,
    RDS_STORAGE,
    Item,
    Severity,
    Verdict,
    amount,
    explained,
    period,
    sentence,
    storage_price,
    verdict,
)
from lamplighter.kernel.settings import parse
from lamplighter.library import preflight as rules_part
from lamplighter.media import preflight as media_part
from lamplighter.preflight import cost, page
from lamplighter.preflight.database import CONNECTIONS, FEWEST, judged, without_limits
from lamplighter.preflight.preflight import NAMED, Counts, Document, Section, _named, proposed
from tests.unit.test_operations_docs import OPERATIONS, rows

ALL = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
OPEN = Part(
    name="public.things",
    schema="public",
    usage=True,
    rights=ALL,
    any_update=True,
    hides_rows=False,
    unidentified=frozenset(),
    columns={"id": ALL - {"DELETE"}, "at": ALL - {"DELETE"}},
)
LEAF = replace(OPEN, name='"odd ""schema".leaf', schema='"odd ""schema"')
KEY = ForeignKey(name="fk", table="children", columns=["thing_id"], indexed=True, readable=True, rows=1e6)
TABLE = Description(
    name="public.things",
    kind="r",
    user="jobs",
    rows=1e6,
    bytes=10**8,
    parts=[OPEN],
    keys=[KEY],
    leading=frozenset({"id", "at"}),
)
DELETING = Needs(whole=frozenset({"SELECT", "DELETE"}), locks=True, direct=True)


def sentences(table: Description, needs: Needs = DELETING) -> list[str]:
    return [fault.sentence for fault in faults(table, needs)]


# -- rights ------------------------------------------------------------------------------------------------------------


def test_who_may_do_all_has_no_faults() -> None:
    assert sentences(TABLE) == sentences(replace(TABLE, parts=[OPEN, LEAF])) == []
    assert [*unindexed(TABLE, "at"), *unreadable_referrers(TABLE)] == []


@pytest.mark.parametrize("right", ["SELECT", "DELETE"])
def test_a_missing_right_is_named_with_its_grant(right: str) -> None:
    table = replace(TABLE, parts=[replace(OPEN, rights=ALL - {right})])
    [fault] = faults(table, DELETING)
    assert fault.sentence == f"The user jobs has no right to {right} on public.things"
    assert fault.advice == f"GRANT {right} ON public.things TO jobs;"
    assert (fault.refuses, fault.hides) == (True, right == "SELECT")


def test_rights_on_all_columns_are_not_those_on_the_table() -> None:
    """`ctid` belongs to the table alone."""
    assert sentences(replace(TABLE, parts=[replace(OPEN, rights=frozenset({"DELETE"}))]))


def test_locking_takes_update_of_any_one_column() -> None:
    [fault] = faults(replace(TABLE, parts=[replace(OPEN, rights=ALL, any_update=False)]), DELETING)
    assert fault.advice == 'GRANT UPDATE ("id") ON public.things TO jobs;'
    assert "UPDATE of any one column" in fault.sentence


def test_columns_that_are_updated_are_asked_for_one_by_one() -> None:
    closed = replace(OPEN, columns={"id": ALL, 'a"b': frozenset({"SELECT"}), "c": frozenset({"UPDATE"})})
    needs = Needs(select=("id", "c"), update=('a"b', "c", "not there"))
    assert sentences(replace(TABLE, parts=[closed]), needs) == [
        'The user jobs has no right to SELECT ("c") on public.things',
        'The user jobs has no right to UPDATE ("a""b") on public.things',
    ]


def test_partitions_are_asked_where_an_action_names_them() -> None:
    closed = replace(LEAF, usage=False, rights=frozenset(), any_update=False, hides_rows=True)
    table = replace(TABLE, parts=[OPEN, closed])
    found = list(faults(table, DELETING))
    assert [fault.hides for fault in found] == [False] * 5
    assert all('"odd ""schema"' in fault.sentence for fault in found)
    assert sentences(table, replace(DELETING, direct=False)) == []


def test_many_partitions_are_counted() -> None:
    closed = [replace(LEAF, name=f"leaf_{n}", rights=ALL - {"DELETE"}) for n in range(1000)]
    [fault] = faults(replace(TABLE, parts=[OPEN, *closed]), DELETING)
    assert fault.sentence.endswith("leaf_0, leaf_1, leaf_2 and 997 other partitions")
    assert len(fault.advice) < 400 and "(and the other partitions)" in fault.advice


def test_row_security_hides_a_preview_where_it_is_the_tables_own() -> None:
    [own] = faults(replace(TABLE, parts=[replace(OPEN, hides_rows=True)]), DELETING)
    [leaf] = faults(replace(TABLE, parts=[OPEN, replace(LEAF, hides_rows=True)]), DELETING)
    assert (own.hides, leaf.hides) == (True, False)
    assert "BYPASSRLS" in own.advice


@pytest.mark.parametrize(("published", "needs", "found"), [("DELETE", DELETING, 1), ("UPDATE", DELETING, 0)])
def test_a_publication_without_a_replica_identity_refuses_what_it_publishes(
    published: str, needs: Needs, found: int
) -> None:
    parts = [OPEN, replace(LEAF, unidentified=frozenset({published}))]
    assert len(sentences(replace(TABLE, parts=parts), needs)) == found
    setting = Needs(whole=frozenset({"SELECT"}), update=("at",), direct=True)
    assert len(sentences(replace(TABLE, parts=parts), setting)) == 1 - found


# -- indexes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "found"), [(BIG - 1, 0), (BIG, 2), (-1, 0)])
def test_indexes_are_missed_on_large_tables_only(count: float, found: int) -> None:
    key = replace(KEY, indexed=False, rows=count)
    missing = list(unindexed(replace(TABLE, rows=count, keys=[key], leading=frozenset()), "at"))
    assert len(missing) == found
    assert not any(fault.refuses for fault in missing)


def test_a_rule_without_a_clock_misses_no_index_on_it() -> None:
    assert list(unindexed(replace(TABLE, leading=frozenset()), None)) == []


def test_a_referring_table_that_may_not_be_read_is_slow_and_no_more() -> None:
    [fault] = unreadable_referrers(replace(TABLE, keys=[replace(KEY, readable=False), KEY]))
    assert (fault.refuses, fault.advice) == (False, "GRANT SELECT ON children TO jobs;")


# -- the server --------------------------------------------------------------------------------------------------------

SERVER: dict[str, Any] = {
    "version": 180_004,
    "shown": "18.4",
    "standby": False,
    "user": "jobs",
    "database": "app",
    "read_only": False,
    "most": 97,
    "used": 10,
    "user_limit": -1,
    "database_limit": -1,
    "superuser": False,
}


def faults_of(**facts: Any) -> list[tuple[Severity, str]]:
    return [(item.severity, item.name) for item in judged(SERVER | facts) if item.severity is not Severity.NOTE]


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({}, []),
        ({"version": 139_999}, [(Severity.BLOCKED, "database")]),
        ({"version": 140_000}, []),
        ({"standby": True}, [(Severity.BLOCKED, "database")]),
        ({"standby": True, "read_only": True}, [(Severity.BLOCKED, "database")]),
        ({"read_only": True}, [(Severity.BLOCKED, "database")]),
        ({"used": 97 - CONNECTIONS}, []),
        ({"used": 97 - CONNECTIONS + 1}, [(Severity.WARNING, "database.connections")]),
        ({"used": 97 - FEWEST + 1}, [(Severity.BLOCKED, "database.connections")]),
        ({"used": 97 - CONNECTIONS + 1, "user_limit": 10}, []),
        ({"used": 97 - CONNECTIONS + 1, "user_limit": 90}, [(Severity.WARNING, "database.connections")]),
        ({"user_limit": FEWEST - 1}, [(Severity.BLOCKED, "database.connections")]),
        ({"database_limit": 0}, [(Severity.BLOCKED, "database.connections")]),
        ({"used": None}, []),
    ],
)
def test_what_facts_about_a_server_mean(facts: dict[str, Any], found: list[tuple[Severity, str]]) -> None:
    assert faults_of(**facts) == found


def test_limits_that_a_pooler_drops() -> None:
    assert [*without_limits("1min", "jobs")] == []
    [item] = without_limits("0", "jobs")
    assert (item.severity, item.name) == (Severity.WARNING, "database.pooler")


# -- lifecycle rules ---------------------------------------------------------------------------------------------------


def expiring(days: int, **other: Any) -> dict[str, Any]:
    return {"ID": "tidy", "Status": "Enabled", "NoncurrentVersionExpiration": {"NoncurrentDays": days}} | other


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (expiring(29), 1),
        (expiring(30), 0),
        (expiring(1, Status="Disabled"), 0),
        (expiring(1, Prefix="media/"), 1),
        (expiring(1, Prefix="media/photos/2026/"), 1),
        (expiring(1, Filter={"Prefix": "logs/"}), 0),
        (expiring(1, Filter={"And": {"Prefix": "media/photos/", "Tags": []}}), 1),
        (expiring(1, Filter={"Tag": {"Key": "a", "Value": "b"}}), 1),
        (expiring(1, NoncurrentVersionExpiration={"NoncurrentDays": 1, "NewerNoncurrentVersions": 1}), 0),
        ({"Status": "Enabled", "Expiration": {"Days": 1}}, 0),
    ],
)
def test_a_lifecycle_rule_that_takes_what_undo_needs(rule: dict[str, Any], found: int) -> None:
    assert len(list(shortened([rule], "media/photos/", 30))) == found


# -- candidates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["photos/1.jpg"], "text"),
        (["<p>Hello <img src='1.jpg'>"], "html"),
        (["![photo](1.jpg)"], "html"),
        (['{"url": "1.jpg"}', '["2.jpg"]'], "json"),
        (['{"url": "1.jpg"}', "1.jpg"], "text"),
        ([], "text"),
    ],
)
def test_how_a_column_of_text_is_read(texts: list[str], kind: str) -> None:
    assert media_part._kind(texts) == kind


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a/b.jpg", True),
        ("https://x.example/a.JPG?w=9", True),
        ("a.pdf", False),
        ("see a.jpg\nand b", False),
        ("", False),
    ],
)
def test_what_looks_like_the_name_of_a_file(value: str, found: bool) -> None:
    assert media_part._is_media(value) is found


def test_a_reference_is_written_as_the_settings_take_it() -> None:
    [one] = parse(
        {"media": {"references": [{"table": "a.b", "column": "c", "strip": ["x/"]}]}}, source=""
    ).media.references
    assert media_part._fields(one) == {"table": "a.b", "column": "c", "strip": ["x/"]}


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("severities", "found"),
    [
        ([], Verdict.READY),
        ([Severity.NOTE], Verdict.READY),
        ([Severity.NOTE, Severity.WARNING], Verdict.WARNINGS),
        ([Severity.WARNING, Severity.BLOCKED, Severity.NOTE], Verdict.BLOCKED),
    ],
)
def test_the_verdict(severities: list[Severity], found: Verdict) -> None:
    assert verdict(severities) is found


def test_a_fault_blocks_what_is_applied() -> None:
    assert Severity.of_fault(applied=True) is Severity.BLOCKED
    assert Severity.of_fault(applied=False) is Severity.WARNING


def test_a_sentence_is_one_line_of_bounded_length() -> None:
    assert sentence("two\nlines..") == "two lines."
    assert len(sentence("x" * 10_000)) <= 1_001
    assert explained(ValueError("no\x00good")) == "no good."


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2.5e9, "2.5 GB"), (4e12, "4,000.0 GB")]
)
def test_amounts(size: float, text: str) -> None:
    assert amount(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "less than a second"), (1, "1 second"), (90, "90 seconds"), (600, "10 minutes"), (86_400, "24 hours")],
)
def test_periods(seconds: float, text: str) -> None:
    assert period(seconds) == text


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("db.abc.eu-west-1.rds.amazonaws.com", RDS_STORAGE),
        ("db.cluster-abc.eu-west-1.rds.amazonaws.com", AURORA_STORAGE),
        ("db.abc.cn-north-1.rds.amazonaws.com.cn", RDS_STORAGE),
        ("10.0.0.7", None),
        ("db.rds.amazonaws.com.evil.example", None),
        ("", None),
    ],
)
def test_only_storage_that_aws_bills_has_a_price(host: str, found: object) -> None:
    assert storage_price(host) is found


# -- the document ------------------------------------------------------------------------------------------------------


def item(severity: Severity = Severity.NOTE, **other: Any) -> Item:
    return Item(
        **{"severity": severity, "name": "retention.rules.a_b", "sentence": "It is so.", "advice": "Do."} | other
    )


def test_proposals_are_merged_without_repetitions() -> None:
    first = {"media": {"references": [{"table": "a", "column": "b"}, {"table": "c", "column": "d"}]}}
    second = {"media": {"references": [{"table": "a", "column": "b"}, {"table": "e", "column": "f"}]}, "jobs": {}}
    merged = proposed([item(settings=first), item(), item(settings=second)])
    assert [one["table"] for one in merged["media"]["references"]] == ["a", "c", "e"]


def test_the_result_names_a_bounded_number_of_items() -> None:
    named = _named([item(Severity.WARNING)] * (NAMED + 7) + [item()], Severity.WARNING)
    assert (len(named), named[-1]) == (NAMED + 1, "and 7 more in the document")


def test_the_rates_and_the_month_are_those_of_the_documents() -> None:
    bench = (Path(__file__).parents[2] / "bench" / "README.md").read_text()
    for rate in rules_part.RATES:
        assert f"| {rate:_}".replace("_", " ") in bench
    assert "| lamplighter | 21.01 |" in bench
    month = cost._month()
    for column, usd in ((2, "usd"), (4, "usd_without_database")):
        shown = [(row[0], float(row[column].strip("*| "))) for row in rows(OPERATIONS, "What it costs")]
        assert [(one["item"], one[usd]) for one in month["items"]] == shown[:-1]
        assert ("**together**", month[usd]) == shown[-1]
        assert abs(sum(one[usd] for one in month["items"]) - month[usd]) < 0.05


@pytest.mark.parametrize(("environment", "usd"), [({"DATABASE_HOST": "db"}, "usd"), ({}, "usd_without_database")])
def test_the_month_is_that_of_a_stack_like_this_one(environment: dict[str, str], usd: str) -> None:
    month = cost._month()
    (item,) = cost.part(SimpleNamespace(environment=environment))  # type: ignore[arg-type]
    assert f"about {month[usd]:.2f} USD" in item.sentence
    assert item.facts["usd"] == month[usd]
    assert [one["usd"] for one in item.facts["items"]] == [one[usd] for one in month["items"]]


def test_the_endpoints_are_those_of_the_documents() -> None:
    month = cost._month()
    section = OPERATIONS.partition("\n### The network\n")[2].partition("\n### ")[0]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line][2:]
    shown = [(row[0], row[1], 0 if row[2] == "free" else float(row[2])) for row in table]
    assert [(one["service"], one["endpoint"], one["usd_a_zone"]) for one in month["endpoints"]] == shown
    assert f"{month['nat_gateway_usd']} USD a month" in section
    sums = [sum(one["usd_a_zone"] for one in cost.endpoints(month, secret=yes)) for yes in (True, False)]
    assert round(sums[0] - sums[1], 2) == 7.3


def test_the_page_begins_with_the_verdict_and_shows_a_bounded_number() -> None:
    many = [item(name=f"rule.{n}", sentence="<script>") for n in range(page.ROWS + 5)]
    blocked = item(Severity.BLOCKED, sentence="It is & stays <closed>.")
    html = page.render(
        Document(
            job_id="01JOB",
            generated_at="2026-12-01T09:00:00Z",
            verdict=Verdict.BLOCKED,
            counts=Counts(blocked=1, notes=len(many)),
            sections=[Section(title="Retention rules", items=[*many, blocked]), Section(title="Empty", items=[])],
            settings={"media": {"note": "</pre><script>"}},
        )
    )
    assert re.search(r"<body><header><h1>Preflight: blocked</h1>", html)
    assert html.index('id="verdict"') < html.index('id="retention-rules"')
    assert html.count("<tr>") == page.ROWS + 1
    assert "6 more are in the JSON document." in html
    assert "<script" not in html and "&lt;closed&gt;" in html and "Empty" not in html
    assert html.index("It is &amp; stays", html.index('id="retention-rules"')) < html.index("rule.<wbr>0")


def test_names_break_behind_dots() -> None:
    assert page._name("retention.rules.a_b") == "retention.<wbr>rules.<wbr>a_b"
    assert page._name("<b>") == "&lt;b&gt;"


def test_an_item_is_json() -> None:
    assert json.loads(item().model_dump_json())["settings"] is None
