"""What a month of the default schedules costs on AWS while nothing else happens. `python -m bench.cost`.

Processor time is measured: the deployed functions run under Lambda's emulator against the local AWS, warm for what runs
every minute, cold for what runs less often (more than AWS would do). A Lambda of less than 1 769 MB gets only a part of
a processor, so that time is stretched accordingly; for each AWS call that waits for the one before, `CALL` is added.
Amounts come from the template (rates, memory, alarms, keys) and from what the functions logged (metrics, bytes).
Free tiers are not deducted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any, Final

from bench.deployed import Deployed, deployed
from bench.emulator import emulated
from bench.tables import show
from lamplighter.cloud import cloud_scan
from lamplighter.jobs.schedules import NEED_DATABASE
from lamplighter.kernel.ledger.row import SHARDS
from lamplighter.library import cleanup
from local.stack import ROOT

PRICES: Final = {
    "Lambda, requests": (0.20 / 1e6, "AWS Lambda Pricing"),
    "Lambda, GB-seconds (arm64)": (0.0000133334, "AWS Lambda Pricing"),
    "Step Functions, Express requests": (1.00 / 1e6, "AWS Step Functions Pricing"),
    "Step Functions, Express GB-seconds": (0.06 / 3600, "AWS Step Functions Pricing"),
    "Step Functions, Standard transitions": (0.025 / 1e3, "AWS Step Functions Pricing"),
    "EventBridge Scheduler, invocations": (1.00 / 1e6, "Amazon EventBridge Pricing"),
    "DynamoDB, read request units": (0.125 / 1e6, "Amazon DynamoDB Pricing for On-Demand Capacity"),
    "DynamoDB, write request units": (0.625 / 1e6, "Amazon DynamoDB Pricing for On-Demand Capacity"),
    "S3, listing and writing requests": (0.005 / 1e3, "Amazon S3 Pricing"),
    "CloudWatch, custom metrics": (0.30, "Amazon CloudWatch Pricing"),
    "CloudWatch, alarms": (0.10, "Amazon CloudWatch Pricing"),
    "CloudWatch, GB of logs": (0.50, "Amazon CloudWatch Pricing"),
    "X-Ray, traces": (5.00 / 1e6, "AWS X-Ray Pricing"),
    "KMS, keys": (1.00, "AWS Key Management Service Pricing"),
}
"""Dollars a unit in us-east-1, first tier, and the page that says so; as of November 2026, to be checked there."""

CALL: Final = 0.008
"""Seconds that a call of an AWS API is taken to last."""
FULL_CPU_MB: Final = 1769
"""Memory at which a function has one processor (AWS Lambda, "Configure Lambda function memory")."""
MONTH: Final = 30.4 * 24 * 60
"""Minutes."""
OBJECTS: Final = 1_000_000
"""Files that the daily orphan cleanup goes through ..."""
SCAN: Final = 9.2 / 1_000_000
"""... and seconds of processor time for each (bench/README.md, "Orphan scan")."""
EXPRESS_GB: Final = 64 / 1024
"""What the small state machine is billed for (AWS Step Functions Pricing: 50 MB and its data, in steps of 64)."""
EXPRESS_STEP: Final = 0.1
"""Seconds that an execution's duration is rounded up to (AWS Step Functions Pricing)."""
PLATFORM_LOG_BYTES: Final = 600
"""What Lambda itself logs of an invocation, as JSON."""
WARM_INVOCATIONS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """A scheduled function: how often, whether it is still warm, and the AWS calls that wait for one another."""

    every_minutes: float
    warm: bool = False
    calls: int
    metrics_hours: float = 1
    """The share of a month's hours in which its metrics are written: they are billed by the hour."""


SCHEDULED: Final = {
    "timeout-checker": Scheduled(every_minutes=1, warm=True, calls=2),  # a query of each lane, at once; settings
    "schedule-watch": Scheduled(every_minutes=5, calls=13),  # settings, list, nine schedules, last runs, forget
    "orphan-cleanup": Scheduled(every_minutes=24 * 60, calls=12, metrics_hours=1 / 24),  # and the listing's, below
}

