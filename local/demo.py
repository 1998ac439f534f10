"""`make run`: the whole of Lamplighter on the local AWS, with data that means something. Every number is read back.

It leaves the local AWS up, to be looked at. A second run starts from what the first left.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from local import demo_data
from local.console import console, say, step, table
from local.demo_cloud import Cloud
from local.demo_data import Media
from local.demo_evidence import Alerts, Evidence
from local.demo_housekeeping import Housekeeping
from local.demo_orphans import Orphans
from local.demo_stage import Stage, number, short
from local.servers import LocalAwsError
from local.stack import FIRST_PORT, ROOT, LocalAws

if TYPE_CHECKING:
    from lamplighter.kernel.ledger.row import Job
    from lamplighter.kernel.schedules import Schedule

OLD_NAMES: Final = {"orphan_cleanup_enabled": False, "orphan_cleanup_scan_interval_hours": 12}
"""What an operator of version 0.1 may have left in the SSM parameter."""


class Demo:
    """One run on a deployed local AWS; the chapters come in the order of the methods."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.aws, self.database, self.outputs = stage.aws, stage.database, stage.outputs
        self.bucket = self.outputs["MediaBucketName"]
        self.jobs_table = self.outputs["JobsTableName"]
        self.evidence = Evidence(aws=self.aws, outputs=self.outputs)
        self.alerts = Alerts(self.aws, self.outputs["AlertsTopicArn"])

    def run(self) -> None:
        cloud, housekeeping = Cloud(self.stage), Housekeeping(self.stage)
        wanted = demo_data.media(self.bucket)
        live, before = self._fill(cloud, wanted)
        cleanups = Orphans(self.stage).run(wanted, before)
        housekeeping.upload()
        cloud.run()
        self._stuck_jobs(live)  # by now the checker's schedule has come round
        alive = [job.job_id for job in live.others if job.status == "running"]
        housekeeping.run(alive[:20])
        self._schedules()
        self._settings()
        self._history()
        self._close(cleanups[-1])

    def _fill(self, cloud: Cloud, wanted: Sequence[Media]) -> tuple[demo_data.LiveJobs, dict[str, str]]:
        """The live jobs, and the bucket's listing."""
        self.stage.chapter(
            "Demo data", "A media bucket with orphans in it, rows that name the other files, a job ledger."
        )
        cloud.set_up()
        with step("Objects", total=len(wanted)) as current:
            put, before = demo_data.put_objects(self.aws, self.bucket, wanted, current.advance)
            current.say(f"{number(put)} put")
        with step("Rows") as current:
            current.say(f"{number(demo_data.insert_references(self.database, wanted))} inserted")
        with step("Jobs", total=demo_data.JOBS) as current:
            live = demo_data.put_jobs(self.aws, self.jobs_table, datetime.now(UTC), current.advance)
            current.say(f"{len(live.all())} alive, the rest is history")
        stored = self.database.run("SELECT storage_key FROM media_files")
        forms = sorted(Counter(_form(key) for (key,) in stored).items())
        pages = self.aws.client("dynamodb").get_paginator("scan").paginate(TableName=self.jobs_table, Select="COUNT")
        items = sum(page["Count"] for page in pages)
        table(
            ("what", "where", "how many"),
            [
                ("objects", f"s3://{self.bucket}", number(len(before))),
                *((f"rows: {form}", "Postgres, media_files.storage_key", number(count)) for form, count in forms),
                ("jobs, and a few marks", self.jobs_table, number(items)),
            ],
            right=("how many",),
        )
        return live, before

    def _stuck_jobs(self, live: demo_data.LiveJobs) -> None:
        stuck = [*live.stuck, live.poison]
        self.stage.chapter(
            "Stuck jobs",
            f"{len(stuck)} of the jobs are stuck, {len(live.due)} wait for a time that has come. Nobody calls the "
            "timeout checker here: the stream of the table wakes it, and its schedule once a minute.",
        )

        def settled() -> list[Job] | None:
            found = demo_data.read_jobs(self.aws, self.jobs_table, stuck)
            due = demo_data.read_jobs(self.aws, self.jobs_table, live.due)
            over = all(new.rescues != old.rescues for new, old in zip(found, stuck, strict=True))
            return found if over and all(job.released for job in due) else None

        began = time.monotonic()
        with step("Checker") as current:
            jobs = self.stage.wait("The timeout checker's schedule", settled)
            current.say(f"{len(jobs)} expired, {len(live.due)} that were due released")
        groups: dict[tuple[str, str], list[Job]] = {}
        for job in jobs:
            groups.setdefault((job.job_type, job.errors[-1].message), []).append(job)
        table(
            ("job type", "jobs", "retried", "failed", "which timeout fired"),
            [
                (kind, len(found), _count(found, "pending"), _count(found, "failed"), message)
                for (kind, message), found in sorted(groups.items())
            ],
            right=("jobs", "retried", "failed"),
        )
        self.stage.expect(
            all(len(new.rescues) == len(old.rescues) + 1 for new, old in zip(jobs, stuck, strict=True)),
            "A stuck job was rescued more than once.",
        )
        dead = [job for job in jobs if job.dead_letter]
        table(
            ("failed for good", "job type", "attempt", "rescues", "why"),
            [
                (job.job_id, job.job_type, f"{job.attempt} of {job.max_attempts}", len(job.rescues), job.dead_letter)
                for job in dead
            ],
            right=("attempt", "rescues"),
        )
        did = f"retried {len(jobs) - len(dead)}, failed {len(dead)} for good"
        self.stage.did("timeout-checker", did, time.monotonic() - began, "the dead letters")
        self._redrive(live.poison)

    def _redrive(self, poison: Job) -> None:
        began = time.monotonic()
        made = self.stage.invoke("job-control", {"action": "redrive", "job_id": poison.job_id})

        def ended() -> dict[str, Any] | None:
            job = self.stage.invoke("job-control", {"action": "show", "job_id": made["job_id"]})
            return job if job.get("finished_at") else None

        with step("Redrive") as current:
            job = self.stage.wait("The end of the redriven job", ended)
            current.say(f"now job {job['job_id']}, {job['status']}")
        self.stage.expect(job["status"] == "completed", f"The redriven job is {job['status']}.")
        say("The dispatcher started the redriven job's Lambda; the old row names the new one, and the other way round.")
        self.stage.did("job-control", "redrove the poison job", time.monotonic() - began, "job-control, show")

    def _schedules(self) -> None:
        self.stage.chapter(
            "Schedules",
            "The orphan cleanup's next tick is up to a day away. So one more is ordered, two seconds from now, with "
            "the same target, role and input; then the same tick is delivered a second time.",
        )
        scheduler, group = self.aws.client("scheduler"), self.outputs["ScheduleGroupName"]
        daily = scheduler.get_schedule(GroupName=group, Name=f"{self.aws.stack_name}-orphan-cleanup")
        tick = {"GroupName": group, "Name": f"{self.aws.stack_name}-demo-tick"}
        with contextlib.suppress(scheduler.exceptions.ResourceNotFoundException):
            scheduler.delete_schedule(**tick)  # of a run that was interrupted
        at = f"{datetime.now(UTC) + timedelta(seconds=2):%Y-%m-%dT%H:%M:%S}"
        scheduler.create_schedule(
            **tick,
            ScheduleExpression=f"at({at})",
            FlexibleTimeWindow={"Mode": "OFF"},
            ActionAfterCompletion="DELETE",
            Target={name: daily["Target"][name] for name in ("Arn", "RoleArn", "Input")},
        )

        def ran() -> dict[str, Any] | None:
            job = self._newest_cleanup()
            return job if job["trigger"] == "schedule" and job["created_at"] >= at and job.get("finished_at") else None

        began = time.monotonic()
        with step("First tick") as current:
            job = self.stage.wait("The ordered tick", ran)
            current.say(f"job {job['job_id']}, {job['status']}")
        with step("Same tick") as current:
            again = self.stage.invoke("orphan-cleanup", {"schedule": "orphan-cleanup", "scheduled_time": f"{at}Z"})
            current.say(f"{again['status']}: {again['reason']}")
        self.stage.expect(again.get("job_id") == job["job_id"], "The same tick ran twice.")
        seconds = time.monotonic() - began
        table(("schedule", "expression", "state", "last run, UTC"), list(self.evidence.schedules()))
        counts = ("expired", "retried", "failed", "released", "overdue")
        table(("checker ran at, UTC", *counts), self.evidence.checker_passes(self.stage.began)[-5:], right=counts)
        self.stage.did("orphan-cleanup", "ran once for a tick sent twice", seconds, "the schedules")

    def _settings(self) -> None:
        name = self.outputs["SettingsParameterName"]
        self.stage.chapter(
            "Settings at run time",
            f"The SSM parameter {name} overrides settings without a deployment. The timeout checker reads it once a "
            "minute; the function `settings` applies it at once. A bad document changes nothing. Names of version 0.1 "
            "are still read.",
        )
        heard, declared = len(self.alerts.listen()), self.stage.settings["media"]
        bad = {"media": declared | {"max_orphan_share": 1.7}}

        def alerted() -> str | None:
            return next((text for subject, text in self.alerts.listen()[heard:] if "settings" in subject), None)

        began = time.monotonic()
        before = self.evidence.schedule("orphan-cleanup").expression
        with self.stage.overridden():
            with step("Bad value") as current:
                self.stage.refusal_of(lambda: self.stage.override(self.stage.settings | bad))
                alert = self.stage.wait("The alert about the bad value", alerted)
                current.say("refused, and an alert raised")
            with step("Old names") as current:
                applied = self.stage.override(self.stage.settings | OLD_NAMES)
                current.say(f"in force; schedules switched: {', '.join(applied['switched'])}")
            effective = self.evidence.effective_settings()
            during = self.evidence.schedule("orphan-cleanup")
            refusal = self.stage.refusal("schedules", {"schedule": "orphan-cleanup", "action": "start"})
        after = self.evidence.schedule("orphan-cleanup")
        say(f"The alert: {alert}")
        media = {field: effective["media"][field] for field in ("enabled", "scan_interval_hours")}
        sections = ", ".join(effective)
        table(
            ("what", "is"),
            [
                ("the override", json.dumps(OLD_NAMES)),
                ("the document in the jobs table", json.dumps({"media": media})),
                ("its sections and switches", sections),
                ("the schedule", f"{before} -> {during.expression}, {_state(during)}"),
                ("to start it now", refusal),
                ("taken back", f"{after.expression}, {_state(after)}"),
            ],
            lines=True,
        )
        self.stage.expect(media == {"enabled": False, "scan_interval_hours": 12}, f"The document says {media}.")
        self.stage.expect(
            (during.expression, during.enabled, after.expression, after.enabled)
            == ("rate(12 hours)", False, before, True),
            "The schedule is not as the settings say.",
        )
        self.stage.did("settings", "refused a bad setting", time.monotonic() - began, "the alerts")

    def _history(self) -> None:
        self.stage.chapter("History, metrics, alerts", "What every run leaves in Postgres, CloudWatch and SNS.")
        last = self._newest_cleanup()["job_id"]

        def caught_up() -> Sequence[Any] | None:
            ends = "SELECT FROM lamplighter.system_logs WHERE job_id = :job AND message = 'completed'"
            if not self.database.run(ends, job=last):
                return None
            rows: Sequence[Any] = self.database.run(
                "SELECT to_char(created_at AT TIME ZONE 'UTC', 'HH24:MI:SS'), job_type, level, message,"
                " details->>'trigger', details->>'duration_seconds'"
                " FROM lamplighter.system_logs ORDER BY created_at DESC LIMIT 10"
            )
            return rows

        began = time.monotonic()
        with step("History") as current:
            rows = self.stage.wait("The history", caught_up)
            ((count,),) = self.database.run("SELECT count(*) FROM lamplighter.system_logs")
            current.say(f"{number(count)} rows in system_logs, the newest of them:")
        self.stage.did("history", f"keeps {number(count)} starts and ends", time.monotonic() - began, "system_logs")
        table(
            ("at, UTC", "job type", "level", "message", "trigger", "seconds"),
            [(at, kind, level, short(message, 28), by, took or "") for at, kind, level, message, by, took in rows],
            right=("seconds",),
        )
        measures = ("runs", "failures", "items", "bytes", "longest")
        table(("metrics, 12 hours", *measures), list(self.evidence.job_metrics()), right=measures)
        told = Counter(subject for subject, _ in self.alerts.listen())
        table(("alerts since this demo began", "times"), list(told.items()), right=("times",))

    def _close(self, job_id: str) -> None:
        self.stage.chapter("In short", "The local AWS is still up, and its schedules go on.")
        table(("job", "what it did", "seconds", "where to look"), self.stage.summary, right=("seconds",))
        environment, stack = self.aws.write_environment(), self.aws.stack_name
        if environment.is_relative_to(ROOT):
            environment = environment.relative_to(ROOT)
        for line in _LOOK_FURTHER.format(
            environment=environment, stack=stack, job_id=job_id, **self.outputs
        ).splitlines():
            console.print(line, style="dim" if line.startswith("  #") else "cyan", markup=False, soft_wrap=True)
        say("\ndocs/operations.md tells the rest. make down stops the local AWS and forgets its data.")

    # -- looking ------------------------------------------------------------------------------------------------------

    def _newest_cleanup(self) -> dict[str, Any]:
        answer = self.stage.invoke("job-control", {"action": "list", "job_type": "orphan_cleanup", "limit": 1})
        job: dict[str, Any] = answer["jobs"][0]
        return job


