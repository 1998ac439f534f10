"""The demo's chapters about cloud accounts: what they waste, what they expose, and what would be done about it.

The accounts are those of `local.cloud`; it is known what is wrong with them, and the scans have to find just that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final

from local.cloud import REGIONS, STRANGER, TARGETS
from local.console import console, say, step, table
from local.demo_jobs import Jobs
from local.demo_stage import Stage, number
from local.scan import SEVERITIES
from local.stack import PAGE

REMEDIES: Final = {
    "unattached_volumes": {"action": "snapshot_and_delete", "after_days": 7},
    "open_ports": {"action": "revoke", "after_days": 7, "max_share": 0.6},
    "missing_tags": {"action": "add_tags", "values": {"Environment": "unknown"}},
}
"""What would be done; without `apply` it is only said. More than half of the demo accounts' groups are
open, more than the governor lets pass by default."""
SETTINGS: Final = {"cloud": {"targets": TARGETS, "concurrency": 2, "remedies": REMEDIES}}
"""What the demo overrides. Two regions at a time: each function that starts cold takes a processor for a second."""
REGION: Final = ("findings", "unknown", "api_calls", "seconds")
"""What is shown of a region."""
SHOWN: Final = 8


class Cloud:
    """Chapters on a stage, told in the order of the methods."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.jobs = Jobs(stage)
        self.planted = stage.aws.planted()
        self.names = {one.resource_id: one.name for one in self.planted}

    def set_up(self) -> None:
        """Have the demo accounts scanned from now on, by their schedules, too."""
        self.stage.settings |= SETTINGS
        with step("Accounts") as current:
            self.stage.override(self.stage.settings)
            current.say(f"{len(TARGETS[0]['accounts']) + len(TARGETS[1]['accounts'])} cloud accounts to be scanned")

    def run(self) -> None:
        self._waste()
        self._risks()

    def _waste(self) -> None:
        stage = self.stage
        stage.chapter(
            "Cloud: what it wastes",
            "Three demo accounts of two regions, each scanned by a call of its own, through a role that is assumed; "
            f"account {STRANGER} has no such role. What has been unattached since when, scans keep by themselves; here "
            "they are taken to have looked for three weeks already.",
        )
        for one in self.planted:
            if "unattached_volumes" in one.found:
                stage.database.run(
                    "INSERT INTO lamplighter.unattached_volumes "
                    " VALUES (:account, :region, :volume, now() - interval '21 days')"
                    " ON CONFLICT (account_id, region, volume_id) DO UPDATE SET first_seen_at = excluded.first_seen_at",
                    account=one.account, region=one.region, volume=one.resource_id,
                )  # fmt: skip
        took, result, report = self._scanned("waste_scan")
        totals = report["totals"]
        table(
            ("waste, by kind", "findings", "resources", "$ a month", "likely saved"),
            [
                (one["name"].replace("_", " "), one["findings"], one["resources"], *_dollars(one))
                for one in totals["kind"]
                if one["monthly_usd"]
            ],
            right=("findings", "resources", "$ a month", "likely saved"),
        )
        table(
            ("waste, by owner", "$ a month", "likely saved"),
            [(one["name"], *_dollars(one)) for one in totals["owner"] if one["monthly_usd"]],
            right=("$ a month", "likely saved"),
        )
        paid = [one for one in report["findings"] if one["counted_usd"]]
        dearest = sorted(paid, key=lambda one: -one["score"])[:SHOWN]
        table(
            ("look at first", "resource", "account", "region", "$ a month", "sure"),
            [
                (one["check"], *self._where(one), _usd(one["monthly_usd"]), f"{one['confidence']:.0%}")
                for one in dearest
            ],
            right=("$ a month", "sure"),
        )  # fmt: skip
        table(
            ("could not be judged", "resources", "why"),
            [(one["check"], one["resources"], one["reason"]) for one in report["unknown"][:SHOWN]],
            right=("resources",),
        )
        total = totals["all"]["monthly_usd"]
        say(
            f"${_usd(total)} a month in all, each resource counted once: estimates at list prices, before discounts. "
            "How sure says which share of it is likely to be saved. The report's page with charts, for a browser:"
        )
        page = stage.aws.directory / PAGE
        page.write_bytes(self._document(result, "html"))
        console.print(page.as_uri(), markup=False, soft_wrap=True)
        stage.did("waste-scan", f"found ${_usd(total)} a month", took, "the page in the archive bucket")

    def _risks(self) -> None:
        stage = self.stage
        stage.chapter(
            "Cloud: what it exposes",
            "The same for security; then what the settings ask to be done about it, as a preview: what is to change is "
            "first marked by a tag and announced, and looked at again when its time has come.",
        )
        took, result, report = self._scanned("security_enforcement")
        worst = [one for one in report["findings"] if one["severity"] == "critical"]
        table(
            ("critical", "resource", "account", "region", "at fault"),
            [(one["check"], *self._where(one), _holes(one)) for one in worst[:SHOWN]],
        )
        found = {total["name"]: total["findings"] for total in report["totals"]["severity"]}
        severities = ", ".join(f"{found[severity]} {severity}" for severity in SEVERITIES if severity in found)
        say(f"All that is open, by severity: {severities}.")
        actions = result["phases"]["actions"]
        foreseen = {check: [one for one in actions["items"] if one["check"] == check] for check in REMEDIES}
        table(
            ("would be marked", "resource", "account", "region"),
            [
                (one["detail"].partition("T")[0], *self._where(one))
                for those in foreseen.values()
                for one in those[: SHOWN // 2]
            ],
        )
        outcomes = (f"{number(count)} {outcome.replace('_', ' ')}" for outcome, count in actions["outcomes"].items())
        say(f"In all: {', '.join(outcomes)}. Nothing was touched.")
        did = f"{len(report['findings'])} findings, previewed what to do"
        stage.did("security-enforcement", did, took, "findings in Postgres")

    def _scanned(self, job_type: str) -> tuple[float, dict[str, Any], dict[str, Any]]:
        """Seconds, the job's result and its report, after it was held against what was planted."""
        stage, began = self.stage, time.monotonic()
        job, _ = self.jobs.finished("/api/jobs/run", {"job_type": job_type}, "Scan")
        took, result = time.monotonic() - began, job["result"]
        regions = result["phases"]["regions"]["regions"]
        table(
            ("account", "region", "findings", "unknown", "API calls", "seconds"),
            [(line["account"], line["region"], *(line.get(name, 0) for name in REGION)) for line in regions],
            right=("findings", "unknown", "API calls", "seconds"),
        )
        failures = result["phases"]["regions"]["failures"]
        stage.expect(len(failures) == len(REGIONS), f"Others could not be scanned: {failures}")
        say(f"The others go on without them: {failures[0]}")
        self._expect_what_was_planted(job_type)
        return took, result, json.loads(self._document(result, "json"))

    def _document(self, result: Mapping[str, Any], form: str) -> bytes:
        """The report that a scan wrote, in one of its forms."""
        bucket, _, key = result["phases"]["report"]["documents"][form].removeprefix("s3://").partition("/")
        body: bytes = self.stage.aws.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def _expect_what_was_planted(self, job_type: str) -> None:
        from lamplighter.cloud.checks import SECURITY, WASTE

        checks = {check.id for check in (WASTE if job_type == "waste_scan" else SECURITY)}
        wanted = {
            (one.account, one.region, check, one.resource_id)
            for one in self.planted
            for check in one.found
            if check in checks
        }
        rows = self.stage.database.run(
            "SELECT account_id, region, check_id, resource_id FROM lamplighter.findings WHERE status = 'open'"
        )
        found = {(account, region, check, resource) for account, region, check, resource in rows if check in checks}
        self.stage.expect(found == wanted, f"Other findings than were planted: {sorted(found ^ wanted)[:3]}.")
        say(f"Held against what was planted: all {number(len(wanted))} were found, and nothing else.")

    def _where(self, found: Mapping[str, Any]) -> tuple[str, str, str]:
        """The resource's name, its account and its region."""
        return self.names.get(found["resource_id"], found["resource_id"]), found["account"], found["region"]


def _dollars(total: Mapping[str, Any]) -> tuple[str, str]:
    """A month's, and how much of them is likely to be saved."""
    return _usd(total["monthly_usd"]), _usd(total["weighed_usd"])


def _usd(amount: float | None) -> str:
    return f"{amount or 0:,.2f}"


def _holes(finding: Mapping[str, Any]) -> str:
    """The permissions that let everybody in, such as `tcp 22 from 0.0.0.0/0`."""
    told = []
    for one in finding["evidence"].get("permissions", ()):
        first, last = one["from_port"], one["to_port"]
        ports = first if first == last else f"{first}-{last}"
        what = "everything" if one["protocol"] == "-1" else f"{one['protocol']} {ports}"
        told.append(f"{what} from {one.get('cidr') or one.get('prefix_list')}")
    return ", ".join(told)
