"""The demo's chapters about rows and uploads: cleanups, an upload, the audit log. All asked for over HTTP."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from datetime import UTC, datetime
from typing import Any, Final

from rich.filesize import decimal

from local import demo_data, demo_tables
from local.console import say, step, table
from local.demo_jobs import Jobs
from local.demo_stage import Stage, number, short
from local.stack import ROOT

_OTHERS: Final = {
    "database_cleanup": {
        "lamplighter.system_logs": "created_at < now() - interval '90 days'",
        "onboarding_requests": "status = 'completed' AND completed_at < now() - interval '1 day'",
        "lamplighter.instances": "NOT needs_review"
        " AND account_id IN (SELECT id FROM cloud_accounts WHERE deleted_at IS NOT NULL)",
    },
    "session_cleanup": {"sessions": "expires_at < now()"},
    "token_cleanup": {
        "tokens": "expires_at < now() AND (refresh_expires_at IS NULL OR refresh_expires_at < now())",
    },
}
"""What the other cleanups are for: by table, the rows that have had their time, asked apart from the rules."""

_UPLOAD_ROWS: Final = 20_000


class Housekeeping:
    """Chapters on a stage, told in the order of the methods."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.jobs = Jobs(stage)

    def run(self, live_jobs: list[str]) -> None:
        self._cleanup(live_jobs)
        self._other_cleanups()
        self._audit_log()

    def _cleanup(self, live_jobs: list[str]) -> None:
        """`live_jobs` (ids) may be waited for by plans."""
        stage, database = self.stage, self.stage.database
        stage.chapter(
            "Cleanup",
            "Every 30 minutes one Step Functions execution goes through stuck jobs, old jobs, handled downloads and "
            "stuck plans. Here it is asked for over the jobs API, with signed requests: first what another retention "
            "of downloads would mean, then a preview, then for real.",
        )
        self.jobs.let_pass("cleanup", "database-cleanup", "session-cleanup", "token-cleanup", "audit-archive")
        with step("Rows") as current:
            plans = demo_tables.fill(database, live_jobs)
            downloads = demo_tables.count(database, "handled_downloads")
            old = demo_data.put_old_jobs(stage.aws, stage.outputs["JobsTableName"], datetime.now(UTC))
            current.say(
                f"{number(downloads)} downloads, {plans.stuck + plans.waiting} plans that wait, {len(old)} old jobs, "
                "and others"
            )
        asked = {"rule": "downloads", "keep_days": 7}
        told = self.jobs.post("/api/retention/simulate", asked)
        table(
            ("kept for", "rows to go", "bytes", "oldest", "newest"),
            [
                (kept, number(found["rows"]), decimal(found["bytes"]), _day(found["oldest"]), _day(found["newest"]))
                for kept, found in (("14 days, as it is", told["current"]), ("7 days", told["proposed"]))
            ],
            right=("rows to go", "bytes"),
        )
        preview, _ = self.jobs.finished("/api/jobs/preview", {"job_type": "cleanup"}, "Preview")
        due = demo_tables.count(database, "handled_downloads", "timestamp < now() - interval '14 days'")
        kept = downloads - due
        stage.expect(preview["result"]["old_downloads_deleted"] > 0, "The preview found no old download.")
        stage.expect(demo_tables.count(database, "handled_downloads") == downloads, "The preview removed downloads.")
        began = time.monotonic()
        job, progress = self.jobs.finished("/api/jobs/run", {"job_type": "cleanup"}, "For real", twice=True)
        took, result = time.monotonic() - began, job["result"]
        names = [name for name in result if name not in ("cleaned_job_details", "errors", "status")]
        table(
            ("result", "preview", "for real"),
            [
                ("status", preview["result"]["status"], result["status"]),
                *((name, number(preview["result"][name]), number(result[name])) for name in names),
                ("errors", *(len(one["result"]["errors"]) for one in (preview, job))),
            ],
            right=("preview", "for real"),
        )
        say(f"Progress, as it was seen: {', '.join(f'{percent} % {message}' for percent, message in progress)}.")
        self._execution(job["execution_arn"])
        left = demo_tables.count(database, "handled_downloads")
        stuck = demo_tables.count(database, "analysis_plans", "status = 'PENDING'")
        stage.expect(left == kept, f"{number(left)} downloads are left, not {number(kept)}.")
        stage.expect(stuck == plans.waiting, f"{stuck} plans are left waiting, not {plans.waiting}.")
        say(
            f"Counted apart from the job: the {number(left)} younger downloads are all there, and the {stuck} plans "
            "whose job is alive still wait."
        )
        gone = old[0].job_id
        shown = self.jobs.get(f"/api/jobs/{gone}")
        say(f"A job that left the ledger can still be asked for: {gone}, {shown['job_type']}, {shown['status']}.")
        did = f"removed {number(result['old_downloads_deleted'])} downloads, {number(result['old_jobs_deleted'])} jobs"
        stage.did("cleanup", did, took, "the API, Step Functions")

    def _execution(self, arn: str) -> None:
        """The states that the execution went through."""
        pages = self.stage.aws.client("stepfunctions").get_paginator("get_execution_history")
        events = [event for page in pages.paginate(executionArn=arn) for event in page["events"]]
        rows, entered = [], {}
        for event in events:
            details = event.get("stateEnteredEventDetails")
            if details and event["type"] == "TaskStateEntered":
                entered[details["name"]] = (event["timestamp"], json.loads(details.get("input") or "{}"))
            exited = event.get("stateExitedEventDetails")
            if exited and exited["name"] in entered:
                since, given = entered.pop(exited["name"])
                phase = given["left"][0]["name"] if exited["name"] == "Phase" and given.get("left") else ""
                rows.append((exited["name"], phase, f"{(event['timestamp'] - since).total_seconds():.2f}"))
        table((f"execution {short(arn.rpartition(':')[2], 30)}", "phase", "seconds"), rows, right=("seconds",))

    def _other_cleanups(self) -> None:
        stage, database = self.stage, self.stage.database
        stage.chapter(
            "Records that expire",
            "The same state machine, by other schedules: daily what the cloud jobs leave behind, sessions every six "
            "hours, tokens daily. Nothing that does not expire, nor what can still be refreshed.",
        )
        rows = []
        began = time.monotonic()
        for job_type, tables in _OTHERS.items():
            due = {name: demo_tables.count(database, name, where) for name, where in tables.items()}
            before = {name: demo_tables.count(database, name) for name in tables}
            job, _ = self.jobs.finished(
                "/api/jobs/run", {"job_type": job_type}, job_type.partition("_")[0].capitalize()
            )
            stage.expect(job["result"]["status"] == "completed", f"{job_type} is {job['result']['status']}.")
            for name, where in tables.items():
                after, still = demo_tables.count(database, name), demo_tables.count(database, name, where)
                stage.expect(still == 0, f"{name} still has {still} rows that should be gone.")
                stage.expect(after >= before[name] - due[name], f"{name} lost rows that should have stayed.")
                did = "flagged" if name == "lamplighter.instances" else "removed"
                rows.append((job_type, name, number(before[name]), f"{number(due[name])} {did}", number(after)))
        table(("job type", "table", "rows", "due", "left"), rows, right=("rows", "due", "left"))
        stage.did("cleanup", f"{len(_OTHERS)} other cleanups", time.monotonic() - began, "Postgres")

    def upload(self) -> None:
        """The chapter about an upload."""
        stage, s3 = self.stage, self.stage.aws.client("s3")
        stage.chapter(
            "Upload",
            f"A Moodle course log of {number(_UPLOAD_ROWS)} rows, in Spanish, with two broken lines and a cell that a "
            "spreadsheet would take for a formula, is put into the uploads bucket. Nothing else is called.",
        )
        bucket, key = stage.outputs["UploadsBucketName"], f"inputs/registros {int(time.time())}.csv"
        body = _course_log()
        began = time.monotonic()
        with step("Upload") as current:
            s3.put_object(Bucket=bucket, Key=key, Body=body)
            job = stage.wait("The upload's job", lambda: self._of_upload(key))
            current.say(f"job {job['job_id']}, {job['status']}: {job['message']}")
        stage.expect(job["status"] == "completed", f"The upload's job is {job['status']}.")
        took = time.monotonic() - began
        output = job["result"]["output_key"]
        archive = zipfile.ZipFile(io.BytesIO(s3.get_object(Bucket=bucket, Key=output)["Body"].read()))
        table(
            ("in the zip", "bytes", "begins with"),
            [(entry.filename, number(entry.file_size), _head(archive.read(entry))) for entry in archive.infolist()],
            right=("bytes",),
        )
        formula = next(line for line in archive.read("log.csv").decode().splitlines() if "HYPERLINK" in line)
        say(f"The formula is text now: {formula.partition(',')[2][:40]}…")
        listed = s3.list_objects_v2(Bucket=bucket, Prefix=key).get("KeyCount", 0)
        stage.expect(listed == 0, "The input is still there.")
        say("The input is gone; the output goes when its 24 hours are over.")
        stage.did("upload-processing", f"{number(_UPLOAD_ROWS)} rows to a zip", took, "the uploads bucket")

    def _of_upload(self, key: str) -> dict[str, Any] | None:
        for brief in self.jobs.get("/api/jobs?job_type=upload_processing&limit=5")["jobs"]:
            job = self.jobs.get(f"/api/jobs/{brief['job_id']}")
            if key in job.get("input_keys", ()) and job.get("finished_at"):
                return job
        return None

    def _audit_log(self) -> None:
        stage, database = self.stage, self.stage.database
        stage.chapter(
            "Audit log",
            "What is older than 90 days goes to S3, an object for each day, chained by its hash to the day before. It "
            "is read back before a row is deleted; then it is read back by hand.",
        )
        before = demo_tables.count(database, "audit_log")
        began = time.monotonic()
        self.jobs.finished("/api/jobs/run", {"job_type": "audit_archive"}, "Archive")
        took, left = time.monotonic() - began, demo_tables.count(database, "audit_log")
        s3, bucket = stage.aws.client("s3"), stage.outputs["ArchiveBucketName"]
        found = s3.list_objects_v2(Bucket=bucket, Prefix="audit/")["Contents"]
        table(
            ("object", "bytes"),
            [(entry["Key"], number(entry["Size"])) for entry in found[-6:]],
            right=("bytes",),
        )
        read = subprocess.run(
            [sys.executable, "-m", "lamplighter.admin.audit_read", "--bucket", bucket, "--verify"],
            env=os.environ | stage.aws.environment | {"PYTHONPATH": str(ROOT / "functions")},
            capture_output=True,
            text=True,
            check=False,
        )
        stage.expect(read.returncode == 0, read.stderr or read.stdout)
        say(f"{number(before - left)} rows archived, {number(left)} left. audit_read --verify: {read.stdout.strip()}")
        stage.did("audit-archive", f"archived {number(before - left)} rows", took, "the archive bucket")