DAY: Final = 24 * 60
CLEANUPS: Final = {
    "cleanup": 30,
    "upload_cleanup": 60,
    "session_cleanup": DAY / 4,
    "token_cleanup": DAY,
    "database_cleanup": DAY,
    "audit_archive": 30.4 * DAY,
}
SCANS: Final = {"waste_scan": DAY / 4, "security_enforcement": 60, "instance_health": DAY}
"""Runs of the state machines: minutes between two of a type. The scans' are of one region, with no remedies set."""
STEPS: Final = {"cleanup": 6, "cloud-scan": 6, "cloud-region": 24}
"""Functions whose sample, a preview, stands for a step of a run, and the AWS calls in a row of each: settings, the row
twice, and what a phase asks; of a region half of what it asks, side by side."""
STORED: Final = 4
"""Requests of a scan's region, and of a report, to findings that are kept without a database."""
DOCUMENTS: Final = 5
"""Objects that a report is made of, and its batches for Security Hub."""
RUN_METRICS: Final = 2
"""Runs, Duration; the others are written where there is something to tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One invocation of a function, the start included where it starts cold."""

    cpu_seconds: float
    log_bytes: float
    metrics: int
    memory_mb: int

    def seconds(self, calls: int) -> float:
        """How long it would take on AWS."""
        return self.cpu_seconds * max(1, FULL_CPU_MB / self.memory_mb) + calls * CALL


def measure(stack: Deployed, name: str, *, warm: bool) -> Measured:
    """Run a function as its schedule does."""
    function = stack.functions[name]
    samples = []
    for _ in range(1 if warm else 5):
        with emulated(function.handler, stack.path, function.environment) as running:
            began = 0.0
            if warm:
                for _ in range(3):
                    running.invoke(function.event)
                began = running.cpu_ms()
            logged = running.log_bytes
            count = WARM_INVOCATIONS if warm else 1
            for _ in range(count):
                running.invoke(function.event)
            samples.append(((running.cpu_ms() - began) / count / 1000, (running.log_bytes - logged) / count))
            metrics = len(running.metrics())
    cpu_seconds, log_bytes = (median(values) for values in zip(*samples, strict=True))
    return Measured(cpu_seconds=cpu_seconds, log_bytes=log_bytes, metrics=metrics, memory_mb=function.memory_mb)


