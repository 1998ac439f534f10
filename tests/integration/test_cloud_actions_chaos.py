"""Runs that act on findings, and runs that take it back, die after any write and are run again (K7, K8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from itertools import count

import pytest

from lamplighter.cloud.remedies.outcomes import Report
from lamplighter.kernel.cloud import Remedy
from lamplighter.kernel.deletion import entries, verified
from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.ledger.row import Policy
from tests.integration.actions_world import DAY, REGION, Account, Died, answering, ssh, writes

REMEDIES = {
    "idle_cpu": Remedy(action="stop", apply=True),
    "open_ports": Remedy(action="revoke", apply=True, max_share=1),
    "old_snapshots": Remedy(action="delete_snapshot", apply=True, max_share=1),
    "unattached_volumes": Remedy(action="snapshot_and_delete", apply=True),
    "missing_tags": Remedy(action="add_tags", apply=True, max_share=1, values={"Owner": "platform"}),
}
"""What earlier scenes have left offends, too, but has no findings."""
DONE = Counter(
    StopInstances=1,
    RevokeSecurityGroupIngress=1,
    CreateSnapshot=1,
    DeleteVolume=1,
    DeleteSnapshot=1,
    CreateTags=2,
    DeleteTags=1,
)
"""What a run does to the resources of `scene`."""
UNDONE = Counter(
    StartInstances=1,
    AuthorizeSecurityGroupIngress=1,
    CreateVolume=1,
    RestoreSnapshotFromRecycleBin=1,
    DeleteTags=6,  # the marks of what is there again, of what was marked, and the tag that was added
)


def scene(account: Account) -> dict[str, str]:
    """A resource for each thing that a run can do: `check/resource`, and what the run has to make of it."""
    account.clear()
    outcomes = dict[str, str]()

    def due(check: str, resource_id: str, outcome: str) -> str:
        account.tag(resource_id, **{f"lamplighter:{check}": f"{REMEDIES[check].action} after 2020-01-01T00:00Z"})
        outcomes[f"{check}/{resource_id}"] = outcome
        return resource_id

    due("idle_cpu", account.idle_instance(), "stopped")
    due("open_ports", account.open_group(), "revoked")
    due("old_snapshots", account.old_snapshot(), "deleted")
    due("unattached_volumes", account.unattached_volume(), "snapshot_started")
    copied = due("unattached_volumes", account.unattached_volume(), "deleted")
    origin = [{"Key": "lamplighter:origin-volume", "Value": copied}]
    account.ec2.create_snapshot(VolumeId=copied, TagSpecifications=[{"ResourceType": "snapshot", "Tags": origin}])
    untagged = account.ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=1)["VolumeId"]
    due("missing_tags", account.found("missing_tags", untagged), "tags_added")
    mended = due("open_ports", account.open_group(), "unmarked")
    account.ec2.revoke_security_group_ingress(GroupId=mended, IpPermissions=[ssh("0.0.0.0/0")])
    return outcomes | {f"open_ports/{account.open_group()}": "marked"}


def effects(made: list[str]) -> Counter[str]:
    """Writes to EC2."""
    return Counter(name for name in made if name not in {"PutObject", "PutItem", "Publish"})


def outcomes(account: Account, report: Report, expected: Collection[str]) -> dict[str, str]:
    """What the manifest says of these."""
    assert report.manifest
    told = entries(account.s3, account.archive, verified(account.s3, report.manifest))
    found = {entry.key.split("/", 2)[2]: entry.outcome for entry in told}
    return {key: found[key] for key in expected}


def test_a_run_that_dies_after_any_write_does_all_of_it_once(account: Account) -> None:
    account.retain()
    for death in count(1):
        expected, job = scene(account), account.job()
        with suppress(Died), writes(dies_after=death) as first:
            account.attempt(job, REMEDIES)
        with writes() as second:
            report = account.attempt(job, REMEDIES)
        assert isinstance(report, Report)
        assert outcomes(account, report, expected) == expected, first
        assert effects(first + second) == DONE, first
        assert 1 <= (first + second).count("Publish") <= 2, first
        if len(first) < death:
            break  # it came to its end


def test_an_undo_that_dies_after_any_write_takes_all_of_it_back_once(account: Account) -> None:
    account.retain()
    for death in count(1):
        expected = scene(account)
        report = account.attempt(account.job(), REMEDIES)
        assert isinstance(report, Report)
        job, before = account.job(), len(account.volumes())
        with suppress(Died), writes(dies_after=death) as first:
            account.undo(report, job)
        with writes() as second:
            account.undo(report, job)
        assert effects(first + second) == UNDONE, first
        assert len(account.volumes()) == before + 1, first
        there = {key for key in expected if not key.startswith("unattached_volumes/")}  # one is gone, one begun
        assert not any(f"lamplighter:{check}" in account.tags(id_) for check, id_ in (key.split("/") for key in there))
        with writes() as third:
            account.undo(report)
        assert effects(third) == Counter(), first
        if len(first) < death:
            break  # it came to its end


def test_a_volume_that_is_still_being_deleted_is_one_that_the_run_deleted(account: Account) -> None:
    """EC2 shows it for some minutes (DeleteVolume); were it taken for kept, undo would not bring it back."""
    volume = account.unattached_volume()
    for _ in range(2):
        account.act("unattached_volumes", "snapshot_and_delete")
    job, delete = account.job(), {"unattached_volumes": Remedy(action="snapshot_and_delete", after_days=0, apply=True)}
    with suppress(Died), writes(dies_after=3) as made:
        account.attempt(job, delete)
    assert made == ["PutObject", "PutObject", "DeleteVolume"]
    with answering("DescribeVolumes", {"Volumes": [{"VolumeId": volume, "State": "deleting", "Attachments": []}]}):
        report = account.attempt(job, delete)
    assert isinstance(report, Report)
    assert report.outcomes == {"deleted": 1}
    assert account.undo(report).outcomes == {"restored": 1}


@pytest.mark.parametrize(
    ("deadly", "outcome"),
    [(["PutObject", "PutObject"], "already_restored"), (["PutObject", "PutObject", "StopInstances"], "restored")],
)
def test_what_a_run_did_that_died_for_good_can_be_undone(account: Account, deadly: list[str], outcome: str) -> None:
    """It has no manifest: what it had written down by then, and the resources themselves, have to do."""
    instance = account.idle_instance()
    account.tag(instance, **{"lamplighter:idle_cpu": "stop after 2020-01-01T00:00Z"})
    running = account.ledger.start(account.ledger.new_job("waste_scan", Policy(timeout=DAY)))
    with suppress(Died), writes(dies_after=len(deadly)) as made:
        account.attempt(account.job(running.job_id), REMEDIES)
    assert made == deadly
    with pytest.raises(Permanent, match="is running; cancel it first"):
        account.undo(running.job_id)
    account.ledger.fail(running, Permanent("It died."))
    report = account.undo(running.job_id)
    assert report.outcomes == {outcome: 1}
    assert account.state(instance) == "running"
