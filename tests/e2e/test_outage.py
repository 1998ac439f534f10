"""The database goes away in mid-run (REQUIREMENTS A7, B10, K5, K9)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from lamplighter.kernel.ledger.row import Status
from tests.e2e.deployed import Deployed, FunctionFailed, Shelf, Turnstile, eventually


def test_a_database_that_goes_away_deletes_nothing_and_is_caught_up_with(
    stack: Deployed, shelf: Shelf, background: Callable[..., Future[Any]]
) -> None:
    """FAILURES 8: no answer is not "no reference". The run is retried, the history is late, and no start is."""
    orphans = shelf.put("a.jpg", "b.jpg")
    kept = shelf.put("kept.jpg")
    shelf.refer("kept.jpg")
    before, server = len(_refusals(stack)), stack.aws.postgres()
    with Turnstile(stack.engine, shelf.name) as turnstile:
        run = background(shelf.clean)
        turnstile.wait()  # first reading
        turnstile.step()  # second reading
        turnstile.step()  # re-check
        server.stop()
        try:
            with pytest.raises(FunctionFailed, match=r"DatabaseUnavailable: The database .*"):
                run.result(30)
            assert shelf.keys() == orphans | kept
            (row,) = shelf.jobs()
            assert (row.status, row.attempt, row.errors[0].reason) == (Status.PENDING, 2, "error")
            assert row.errors[0].type == "DatabaseUnavailable"

            other = stack.seed("orphan_cleanup", target="lambda:orphan-cleanup", payload=shelf.params, max_attempts=1)
            failed = stack.becomes(other.job_id, "failed")  # it was started, though there is no database
            assert "cannot be reached" in failed.errors[0].message
            eventually(lambda: len(_refusals(stack)) > before)  # the stream's batch has to come again
            # As an attempt leaves it that dies before it has written down what it did:
            stack.client("s3").delete_object(Bucket=stack.media, Key=shelf.key("b.jpg"))
        finally:
            server.start()
    done = stack.becomes(row.job_id, "completed", "failed", checking=True)
    assert done.status is Status.COMPLETED
    assert done.result is not None
    assert (done.result["deleted_files"], done.result["already_gone"]) == (2, 0)
    assert shelf.keys() == kept
    assert stack.invoke("undo", {"job_id": row.job_id, "dry_run": False})["restored_files"] == 2
    assert shelf.keys() == orphans | kept

    history = stack.history(row.job_id, rows=4)
    assert (history[0].message, history[-1].message) == ("started, attempt 1 of 4", "completed")
    assert [log.level for log in stack.history(other.job_id, rows=2)] == ["INFO", "ERROR"]
    assert not _lost(stack)


def _refusals(stack: Deployed) -> list[dict[str, Any]]:
    """Invocations of the history that failed for want of the database."""
    events = stack.client("logs").filter_log_events(logGroupName=f"/aws/lambda/{stack.name}-history")["events"]
    return [event for event in events if "DatabaseUnavailable" in event["message"]]


def _lost(stack: Deployed) -> list[str]:
    """What the history's stream gave up."""
    sqs = stack.client("sqs")
    bodies = []
    while messages := sqs.receive_message(QueueUrl=stack.failures_url, MaxNumberOfMessages=10, VisibilityTimeout=2).get(
        "Messages"
    ):
        bodies += [message["Body"] for message in messages]
    return [body for body in bodies if "DDBStreamBatchInfo" in body]
