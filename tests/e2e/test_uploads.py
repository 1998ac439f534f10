"""An upload in the deployed stack: put into the bucket, processed, its input gone (REQUIREMENTS D1-D4, K6)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from uuid import uuid4
from zipfile import ZipFile

import pytest

from lamplighter.kernel.ledger.row import Job, Status
from tests.e2e.deployed import LONG_AGO, Deployed, Machine, eventually

SPANISH = (
    '\ufeffHora,"Nombre completo del usuario","Usuario afectado","Contexto del evento",Componente,"Nombre evento",'
    'Descripción,Origen,"Dirección IP"\r\n'
)


class Folder:
    """Inputs of a test's own, and their jobs."""

    def __init__(self, stack: Deployed) -> None:
        self._stack = stack
        self._s3 = stack.client("s3")
        self._name = f"inputs/e2e {uuid4().hex[:8]} ñ+1"

    def put(self, name: str, body: str) -> str:
        """An input; its key."""
        key = f"{self._name}/{name}"
        self._s3.put_object(Bucket=self._stack.uploads, Key=key, Body=body.encode())
        return key

    def keys(self, prefix: str = "") -> set[str]:
        """What the bucket holds below a prefix; the inputs, if none is given."""
        listed = self._s3.list_objects_v2(Bucket=self._stack.uploads, Prefix=prefix or self._name)
        return {entry["Key"] for entry in listed.get("Contents", ())}

    def jobs(self, key: str) -> list[Job]:
        """The jobs of an input."""
        return [job for job in self._stack.of_type("upload_processing") if key in job.input_keys]

    def done(self, key: str) -> Job:
        """The job of an input, when it is done."""

        def probe() -> Job | None:
            jobs = self.jobs(key)
            return jobs[0] if jobs and jobs[0].status.terminal else None

        return eventually(probe)


@pytest.fixture
def folder(stack: Deployed) -> Iterator[Folder]:
    """A folder of inputs; nothing may be left in it."""
    folder = Folder(stack)
    yield folder
    assert not folder.keys()


def test_a_log_put_into_the_bucket_becomes_a_zip(stack: Deployed, folder: Folder) -> None:
    """D1, D3; with a key that has to be spelled with care, under the functions' own roles."""
    key = folder.put(
        "curso 7 (100%) & más.csv",
        SPANISH
        + '"13/03/24, 14:05","José Pérez",-,"Curso: 7",Cuestionario,"Módulo visto","El usuario, 12",web,10.0.0.1\r\n'
        + '"mañana","José Pérez",-,"Curso: 7",Cuestionario,"Módulo visto",x,web,10.0.0.1\r\n'
        + '"13/03/24, 14:04",@Ana,-,"Curso: 7",Sistema,"Curso visto",x,web,10.0.0.1\r\n',
    )
    job = folder.done(key)
    assert (job.status, job.attempt, job.progress, job.errors) == (Status.COMPLETED, 1, 100, ())
    assert job.result is not None
    shown = ("status", "rows", "bad_rows", "users", "components", "input")
    assert [job.result[name] for name in shown] == ["completed_with_errors", 2, 1, 2, 2, "deleted"]
    assert folder.keys(f"outputs/{job.job_id}/") == set(job.output_keys)
    body = stack.client("s3").get_object(Bucket=stack.uploads, Key=job.result["output_key"])["Body"].read()
    archive = ZipFile(io.BytesIO(body))
    rows = list(csv.DictReader(io.StringIO(archive.read("log.csv").decode(), newline="")))
    assert [(row["Time"], row["User full name"], row["Component"]) for row in rows] == [
        ("2024-03-13T14:05:00", "José Pérez", "Cuestionario"),
        ("2024-03-13T14:04:00", "'@Ana", "Sistema"),
    ]
    assert [log.message for log in stack.history(job.job_id, rows=2)] == ["started, attempt 1 of 4", "completed"]


