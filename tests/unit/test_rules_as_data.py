"""Rules in the settings document: what it takes, what it refuses and in which words, and their order (S4, C16)."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from lamplighter.deletion.ramp import definition_of
from lamplighter.kernel import phases
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.job import InvalidParams, Run
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.phased_job import PhasedJob, PhaseParams, Turn
from lamplighter.kernel.retention import Archive, Delete, Parent, Rule, Set
from lamplighter.kernel.settings import MAX_BYTES, Layer, Settings, SettingsError, merged, parse
from lamplighter.library import cleanup, rows
from lamplighter.rules import MOST, OWN, RULES, added, applied, in_force
from tests.unit.conftest import FakeClock, FakeContext

DAY = timedelta(days=1)
CARTS: dict[str, Any] = {"table": "shop.carts", "clock": "touched_at", "keep_days": 60}


def under(**rules: Any) -> Settings:
    return parse({"retention": {"rules": rules}}, source="a test")


def refusal(**rules: Any) -> str:
    """Why a document is refused: where its shape is wrong, or a rule contradicts itself."""
    with pytest.raises(SettingsError) as refused:
        in_force(under(**rules))
    return str(refused.value).removeprefix("In a test: ")


def test_without_settings_the_defaults_are_in_force() -> None:
    assert in_force(Settings()) == RULES
    assert list(in_force(Settings())) == list(RULES)


def test_a_rule_of_the_settings_says_all_that_a_rule_can() -> None:
    found = in_force(
        under(
            visits={
                "table": "shop.visits",
                "key": "visit_no",
                "clock": "seen",
                "clock_unit": "milliseconds",
                "keep_days": 365,
                "floor_days": 30,
                "where": "page <> '/'",
                "orphan_of": {"table": "shop.users", "column": "user_id", "key": "user_no"},
                "action": {"archive": "shop.visits_archive"},
            },
            carts=CARTS,
            flags={"table": "things", "where": "seen", "action": {"set": {"note": None, "n": 1, "ok": True, "x": 0.5}}},
            parts={"table": "parts", "orphan_of": {"table": "things", "column": "thing"}, "action": "delete"},
        )
    )

    assert list(found) == [*RULES, "visits", "carts", "flags", "parts"]
    assert found["visits"] == Rule(
        name="visits",
        table="shop.visits",
        key="visit_no",
        clock="seen",
        clock_unit="milliseconds",
        keep=365 * DAY,
        floor=30 * DAY,
        where="page <> '/'",
        orphan_of=Parent(table="shop.users", column="user_id", key="user_no"),
        action=Archive("shop.visits_archive"),
    )
    assert found["carts"] == Rule(name="carts", table="shop.carts", clock="touched_at", keep=60 * DAY, action=Delete())
    assert found["flags"].action == Set({"note": None, "n": 1, "ok": True, "x": 0.5})
    assert found["parts"].orphan_of == Parent(table="things", column="thing", key="id")


def test_a_rule_of_the_settings_previews_until_it_is_applied() -> None:
    """S4."""
    assert not applied("carts", under(carts=CARTS))
    assert applied("carts", under(carts=CARTS | {"apply": True}))


def test_the_order_of_the_document_is_the_order_of_a_run_and_survives_being_stored() -> None:
    names = ["zebra", "apple", "mango"]
    layers = [
        Layer.of({"retention": {"rules": {"zebra": CARTS, "apple": CARTS}}}, source="the template"),
        Layer.of({"retention": {"rules": {"mango": CARTS, "zebra": {"apply": True}}}}, source="the parameter"),
    ]
    settings = parse(json.loads(json.dumps(merged(layers))), source="stored")

    assert list(added(settings)) == names
    assert [turn.name for turn in turns("database_cleanup", settings)][-3:] == names


def test_a_default_rule_of_the_owners_can_be_fitted_to_their_table() -> None:
    """Laravel's sessions."""
    fitted = in_force(
        under(
            sessions={"clock": "last_activity", "clock_unit": "seconds", "keep_days": 1},
            downloads={"table": "shop.fetched", "key": "no", "where": "done"},
        )
    )

    assert (fitted["sessions"].table, fitted["sessions"].clock_unit, fitted["sessions"].keep) == (
        "sessions", "seconds", DAY
    )  # fmt: skip
    assert (fitted["downloads"].table, fitted["downloads"].key, fitted["downloads"].where) == (
        "shop.fetched", "no", "done"
    )  # fmt: skip
    assert (fitted["downloads"].keep, fitted["downloads"].floor) == (14 * DAY, DAY)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"carts": {"apply": True}}, "retention.rules: carts is not a rule (known: downloads, "),
    ({"carts": {"apply": True}}, "; a new one takes a table."),
    ({"Carts": CARTS}, "retention.rules.Carts.[key]: string should match pattern '^[a-z][a-z0-9_]{0,63}$', got"),
    ({"carts": CARTS | {"clocc": "at"}}, "retention.rules.carts.clocc is not a setting (known: apply, keep_days,"),
    ({"carts": {"table": "carts", "clock": "at"}}, "retention.rules.carts.keep_days: takes days for the clock at; 0"),
    ({"carts": {"table": "carts"}}, "retention.rules.carts.clock: takes a column: only a set or an orphan_of can do"),
    ({"carts": {"table": "carts", "keep_days": 5}}, "retention.rules.carts.keep_days: carts takes no days, its rows"),
    (
        {"carts": CARTS | {"floor_days": 90}},
        "retention.rules.carts.keep_days: takes at least 90 days, got 60.",
    ),
    (
        {"carts": {"table": "a", "floor_days": 1, "action": {"set": {"a": 1}}}},
        "retention.rules.carts.floor_days: carts takes no days, its rows do not age.",
    ),
    ({"carts": CARTS | {"keep_days": -1}}, "retention.rules.carts.keep_days: input should be greater than or equal"),
    ({"carts": CARTS | {"clock_unit": "hours"}}, "retention.rules.carts.clock_unit: input should be 'timestamp', 'da"),
    (
        {"carts": {"table": "a", "clock_unit": "date", "action": {"set": {"a": 1}}}},
        "retention.rules.carts.clock_unit: takes a clock, too.",
    ),
    (
        {"carts": CARTS | {"where": "true) OR (true"}},
        "retention.rules.carts.where: closes a parenthesis that it has not",
    ),
    (
        {"carts": CARTS | {"where": "true; DROP TABLE carts"}},
        "retention.rules.carts.where: takes one expression, witho",
    ),
    ({"carts": CARTS | {"where": "id IN (SELECT 1)"}}, "retention.rules.carts.where: reads other tables only inside"),
    ({"carts": {"table": "a", "action": {"set": {"b": 1}}}}, "retention.rules.carts.where: takes a condition: without"),
    ({"carts": CARTS | {"where": ""}}, "retention.rules.carts.where: takes an SQL expression over the row."),
    ({"carts": CARTS | {"where": "x" * 4_001}}, "retention.rules.carts.where: string should have at most 4000 char"),
    ({"carts": CARTS | {"where": "a\0"}}, "retention.rules.carts.where: string should match pattern"),
    ({"carts": CARTS | {"table": ""}}, "retention.rules.carts.table: takes table or schema.table, each of 1 to 63 b"),
    ({"carts": CARTS | {"table": "shop."}}, "retention.rules.carts.table: takes table or schema.table, each of 1 to"),
    ({"carts": CARTS | {"table": "t" * 64}}, "retention.rules.carts.table: takes table or schema.table, each of 1"),
    ({"carts": CARTS | {"clock": "ü" * 32}}, "retention.rules.carts.clock: takes a name of 1 to 63 bytes, got"),
    ({"carts": CARTS | {"table": "lamplighter.findings"}}, "retention.rules.carts.table: takes no table of the schema"),
    ({"carts": CARTS | {"table": "pg_catalog.pg_class"}}, "retention.rules.carts.table: takes no table of the schema"),
    ({"carts": CARTS | {"action": {"archive": "lamplighter.findings"}}}, "carts.action.archive: takes no table of the"),
    ({"carts": CARTS | {"action": "drop"}}, 'retention.rules.carts.action: takes "delete", {"archive": "schema.table"'),
    ({"carts": CARTS | {"action": {}}}, 'retention.rules.carts.action: takes one of "delete", {"archive":'),
    (
        {"carts": CARTS | {"action": {"archive": "a", "set": {"b": 1}}}},
        'retention.rules.carts.action: takes one of "delete", {"archive":',
    ),
    ({"carts": CARTS | {"action": {"move": "a"}}}, "retention.rules.carts.action.move is not a setting (known: delete"),
    ({"carts": CARTS | {"action": {"archive": "shop.carts"}}}, "retention.rules.carts.action: archives rows into the"),
    ({"carts": CARTS | {"action": {"set": {}}}}, "retention.rules.carts.action: takes at least one column to set."),
    ({"carts": CARTS | {"action": {"set": {"touched_at": None}}}}, "retention.rules.carts.action: sets touched_at, "),
    ({"carts": CARTS | {"action": {"set": {"id": None}}}}, "retention.rules.carts.action: sets id, the rule's key or"),
    ({"carts": CARTS | {"action": {"set": {"a": [1]}}}}, "retention.rules.carts.action.set.a: takes a text, a number"),
    ({"carts": CARTS | {"action": {"set": {"a": float("nan")}}}}, "retention.rules.carts.action.set.a: takes a text"),
    ({"carts": CARTS | {"orphan_of": "users"}}, "retention.rules.carts.orphan_of: input should be a valid dictionary"),
    ({"carts": CARTS | {"orphan_of": {"table": "users"}}}, "retention.rules.carts.orphan_of.column: field required"),
    (
        {"carts": CARTS | {"orphan_of": {"table": "users", "columns": "a"}}},
        "retention.rules.carts.orphan_of.columns is not a setting (known: table, column, key)",
    ),
    (
        {"carts": CARTS | {"orphan_of": {"table": "shop.carts", "column": "parent"}}},
        "retention.rules.carts.orphan_of: takes another table than the rule's own.",
    ),
    ({"uploads": CARTS}, "retention.rules.uploads: the cleanup has a phase of this name; choose another."),
    ({"stale_jobs": {"apply": True}}, "retention.rules.stale_jobs: the cleanup has a phase of this name"),
    ({"plans": CARTS}, "retention.rules.plans.table: plans is no rule, and takes none."),
    ({"plans": {"keep_days": 3}}, "retention.rules.plans.keep_days: plans takes no days, its rows do not age."),
    ({"audit_log": {"keep_days": 0.5}}, "retention.rules.audit_log.keep_days: takes at least 1 days, got 0.5."),
    ({"audit_log": {"where": "true"}}, "retention.rules.audit_log.where: audit_log is no rule, and takes none."),
    (
        {"system_logs": {"where": "false"}},
        "retention.rules.system_logs.where: the default rule system_logs does not let it be changed.",
    ),
    (
        {"sessions": {"action": {"archive": "old"}}},
        "sessions.action: the default rule sessions does not let it be changed; add a rule of your own.",
    ),
    ({"sessions": {"clock": "last_activity", "clock_unit": "seconds"}}, "sessions.keep_days: takes days for the clock"),
    ({"downloads": {"keep_days": 0}}, "retention.rules.downloads.keep_days: takes at least 1 days, got 0."),
    ({"downloads": {"where": "a)"}}, "retention.rules.downloads.where: closes a parenthesis that it has not opened."),
    ({"downloads": {"table": "lamplighter.findings"}}, "retention.rules.downloads.table: takes no table of the schem"),
    ({"deleted_accounts": {"keep_days": 1}}, "retention.rules.deleted_accounts.keep_days: deleted_accounts takes no"),
]