_LOOK_FURTHER: Final = """\
  source {environment}
  call() {{ sam remote invoke "$1" --stack-name {stack} --event "$2"; }}

  # jobs: the newest of a type, one of them, the dead letters
  call JobControlFunction '{{"action": "list", "job_type": "sync"}}'
  call JobControlFunction '{{"action": "show", "job_id": "{job_id}"}}'
  call JobControlFunction '{{"action": "dead_letters"}}'

  # a preview of your own; what runs wrote down (with the AWS CLI)
  call OrphanCleanupFunction '{{"base_path": "odd", "min_age_hours": 0, "dry_run": true}}'
  aws s3 ls --recursive s3://{ArchiveBucketName}/manifests/

  # history; logs, as they come
  psql "$DATABASE_URL" -c 'SELECT * FROM lamplighter.system_logs ORDER BY created_at DESC'
  sam logs --stack-name {stack} --name TimeoutCheckerFunction"""


def _count(jobs: Sequence[Job], status: str) -> int:
    return sum(job.status == status for job in jobs)


def _state(schedule: Schedule) -> str:
    return "enabled" if schedule.enabled else "disabled"


def _form(stored: str) -> str:
    """How a row of the demo spells its key, in words."""
    if demo_data.HOST in stored:
        return f"pictures at {demo_data.HOST}"
    if stored.startswith(demo_data.PREFIX):
        return f"with the prefix {demo_data.PREFIX}"
    if "://" in stored:
        return f"{stored.partition('://')[0]}:// URLs"
    return "leading slash" if stored.startswith("/") else "plain keys"


def main() -> None:
    sys.path.insert(0, str(ROOT / "functions"))  # the package that the functions are made of
    run(LocalAws(first_port=int(os.environ.get("LOCAL_PORT") or FIRST_PORT)))


def run(aws: LocalAws) -> None:
    """Bring `aws` up and show everything; exits with a sentence and status 1 when something is not as it should be."""
    from botocore.exceptions import BotoCoreError, ClientError
    from pg8000.native import Connection, Error

    began = time.monotonic()
    try:
        aws.start()
        aws.deploy()
        with Connection("postgres", host="127.0.0.1", port=aws.first_port + 1, database="lamplighter") as database:
            Demo(Stage(aws, database)).run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (LocalAwsError, BotoCoreError, ClientError, Error, OSError) as error:
        console.print(f"\n{error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from None
    console.print(f"All of it took {time.monotonic() - began:.0f} seconds.")


if __name__ == "__main__":
    main()
