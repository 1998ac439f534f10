"""The ramp of earned trust on the job table: what is written conditionally, and what a damaged item or table means."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError

from lamplighter.deletion import ramp
from lamplighter.deletion.ramp import STEP, DynamoTable, Trust
from lamplighter.kernel.aws import client
from lamplighter.kernel.errors import Permanent, Retryable

NOW = datetime(2026, 11, 22, 6, 10, tzinfo=UTC)
SCOPE = ramp.of_objects("media/uploads%2F")
TRUST = Trust(definition="d", limit=1_000, since=NOW, acted_at=NOW + timedelta(hours=1))


@pytest.fixture
def table(jobs_table: str) -> DynamoTable:
    return DynamoTable(jobs_table)


def opened(table: DynamoTable, run: str, now: datetime = NOW, **options: Any) -> ramp.Allowance:
    defaults: dict[str, Any] = {"definition": "d", "first": 100, "ceiling": None}
    return ramp.open(table, SCOPE, run=run, now=now, **(defaults | options))


def test_what_is_written_is_read(table: DynamoTable) -> None:
    assert table.write(SCOPE, TRUST, version=None)
    assert table.read(SCOPE).trust == TRUST


def test_a_write_loses_against_one_since_the_read(table: DynamoTable) -> None:
    assert table.write(SCOPE, TRUST, version=None)
    version = table.read(SCOPE).version
    assert table.write(SCOPE, TRUST, version=version)

    assert not table.write(SCOPE, TRUST, version=version)
    assert not table.write(SCOPE, TRUST, version=None)


def test_an_allowance_is_granted_once(table: DynamoTable) -> None:
    """A run's later attempts find what the first was given, whatever the limit is by then."""
    first = table.grant(SCOPE, "a", 100, epoch="one", expires=NOW)
    assert table.use(SCOPE, "a", 7, limit=100)
    for limit in (1_000, 1):
        later = table.grant(SCOPE, "a", limit, epoch="two", expires=NOW)
        assert (later.limit, later.used, later.epoch) == (first.limit, 7, "one") == (100, 7, "one")


def test_trust_is_earned_and_lost(table: DynamoTable) -> None:
    limits = []
    for day in range(3):
        allowance = opened(table, f"r{day}", NOW + day * STEP)
        allowance.acted(allowance.reserve(100))
        limits.append(allowance.limit)
    ramp.reset(table, SCOPE, NOW + 3 * STEP)

    assert limits == [100, 1_000, 10_000]
    assert opened(table, "s", NOW + 4 * STEP).limit == 100
    assert opened(table, "t", NOW + 4 * STEP, definition="e").limit == 100


def test_the_attempts_of_a_run_share_one_allowance_even_at_once(table: DynamoTable) -> None:
    allowances = [opened(table, "a") for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        reserved = list(pool.map(lambda allowance: sum(allowance.reserve(7) for _ in range(20)), allowances))

    assert sum(reserved) == 100
    assert opened(table, "a").left == 0


def test_runs_at_once_raise_the_limit_once(table: DynamoTable) -> None:
    opened(table, "a").acted(1)

    with ThreadPoolExecutor(4) as pool:
        limits = list(pool.map(lambda run: opened(table, run, NOW + STEP).limit, "bcde"))

    assert limits == [1_000] * 4


@pytest.mark.parametrize(
    "damage",
    [
        {"limit": {"S": "many"}},
        {"limit": {"N": "1.5"}},
        {"since": {"S": "2026-11-22T06:10:00.000"}},
        {"since": {"S": "soon"}},
        {"epoch": {"NULL": True}},
        {"definition": {"N": "1"}},
        {"acted_at": {"BOOL": True}},
    ],
)
def test_a_damaged_item_starts_again_and_is_mended(table: DynamoTable, jobs_table: str, damage: dict[str, Any]) -> None:
    table.write(SCOPE, TRUST, version=None)
    key = {"pk": {"S": f"trust#{SCOPE}"}}
    item = client("dynamodb").get_item(TableName=jobs_table, Key=key)["Item"]
    client("dynamodb").put_item(TableName=jobs_table, Item=item | damage)

    assert opened(table, "a", NOW + 9 * STEP).limit == 100
    assert table.read(SCOPE).trust


def test_a_damaged_allowance_acts_on_nothing(table: DynamoTable, jobs_table: str) -> None:
    opened(table, "a")
    item = {"pk": {"S": f"trust#{SCOPE}#a"}, "granted": {"S": "all"}, "used": {"N": "0"}}
    client("dynamodb").put_item(TableName=jobs_table, Item=item)

    allowance = opened(table, "a")
    assert (allowance.limit, allowance.left, allowance.reserve(1)) == (0, 0, 0)


def test_a_scope_of_any_length_has_an_item_of_its_own(table: DynamoTable) -> None:
    long = ramp.of_objects("b/" + "%2F" * 1_000)
    assert table.write(long, TRUST, version=None)
    assert table.read(long).trust == TRUST
    assert table.read(long + "x").trust is None


def test_what_expires_is_the_allowance_of_a_run_and_never_the_trust(table: DynamoTable, jobs_table: str) -> None:
    opened(table, "a")

    items = {item["pk"]["S"]: item for item in client("dynamodb").scan(TableName=jobs_table)["Items"]}
    assert items.keys() == {f"trust#{SCOPE}", f"trust#{SCOPE}#a"}
    assert "ttl" not in items[f"trust#{SCOPE}"]
    assert int(items[f"trust#{SCOPE}#a"]["ttl"]["N"]) == int((NOW + ramp.RUN_KEPT).timestamp())


@pytest.mark.parametrize(
    ("error", "raised", "sentence"),
    [
        ("AccessDeniedException", Permanent, "The ramp needs dynamodb:GetItem on the table lamplighter-jobs"),
        ("ResourceNotFoundException", Permanent, "The ramp needs dynamodb:GetItem on the table lamplighter-jobs"),
        ("ProvisionedThroughputExceededException", Retryable, "cannot use the table lamplighter-jobs now"),
        (None, Retryable, "cannot use the table lamplighter-jobs now"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(
    table: DynamoTable,
    monkeypatch: pytest.MonkeyPatch,
    error: str | None,
    raised: type[Exception],
    sentence: str,
) -> None:
    def fail(**_: Any) -> None:
        if error is None:
            raise ConnectTimeoutError(endpoint_url="http://there")
        raise ClientError({"Error": {"Code": error, "Message": "no"}}, "GetItem")

    monkeypatch.setattr(client("dynamodb"), "get_item", fail)

    with pytest.raises(raised, match=sentence):
        opened(table, "a")