@pytest.mark.parametrize(("document", "sentence"), REFUSED, ids=[sentence[:70] for _, sentence in REFUSED])
def test_a_bad_rule_is_one_sentence_that_names_the_field(document: dict[str, Any], sentence: str) -> None:
    said = refusal(**document)

    assert sentence in said
    assert said.count("\n") == 0


@pytest.mark.parametrize("name", sorted(OWN))
@pytest.mark.parametrize("field", ["table", "clock", "key", "where", "action", "floor_days"])
def test_lamplighters_own_rules_cannot_be_given_another_meaning(name: str, field: str) -> None:
    value: Any = {"floor_days": 1, "action": "delete"}.get(field, "other")

    assert f"retention.rules.{name}.{field}: the default rule {name}" in refusal(**{name: {field: value}})


def test_there_is_a_most_of_rules_and_one_sentence_for_ten_thousand() -> None:
    carts = {"table": "t", "clock": "c", "keep_days": 1}
    most = {f"r{n}": carts for n in range(MOST)}
    assert len(in_force(under(**most))) == len(RULES) + MOST

    assert (
        refusal(**most, one_more=carts) == f"retention.rules: takes at most {MOST} rules of your own, got {MOST + 1}."
    )
    many = {f"r{n}": {"table": "t"} for n in range(10_000)}
    assert len(json.dumps(many)) < MAX_BYTES
    assert refusal(**many) == f"retention.rules: takes at most {MOST} rules of your own, got 10000."


