"""`lamplighter.cloud.checks.missing_tags` (REQUIREMENTS C12)."""

from __future__ import annotations

import pytest

from lamplighter.cloud.checks.missing_tags import check
from tests.inventories import TAGS, instance, inventory, judged, snapshot, volume


def test_none() -> None:
    assert not judged(check, inventory()).findings


def test_clean() -> None:
    assert not judged(check, inventory(instances=(instance(),), volumes=(volume(),), snapshots=(snapshot(),))).findings


def test_offending_resources_of_each_type() -> None:
    world = inventory(
        instances=(instance(tags={}),), volumes=(volume(tags={}), volume("vol-2")), snapshots=(snapshot(tags={}),)
    )
    assert [(finding.resource_id, finding.resource_type) for finding in judged(check, world).findings] == [
        ("i-1", "AwsEc2Instance"),
        ("vol-1", "AwsEc2Volume"),
        ("snap-1", "Other"),
    ]


@pytest.mark.parametrize(
    ("tags", "missing", "empty", "similar"),
    [
        ({}, ["Owner", "Environment", "CostCenter"], [], {}),
        ({**TAGS, "Owner": ""}, ["Owner"], ["Owner"], {}),
        ({**TAGS, "Owner": " "}, ["Owner"], ["Owner"], {}),
        (
            {"owner": "ada", "ENVIRONMENT": "test", "cost-center": "7", "Name": "web"},
            ["Owner", "Environment", "CostCenter"],
            [],
            {"Owner": ["owner"], "Environment": ["ENVIRONMENT"], "CostCenter": ["cost-center"]},
        ),
        ({**TAGS, "CostCenter": "", "costcenter": "7"}, ["CostCenter"], ["CostCenter"], {"CostCenter": ["costcenter"]}),
        ({"Environment": "test", "CostCenter": "7", "Ownership": "ada"}, ["Owner"], [], {}),
    ],
    ids=str,
)
def test_offending(tags: dict[str, str], missing: list[str], empty: list[str], similar: dict[str, list[str]]) -> None:
    (finding,) = judged(check, inventory(volumes=(volume(tags=tags),))).findings
    assert finding.evidence == {"missing": missing, "empty": empty, "similar": similar}


def test_which_tags_are_required_is_a_setting() -> None:
    world = inventory(volumes=(volume(),))
    (finding,) = judged(check, world, required_tags=("Owner", "Team")).findings
    assert finding.evidence["missing"] == ["Team"]
    assert not judged(check, world, required_tags=()).findings


@pytest.mark.parametrize("gap", ["instances", "volumes", "snapshots"])
def test_unread(gap: str) -> None:
    judgement = judged(check, inventory(volumes=(volume(tags={}),), gaps={gap: "UnauthorizedOperation"}))
    assert (judgement.judged, [unknown.resource_id for unknown in judgement.unknown]) == (frozenset(), ["*"])
