"""Where the scans look, and how what the regions came to is added up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lamplighter.cloud import cloud_scan, targets
from lamplighter.cloud.cloud_region import Scanned
from lamplighter.cloud.targets import Target
from lamplighter.kernel import fan_out
from lamplighter.kernel.cloud import Targets
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.phased_job import Done, Outcome, PhaseParams
from lamplighter.kernel.settings import CloudSettings, Settings, parse

OWN, OTHER = "111122223333", "444455556666"


@pytest.fixture(autouse=True)
def stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCOUNT_ID", OWN)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")


def settings(*given: Targets) -> Settings:
    return Settings(cloud=CloudSettings(targets=given))


def test_without_targets_the_stacks_own_region_is_scanned() -> None:
    assert targets.items(Settings()) == [{"account": OWN, "region": "eu-west-1"}]
    assert targets.find(Settings(), OWN, "eu-west-1") == Target(account=OWN, region="eu-west-1")


def test_every_region_of_every_account_is_an_item_and_has_its_own_way_in() -> None:
    """C17."""
    given = settings(
        Targets(accounts=(OWN,), regions=("eu-west-1", "us-east-1")),
        Targets(accounts=(OTHER,), regions=("cn-north-1",), role="lamplighter-scan", external_id="secret"),
    )
    found = targets.items(given)
    assert found == [
        {"account": OWN, "region": "eu-west-1"},
        {"account": OWN, "region": "us-east-1"},
        {"account": OTHER, "region": "cn-north-1"},
    ], "no secret: an execution's history shows them"
    assert targets.find(given, OWN, "us-east-1") == Target(account=OWN, region="us-east-1")
    assert targets.find(given, OTHER, "cn-north-1") == Target(
        account=OTHER,
        region="cn-north-1",
        role_arn=f"arn:aws-cn:iam::{OTHER}:role/lamplighter-scan",
        external_id="secret",
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            (Targets(accounts=(OTHER,), regions=("eu-west-1",)),),
            f"cloud.targets: {OTHER} needs a role, for the stack is in {OWN}.",
        ),
        (
            (Targets(accounts=(OWN,), regions=("eu-west-1",)), Targets(accounts=(OWN,), regions=("eu-west-1",))),
            f"cloud.targets: {OWN}/eu-west-1 stands there twice.",
        ),
        (
            (Targets(accounts=tuple(f"{n:012}" for n in range(501)), regions=("eu-west-1",), role="r"),),
            "cloud.targets: takes at most 500 regions of accounts, got 501.",
        ),
    ],
)
def test_targets_that_cannot_be_meant_are_refused_in_a_sentence(given: Any, sentence: str) -> None:
    """Without a role the function's own would read its own account and call it the other's."""
    with pytest.raises(Permanent) as refusal:
        targets.checked(settings(*given))
    assert str(refusal.value) == sentence


def test_what_is_a_target_no_more_is_not_scanned() -> None:
    with pytest.raises(Permanent, match=f"cloud.targets: {OTHER}/eu-west-1 is none of them"):
        targets.find(Settings(), OTHER, "eu-west-1")


def test_a_region_that_cannot_be_one_is_told() -> None:
    given = settings(Targets(accounts=(OTHER,), regions=("moon-1",), role="scan"))

    with pytest.raises(Permanent, match=r"cloud.targets: AWS has no region called moon-1\."):
        targets.find(given, OTHER, "moon-1")


def turns(job_type: str, given: Settings, **params: Any) -> list[str]:
    return [turn.name for turn in cloud_scan.TYPES[job_type].turns(PhaseParams(**params), given)]


def test_phases_that_would_come_to_nothing_are_left_out() -> None:
    remedies = parse({"cloud_remedies": '{"idle_cpu": {"action": "stop"}}'}, source="a test")
    assert turns("waste_scan", Settings()) == ["regions", "report"]
    assert turns("waste_scan", remedies) == ["regions", "actions", "report"]
    assert turns("waste_scan", remedies, dry_run=True) == ["regions", "actions"]
    assert turns("waste_scan", Settings(), phases=["report"]) == ["report"]
    assert turns("instance_health", remedies) == ["regions"]


def test_remedies_and_targets_that_do_not_fit_stop_a_scan_before_it_begins() -> None:
    unfit = parse({"cloud_remedies": '{"missing_tags": {"action": "stop"}}'}, source="a test")
    with pytest.raises(Permanent, match=r"cloud\.remedies\.missing_tags"):
        turns("security_enforcement", unfit)
    with pytest.raises(Permanent, match="needs a role"):
        turns("waste_scan", settings(Targets(accounts=(OTHER,), regions=("eu-west-1",))))


def done(region: str, **values: Any) -> Done:
    report = Scanned(**values)
    told = report.model_dump(mode="json", exclude_defaults=True)
    return Done(item={"account": OWN, "region": region}, outcome=Outcome(items=report.findings, bytes=0, report=told))


def test_the_regions_are_added_up_and_each_keeps_its_own_numbers() -> None:
    lost = Done(item={"account": OTHER, "region": "eu-west-1"}, error="Permanent: The role cannot be assumed")
    remark = "The exceptions are not a JSON document."
    told = cloud_scan.summed(
        cloud_scan.Scan,
        [
            done("eu-west-1", findings=3, monthly_usd=10.104, api_calls=12, seconds=1.5, remark=remark),
            done("us-east-1", findings=4, monthly_usd=0.2, resolved=1, remark=remark),
            lost,
        ],
    )
    assert (told.status, told.findings, told.monthly_usd, told.resolved) == ("completed_with_errors", 7, 10.3, 1)
    assert told.counts() == (7, 0)
    assert told.failures == [f"{OTHER}/eu-west-1: Permanent: The role cannot be assumed"]
    assert told.remarks == [remark]
    assert told.regions == [
        {"account": OWN, "region": "eu-west-1", "findings": 3, "monthly_usd": 10.104, "api_calls": 12, "seconds": 1.5},
        {"account": OWN, "region": "us-east-1", "findings": 4, "monthly_usd": 0.2, "resolved": 1},
    ]
    assert cloud_scan.summed(cloud_scan.Scan, [done("eu-west-1")]).status == "completed"


@pytest.mark.parametrize("error", [None, "x" * fan_out.SENTENCE])
def test_five_hundred_regions_fit_a_state_whatever_becomes_of_them(error: str | None) -> None:
    """Step Functions takes 256 KiB ("Quotas"); and nothing of the report is shortened."""
    numbers = {name: 12_345 for name in Scanned.model_fields if name not in ("status", "remark")}
    items = [done("ap-southeast-2", **numbers, remark="x" * fan_out.REMARK) for _ in range(targets.MOST)]
    if error:
        items = [Done(item=item.item, error=error) for item in items]
    travelling = len(json.dumps([one.model_dump(mode="json", exclude_defaults=True) for one in items]))
    reported = len(cloud_scan.summed(cloud_scan.Scan, items).model_dump_json())
    parts = len(json.dumps([{"value": one.item, "progress": 50} for one in items]))
    assert reported < fan_out.REPORT_LIMIT
    assert travelling + parts < 250_000