def _day(moment: str | None) -> str:
    return (moment or "")[:16].replace("T", " ")


def _head(content: bytes) -> str:
    """As much of the first lines as a table has room for."""
    return short(" ⏎ ".join(content.decode().splitlines()[:2]), 34)


_HEADINGS: Final = (
    "Hora,Nombre completo del usuario,Usuario afectado,Contexto del evento,Componente,Nombre evento,Descripción,Origen,"
    "Dirección IP"
)


def _course_log() -> bytes:
    parts = ("Sistema", "Foro", "Cuestionario", "Tarea", "Recurso")
    rows = [
        f'"{1 + n % 28}/03/24, {n % 24:02}:{n % 60:02}",María Pérez {n % 300},-,Curso: Química,{parts[n % 5]},'
        f"Curso visto,The user with id '{n % 300}' viewed the course.,web,10.0.{n % 250}.{n % 199}"
        for n in range(_UPLOAD_ROWS)
    ]
    rows[0] = '"1/03/24, 10:00","=HYPERLINK(""http://evil.example"")",-,Curso: Química,Foro,Mensaje,x,web,10.0.0.9'
    rows[2000] = "esto no es una fila"
    rows[3000] = rows[3000].replace("/03/24", "/13/24")
    return "\r\n".join([_HEADINGS, *rows]).encode("utf-8-sig")