def quantities(measured: dict[str, Measured], template: str, *, database: bool) -> dict[str, float]:
    """How much of each of `PRICES` a month takes, with a database or without one."""

    def here(schedules: Mapping[str, Any]) -> list[str]:
        return [name for name in schedules if database or name.replace("_", "-") not in NEED_DATABASE]

    ticks = {name: MONTH / SCHEDULED[name].every_minutes for name in here(SCHEDULED)}
    seconds = {name: measured[name].seconds(SCHEDULED[name].calls) for name in ticks}
    listed = ticks.get("orphan-cleanup", 0) * OBJECTS / 1000
    if listed:
        stretched = max(1, FULL_CPU_MB / measured["orphan-cleanup"].memory_mb)
        seconds["orphan-cleanup"] += OBJECTS * SCAN * stretched + OBJECTS / 1000 * CALL
    execution = ceil(seconds["timeout-checker"] / EXPRESS_STEP) * EXPRESS_STEP  # nothing falls due, so it does not wait
    records = 3 * ticks.get("orphan-cleanup", 0)  # of a run's row in the stream: started, a heartbeat, ended
    phased = {name: MONTH / minutes for name, minutes in (CLEANUPS | SCANS).items() if name in here(CLEANUPS | SCANS)}
    steps, transitions = Counter[str](), 0.0
    for name in here(CLEANUPS):
        phases = [phase for phase in cleanup.TYPES[name].spans if database or not cleanup.PHASES[phase].database]
        steps["cleanup"] += phased[name] * (2 + len(phases))  # to begin, the phases, to finish
        transitions += phased[name] * (5 + 2 * len(phases))
        records += phased[name] * (2 + 2 * len(phases))
    for name in here(SCANS):
        reports = "report" in cloud_scan.TYPES[name].spans
        steps["cloud-region"] += phased[name]
        steps["cloud-scan"] += phased[name] * (4 + reports)  # to begin, to divide, to gather, the report, to finish
        transitions += phased[name] * (11 + 2 * reports)
        records += phased[name] * (5 + 2 * reports)
    reported = sum(phased[name] for name in here(SCANS) if "report" in cloud_scan.TYPES[name].spans)
    stored = 0 if database else STORED * (steps["cloud-region"] + reported)
    alarms = re.findall(r"Type: AWS::CloudWatch::Alarm\n( +Condition: HasDatabase\n)?", template)
    return {
        "Lambda, requests": sum(ticks.values()) + steps.total() + 2 * records,
        "Lambda, GB-seconds (arm64)": sum(
            ticks[name] * seconds[name] * measured[name].memory_mb / 1024 for name in ticks
        )
        + sum(
            steps[name] * measured[name].seconds(calls) * measured[name].memory_mb / 1024
            for name, calls in STEPS.items()
        ),
        "Step Functions, Express requests": ticks["timeout-checker"],
        "Step Functions, Express GB-seconds": ticks["timeout-checker"] * execution * EXPRESS_GB,
        "Step Functions, Standard transitions": transitions,
        "EventBridge Scheduler, invocations": sum(ticks.values()) + sum(phased.values()),
        "DynamoDB, read request units": ticks["timeout-checker"] * 2 * SHARDS * 0.5
        + ticks["timeout-checker"]
        + ticks["schedule-watch"]
        + steps.total() * 4,
        "DynamoDB, write request units": ticks["schedule-watch"] + records * 10,  # a row of 2 KB and its index entries
        "S3, listing and writing requests": listed + reported * DOCUMENTS + stored,
        "CloudWatch, custom metrics": sum(measured[name].metrics * SCHEDULED[name].metrics_hours for name in ticks)
        + RUN_METRICS * sum(min(1, 60 * runs / MONTH) for runs in phased.values()),
        "CloudWatch, alarms": len(alarms) if database else alarms.count(""),
        "CloudWatch, GB of logs": (
            sum(ticks[name] * (measured[name].log_bytes + PLATFORM_LOG_BYTES) for name in ticks)
            + sum(steps[name] * (measured[name].log_bytes + PLATFORM_LOG_BYTES) for name in STEPS)
        )
        / 1e9,
        "X-Ray, traces": sum(ticks.values()) + sum(phased.values()) if "Tracing: Active" in template else 0,
        "KMS, keys": len(re.findall(r"Type: AWS::KMS::Key\b", template)),
    }


def main() -> None:
    """Measure, compute, show."""
    template = (ROOT / "template.yaml").read_text()
    with deployed() as stack:
        measured = {name: measure(stack, name, warm=scheduled.warm) for name, scheduled in SCHEDULED.items()}
        measured |= {name: measure(stack, name, warm=False) for name in STEPS}
    show(
        "One invocation: measured processor time, and the time on AWS that follows from it",
        ["function", "how", "CPU ms", "memory MB", "calls in a row", "ms on AWS", "bytes logged", "metrics"],
        [
            [
                name,
                "warm" if scheduled.warm else "cold",
                f"{measured[name].cpu_seconds * 1000:.0f}",
                measured[name].memory_mb,
                scheduled.calls,
                f"{measured[name].seconds(scheduled.calls) * 1000:.0f}",
                f"{measured[name].log_bytes:.0f}",
                measured[name].metrics,
            ]
            for name, scheduled in (
                SCHEDULED | {name: Scheduled(every_minutes=60, calls=calls) for name, calls in STEPS.items()}
            ).items()
        ],
    )
    with_one, without = (quantities(measured, template, database=database) for database in (True, False))
    dollars = {item: (with_one[item] * price, without[item] * price) for item, (price, _) in PRICES.items()}
    rows: list[list[Any]] = [
        [item, _spelled(with_one[item]), f"{paid:.2f}", _spelled(without[item]), f"{scan_only:.2f}", PRICES[item][1]]
        for item, (paid, scan_only) in sorted(dollars.items(), key=lambda one: -one[1][0])
    ]
    together, scan_only = (f"**{sum(column):.2f}**" for column in zip(*dollars.values(), strict=True))
    show(
        f"A month of the default schedules at idle, a daily scan of {OBJECTS:,} objects, us-east-1, no free tier",
        ["item", "a month", "dollars", "without a database", "dollars", "price from"],
        [*rows, ["**together**", "-", together, "-", scan_only, ""]],
    )


def _spelled(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 10 else f"{amount:.2f}"


if __name__ == "__main__":
    main()