# -- phases ----------------------------------------------------------------------------------------------------------


def turns(job_type: str, settings: Settings, **params: Any) -> list[Turn]:
    kind: PhasedJob = cleanup.TYPES[job_type]
    return kind.turns(PhaseParams(**params), settings)


def test_the_database_cleanup_does_the_rules_of_the_settings_last() -> None:
    settings = under(carts=CARTS, visits=CARTS)
    before = [turn.name for turn in turns("database_cleanup", Settings())]

    found = turns("database_cleanup", settings)

    assert [turn.name for turn in found] == [*before, "carts", "visits"]
    assert {turn.function for turn in found} == {"cleanup"}
    assert (found[0].span[0], found[-1].span[1]) == (0, 100)
    assert "carts" not in [turn.name for turn in turns("cleanup", settings)]


@pytest.mark.parametrize("job_type", cleanup.TYPES)
def test_every_type_takes_a_rule_of_the_settings_and_refuses_a_misspelt_one(job_type: str) -> None:
    settings, kind = under(carts=CARTS), cleanup.TYPES[job_type]

    assert [turn.name for turn in turns(job_type, settings, phases=["carts"])] == ["carts"]
    assert kind.previews(PhaseParams(phases=("carts",)), settings)
    for params in ({"phases": ("cart",)}, {"phases": ("cart",), "dry_run": True}):
        with pytest.raises(
            InvalidParams, match=rf"^phases: cart is no phase of {job_type} \(it takes stale_jobs, .*car"
        ):
            kind.previews(PhaseParams(**params), settings)
    with pytest.raises(InvalidParams, match=r"^phases: carts is no phase"):
        kind.previews(PhaseParams(phases=("carts",)), Settings())


