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

from rich.filesize import decimal

from local import demo_data
from local.console import console, say, step, table
from local.demo_cloud import SETTINGS, Cloud
from local.demo_evidence import Alerts, Evidence
from local.demo_housekeeping import Housekeeping
from local.demo_stage import Stage, number, reports, short
from local.servers import LocalAwsError
from local.stack import FIRST_PORT, ROOT, LocalAws

if TYPE_CHECKING:
    from lamplighter.kernel.ledger.row import Job

NOW: Final = {"min_age_hours": 0}
"""The demo's files are minutes old; by default younger ones than a day are left alone."""


class Demo:
    """One run on a deployed local AWS; the chapters are told in the order of the methods."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.aws, self.database, self.outputs = stage.aws, stage.database, stage.outputs
        self.bucket = self.outputs["MediaBucketName"]
        self.jobs_table = self.outputs["JobsTableName"]
        self.evidence = Evidence(aws=self.aws, outputs=self.outputs)
        self.alerts = Alerts(self.aws, self.outputs["AlertsTopicArn"])

    def run(self) -> None:
        cloud, housekeeping = Cloud(self.stage), Housekeeping(self.stage)
        live, before = self._fill(cloud)
        preview = self._preview()
        self._governor(before)
        cleanup = self._cleanup(preview, before)
        self._undo(cleanup, before)
        housekeeping.upload()
        cloud.run()
        self._stuck_jobs(live)  # by now the checker's schedule has come round
        alive = [job.job_id for job in live.others if job.status == "running"]
        housekeeping.run(alive[:20])
        self._schedules()
        self._settings()
        self._history()
        self._close(cleanup)

    def _fill(self, cloud: Cloud) -> tuple[demo_data.LiveJobs, dict[str, str]]:
        """The live jobs, and the bucket's listing."""
        self.stage.chapter(
            "Demo data", "A media bucket with orphans in it, rows that name the other files, a job ledger."
        )
        cloud.set_up()
        wanted = demo_data.media(self.bucket)
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

    def _preview(self) -> dict[str, Any]:
        self.stage.chapter(
            "Orphan cleanup: the preview",
            "It only previews unless told otherwise, and leaves files alone that are younger than a day. Here all are, "
            "so from now on it is run by hand with min_age_hours 0.",
        )
        careful = self.stage.invoke("orphan-cleanup", {"dry_run": True})
        report = self.stage.invoke("orphan-cleanup", NOW | {"dry_run": True})
        names = ["scanned_files", "skipped_young", "skipped_not_media", "orphaned_files", "orphaned_bytes"]
        names += ["would_delete_files", "deleted_files", "duration_seconds"]
        reports(names, {"by its defaults": careful, "min_age_hours 0": report})
        (column,) = report["references"]
        say(
            f"{column['column']} holds {number(column['values'])} references in several forms: "
            f"{number(column['mapped'])} could be mapped to keys, {number(column['unmapped'])} could not."
        )
        entries = self.evidence.manifest(report["manifest"])
        odd = {entry["key"].rpartition("/")[2]: entry for entry in entries if entry["key"].startswith("odd/")}
        table(
            ("some of the orphans", "bytes", "outcome"),
            [(short(entry["key"], 44), entry["size"], entry["outcome"]) for entry in [*entries[:3], *odd.values()]],
            right=("bytes",),
        )
        say(f"The manifest names all {number(len(entries))}:")
        console.print(f"s3://{report['manifest']['bucket']}/{report['manifest']['key']}", markup=False, soft_wrap=True)
        self.stage.did(
            "orphan-cleanup", f"found {number(len(entries))} orphans", report["duration_seconds"], "its manifest in S3"
        )
        return report

    def _governor(self, before: dict[str, str]) -> None:
        self.stage.chapter(
            "The governor",
            "Now in earnest (dry_run false), but with something wrong each time. It has to refuse, and to say why.",
        )
        earnest: dict[str, Any] = {**NOW, "dry_run": False}
        tries: dict[str, dict[str, Any]] = {
            "a table that is empty": {"references": [{"table": "demo_empty", "column": "storage_key"}]},
            "paths of another server": {"references": [{"table": "demo_other_server", "column": "path"}]},
            "a column that is not there": {"references": [{"table": "media_files", "column": "path"}]},
            "a misspelt parameter": {"dry-run": False},
        }
        began = time.monotonic()
        self.database.run("DROP TABLE IF EXISTS demo_empty, demo_other_server")
        self.database.run("CREATE TABLE demo_empty (storage_key text)")
        self.database.run(
            "CREATE TABLE demo_other_server AS SELECT '/srv/old/' || id || '.jpg' AS path FROM media_files LIMIT 5000"
        )
        try:
            answers = [(what, self.stage.refusal("orphan-cleanup", earnest | event)) for what, event in tries.items()]
        finally:
            self.database.run("DROP TABLE demo_empty, demo_other_server")
        table(("what was wrong", "the answer"), answers, lines=True)
        self.stage.expect(self._listing() == before, "The governor refused, but the bucket has changed.")
        say(f"The bucket still holds the same {number(len(before))} objects.")
        self.stage.did("orphan-cleanup", f"refused {len(answers)} times", time.monotonic() - began, "the dead letters")

    def _cleanup(self, preview: dict[str, Any], before: dict[str, str]) -> dict[str, Any]:
        self.stage.chapter("Orphan cleanup: for real", "The same as the preview, with dry_run false.")
        report = self.stage.invoke("orphan-cleanup", NOW | {"dry_run": False})
        names = ["orphaned_files", "would_delete_files", "would_delete_bytes", "deleted_files", "deleted_bytes"]
        names += ["kept_referenced_again", "kept_changed", "failed_deletions", "duration_seconds"]
        reports(names, {"preview": preview, "for real": report})
        self.stage.expect(
            report["deleted_files"] == preview["would_delete_files"] > 0, "The deletion differs from its preview."
        )
        after = self._listing()
        stored = self.database.run("SELECT storage_key FROM media_files")
        named = {demo_data.key_of(key, self.bucket) for (key,) in stored}
        gone = before.keys() - after.keys()
        self.stage.expect(len(gone) == report["deleted_files"], "The bucket lacks other than what the report says.")
        self.stage.expect(not gone & named, "An object that a row names was deleted.")
        say(
            f"Counted apart from the job: {number(len(before))} objects before, {number(len(after))} now; of the "
            f"{number(len(named & before.keys()))} that a row names, {len(gone & named)} are gone."
        )
        did = f"deleted {number(report['deleted_files'])} files, {decimal(report['deleted_bytes'])}"
        self.stage.did("orphan-cleanup", did, report["duration_seconds"], "system_logs")
        return report

    def _undo(self, cleanup: dict[str, Any], before: dict[str, str]) -> None:
        self.stage.chapter("Undo", "The job's id is enough to bring all of it back: first a preview, then for real.")
        event = {"job_id": cleanup["job_id"]}
        preview = self.stage.invoke("undo", event)
        report = self.stage.invoke("undo", event | {"dry_run": False})
        again = self.stage.invoke("undo", event | {"dry_run": False})
        names = ["would_restore_files", "restored_files", "restored_bytes", "already_restored", "left_alone"]
        names += ["not_restorable", "duration_seconds"]
        reports(names, {"preview": preview, "for real": report, "once more": again})
        self.stage.expect(self._listing() == before, "After the undo the bucket is not as it was.")
        say(f"The bucket is as it was: {number(len(before))} objects, each with the ETag it had.")
        did = f"restored {number(report['restored_files'])} files, {decimal(report['restored_bytes'])}"
        self.stage.did("undo", did, report["duration_seconds"], "system_logs")

    def _stuck_jobs(self, live: demo_data.LiveJobs) -> None:
        stuck = [*live.stuck, live.poison]
        self.stage.chapter(
            "Stuck jobs",
            f"{len(stuck)} of the jobs are stuck, {len(live.due)} wait for a time that has come. Nobody calls the "
            "timeout checker here: its schedule runs it every 30 seconds.",
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
            f"The SSM parameter {name} overrides settings without a deployment. The timeout checker looks at it once a "
            "minute; the function `settings` applies it at once. First comes a bad value, which must change nothing, "
            "then a good one, which stops the schedule of the orphan cleanup.",
        )
        bad, good = {"media": {"max_orphan_share": 1.7}}, {"media": {"enabled": False}}
        ssm, heard = self.aws.client("ssm"), len(self.alerts.listen())

        def override(**more: Any) -> None:
            ssm.put_parameter(Name=name, Value=json.dumps({**SETTINGS, **more}), Overwrite=True)

        def alerted() -> str | None:
            return next((text for subject, text in self.alerts.listen()[heard:] if "settings" in subject), None)

        began = time.monotonic()
        try:
            with step("Bad value") as current:
                override(**bad)
                self.stage.refusal("settings", {})
                alert = self.stage.wait("The alert about the bad value", alerted)
                current.say("refused, and an alert raised")
            with step("Good value") as current:
                override(**good)
                applied = self.stage.invoke("settings", {})
                refusal = self.stage.refusal("schedules", {"schedule": "orphan-cleanup", "action": "start"})
                current.say(f"in force; switched: {', '.join(applied['switched'])}")
        finally:
            override()
            self.stage.invoke("settings", {})
        table(("override", "what came of it"), [(json.dumps(bad), alert), (json.dumps(good), refusal)], lines=True)
        say("Both are taken back.")
        self.stage.did("settings", "refused a bad setting", time.monotonic() - began, "the alerts")

    def _history(self) -> None:
        self.stage.chapter("History, metrics, alerts", "What every run leaves in Postgres, CloudWatch and SNS.")
        last = self._newest_cleanup()["job_id"]

        def caught_up() -> Sequence[Any] | None:
            ends = "SELECT FROM system_logs WHERE job_id = :job AND message = 'completed'"
            if not self.database.run(ends, job=last):
                return None
            rows: Sequence[Any] = self.database.run(
                "SELECT to_char(created_at AT TIME ZONE 'UTC', 'HH24:MI:SS'), job_type, level, message,"
                " details->>'trigger', details->>'duration_seconds' FROM system_logs ORDER BY created_at DESC LIMIT 10"
            )
            return rows

        began = time.monotonic()
        with step("History") as current:
            rows = self.stage.wait("The history", caught_up)
            ((count,),) = self.database.run("SELECT count(*) FROM system_logs")
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

    def _close(self, cleanup: dict[str, Any]) -> None:
        self.stage.chapter("In short", "The local AWS is still up, and its schedules go on.")
        table(("job", "what it did", "seconds", "where to look"), self.stage.summary, right=("seconds",))
        environment, stack = self.aws.write_environment(), self.aws.stack_name
        if environment.is_relative_to(ROOT):
            environment = environment.relative_to(ROOT)
        for line in _LOOK_FURTHER.format(
            environment=environment, stack=stack, job_id=cleanup["job_id"], **self.outputs
        ).splitlines():
            console.print(line, style="dim" if line.startswith("  #") else "cyan", markup=False, soft_wrap=True)
        say("\ndocs/operations.md tells the rest. make down stops the local AWS and forgets its data.")

    # -- looking ------------------------------------------------------------------------------------------------------

    def _newest_cleanup(self) -> dict[str, Any]:
        answer = self.stage.invoke("job-control", {"action": "list", "job_type": "orphan_cleanup", "limit": 1})
        job: dict[str, Any] = answer["jobs"][0]
        return job

    def _listing(self) -> dict[str, str]:
        return demo_data.listing(self.aws, self.bucket)


_LOOK_FURTHER: Final = """\
  source {environment}
  call() {{ sam remote invoke "$1" --stack-name {stack} --event "$2"; }}

  # jobs: the newest of a type, one of them, the dead letters
  call JobControlFunction '{{"action": "list", "job_type": "sync"}}'
  call JobControlFunction '{{"action": "show", "job_id": "{job_id}"}}'
  call JobControlFunction '{{"action": "dead_letters"}}'

  # an orphan cleanup of your own; what runs wrote down (with the AWS CLI)
  call OrphanCleanupFunction '{{"base_path": "odd", "min_age_hours": 0}}'
  aws s3 ls --recursive s3://{ArchiveBucketName}/manifests/

  # history; logs, as they come
  psql "$DATABASE_URL" -c 'SELECT * FROM system_logs ORDER BY created_at DESC'
  sam logs --stack-name {stack} --name TimeoutCheckerFunction"""


def _count(jobs: Sequence[Job], status: str) -> int:
    return sum(job.status == status for job in jobs)


def _form(stored: str) -> str:
    """How a row of the demo spells its key, in words."""
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