def test_what_is_no_log_fails_with_its_sentence(folder: Folder) -> None:
    """D1, D3: at once, without retries."""
    key = folder.put("grades.csv", "Name,Grade\r\nAna,10\r\n")
    job = folder.done(key)
    assert (job.status, job.attempt, job.dead_letter) == (Status.FAILED, 1, "permanent")
    assert job.errors[0].message == (
        f"{key}: not a Moodle course log: no column is Time or User full name or Event context or Component or "
        "Event name; the columns are 'Name', 'Grade'."
    )
    assert folder.keys() == set()


def test_one_that_takes_too_long_fails_and_says_which_timeout_fired(stack: Deployed, folder: Folder) -> None:
    """D2, D3: at once, without retries, and nothing is left of it."""
    row = '"13/03/24, 14:05","José Pérez",-,"Curso: 7",Sistema,"Curso visto","El usuario 12",web,10.0.0.1\r\n'
    with stack.overriding("upload-processing", LAMPLIGHTER_UPLOAD_JOB_TIMEOUT_SECONDS="1"):
        job = folder.done(folder.put("long.csv", SPANISH + row * 1_500_000))
    assert (job.status, job.attempt, job.dead_letter) == (Status.FAILED, 1, "permanent")
    assert job.errors[0].type == "TimedOut"
    assert job.errors[0].message.startswith("uploads.job_timeout_seconds was over: after 1 s, ")
    assert folder.keys() == set() == folder.keys(f"outputs/{job.job_id}/")


def test_an_event_that_comes_twice_is_one_job(stack: Deployed, folder: Folder) -> None:
    """K6; FAILURES 15."""
    key = folder.put("twice.csv", "no log")
    job = folder.done(key)
    taken = [line for line in stack.logs("upload-intake", job.job_id) if line["message"] == "an upload is due"]
    assert len(taken) == 1
    event = {
        "time": "2026-11-22T03:00:00Z",
        "detail": {
            "bucket": {"name": stack.uploads},
            "object": {"key": key, "etag": job.payload["etag"], "sequencer": "0001"},
        },
    }
    answers = [stack.invoke("upload-intake", json.loads(json.dumps(event))) for _ in range(2)]
    assert [answer["status"] for answer in answers] == ["submitted", "duplicate"]
    second = stack.becomes(answers[0]["job_id"], "failed", "completed")
    assert second.errors[0].message == f"{key} was deleted or has been processed."
    assert len(folder.jobs(key)) == 2


def test_uploads_expire_by_the_state_machine(stack: Deployed, folder: Folder) -> None:
    """D4, D5, B11; FAILURES 18: files and live records go, the history says why."""
    done = folder.done(
        folder.put("done.csv", SPANISH + '"13/03/24, 14:05",Ana,-,x,Sistema,"Curso visto",x,web,::1\r\n')
    )
    broken = folder.done(folder.put("broken.csv", "no log"))
    fresh = folder.done(folder.put("fresh.csv", "no log either"))
    for job in (done, broken):
        stack.backdate(job.job_id, created_at=LONG_AGO, finished_at=LONG_AGO)
    report = Machine(stack, "cleanup", ("upload_cleanup",)).run()["phases"]["uploads"]
    assert report["status"] == "completed"
    moved = {item["name"]: item["outcome"] for item in report["items"] if item["kind"] == "job"}
    assert moved == {done.job_id: "completed, moved to the history", broken.job_id: "failed, moved to the history"}
    assert not folder.keys(f"outputs/{done.job_id}/")
    assert [stack.ledger.store.get(job.job_id) for job in (done, broken)] == [None, None]
    assert stack.ledger.get(fresh.job_id) == fresh
    (row,) = stack.sql("SELECT job FROM lamplighter.job_history WHERE job_id = :id", id=broken.job_id)
    assert "not a Moodle course log" in row.job["errors"][0]["message"]
    (line,) = [one for one in stack.logs("upload-expiry", "disk_freed_mb") if one["jobs_cleaned"] == 2]
    assert line["message"] == "uploads expired"
    told = [one for one in stack.logs("upload-expiry", '"JobsCleaned"') if one.get("JobsCleaned") == [2.0]]
    assert [(one["job"], one["SpaceFreed"][0] > 0) for one in told] == [("upload_processing", True)]