def test_a_rule_never_takes_the_place_of_a_phase() -> None:
    settings = under(uploads=CARTS | {"apply": True})
    assert cleanup.TYPES["upload_cleanup"].all_phases(settings)["uploads"] == cleanup.PHASES["uploads"]
    assert cleanup.bodies(settings).keys() == cleanup.BODIES.keys()


def test_a_refusal_lists_no_hundred_phases() -> None:
    settings = under(**{f"r{n}": CARTS for n in range(MOST)})
    with pytest.raises(InvalidParams, match=r" and 84 more\)\.?$"):
        cleanup.TYPES["cleanup"].previews(PhaseParams(phases=("nothing",)), settings)


def test_a_run_in_earnest_is_refused_while_a_rule_of_the_settings_is_not_applied() -> None:
    """S2."""
    kind = cleanup.TYPES["database_cleanup"]
    with pytest.raises(InvalidParams, match=r"retention\.rules\.carts\.apply to true"):
        kind.previews(PhaseParams(phases=("carts",), dry_run=False), under(carts=CARTS))
    assert not kind.previews(PhaseParams(phases=("carts",), dry_run=False), under(carts=CARTS | {"apply": True}))


def test_bad_settings_stop_a_run_before_any_phase() -> None:
    settings = under(carts=CARTS | {"where": ")"})
    with pytest.raises(SettingsError, match=r"retention\.rules\.carts\.where"):
        turns("session_cleanup", settings)
    assert turns("upload_cleanup", settings), "what touches no rows goes on"


@pytest.mark.parametrize("all_fail", [False, True])
def test_what_the_most_rules_come_to_fits_a_state_and_the_row(
    monkeypatch: pytest.MonkeyPatch, ledger: Ledger, clock: FakeClock, all_fail: bool
) -> None:
    """Step Functions takes 256 KiB ("Quotas"), a row 400 KB ("Constraints in Amazon DynamoDB")."""
    many = {f"{'r' * 60}_{n}": CARTS | {"apply": True} for n in range(MOST)}
    monkeypatch.setenv("LAMPLIGHTER_RETENTION_RULES", json.dumps(many))
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)

    def body(run: Run) -> rows.Report:
        if all_fail:
            raise Permanent("größer " * 500)
        return rows.Report(dry_run=False, failed=10**9, failures=["größer " * 60] * rows.NAMED)

    every = dict.fromkeys((*cleanup.BODIES, *many), body)
    event = {"step": "begin", "input": {"job_type": "database_cleanup"}, "execution": "arn:1"}
    state = phases.begin(event | {"started": clock().isoformat()}, cleanup.TYPES)
    job_id = state["job_id"]
    assert len(state["left"]) == MOST + 6
    while state["next"] == "phase":
        state = phases.take(state, FakeContext(), every)
        assert len(json.dumps(state)) < 250_000
    if all_fail:
        with pytest.raises(phases.AllPhasesFailed) as failed:
            phases.finish({"state": state}, cleanup.TYPES)
        assert len(str(failed.value)) < 32_768
    else:
        told = phases.finish({"state": state}, cleanup.TYPES)["result"]
        assert len(json.dumps(told)) < 250_000
        assert told["phases"].keys() > many.keys()
    row = ledger.get(job_id)
    assert len(json.dumps([row.checkpoint, row.result])) < 390_000


# -- trust -----------------------------------------------------------------------------------------------------------

EARNED = {
    "downloads": "b69c21c20da1200b5d6a4bac7de8694206bf84b023a04b6f3f464029f08acb0f",
    "onboarding_requests": "97361832acad8e025fc7440122af9db01d1e5b8473ef8a663c601ac572e7e051",
    "deleted_accounts": "a244187df9bc209c1c8880ffc0379a2e33e646b5dc4f86d79a1c9868630dc10e",
    "sessions": "8ce76a952793f47a3bbec2012c13442a0a626d597ef8f5a391b33042f0aba187",
    "tokens": "2bdd2c53202b18df184e773bfa8f39c746d16cd4da6a435fb1ec5a25cab9b086",
}
"""The definitions under which the version before rules were data stored trust."""


def trust(**given: Any) -> str:
    rule = in_force(under(carts=CARTS | given))["carts"]
    return definition_of(rows.definition(rule))


def test_an_unchanged_rule_keeps_what_it_has_earned() -> None:
    """S3: an upgrade does not hold back a hundred thousand rows a day."""
    assert {name: definition_of(rows.definition(rule)) for name, rule in RULES.items() if name not in OWN} == EARNED


@pytest.mark.parametrize(
    "change",
    [
        {"table": "shop.baskets"},
        {"clock": "created_at"},
        {"clock_unit": "seconds"},
        {"clock_unit": "date"},
        {"where": "state = 'x'"},
        {"key": "no"},
        {"orphan_of": {"table": "users", "column": "user_id"}},
        {"action": {"archive": "attic"}},
        {"action": {"set": {"note": "x"}}},
    ],
    ids=str,
)
def test_a_rule_with_another_meaning_starts_the_ramp_again(change: dict[str, Any]) -> None:
    assert trust(**change) != trust()


def test_each_part_of_an_orphan_and_of_an_action_is_part_of_the_meaning() -> None:
    parents = [
        {"table": "users", "column": "user_id"},
        {"table": "users", "column": "owner_id"},
        {"table": "people", "column": "user_id"},
        {"table": "users", "column": "user_id", "key": "no"},
    ]
    actions = [{"set": {"note": "x"}}, {"set": {"note": "y"}}, {"set": {"n": "x"}}, {"archive": "a"}, {"archive": "b"}]
    hashes = [trust(orphan_of=one) for one in parents] + [trust(action=one) for one in actions]

    assert len(set(hashes)) == len(hashes)


def test_days_and_limits_are_no_part_of_the_meaning() -> None:
    assert trust(keep_days=90, floor_days=3, apply=True, ramp=False, max_rows=5) == trust()
