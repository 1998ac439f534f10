"""Preflight: says before anything is applied what it would touch, what is missing, and what it costs (REQUIREMENTS O4).

It only reads: statements are read-only, bounded, and take no lock stronger than ACCESS SHARE; of the buckets only the
archive is written to. Its report is one page and one JSON document in the archive bucket:

    preflight/<job_id>.json                       `Document`
    preflight/<job_id>.html                       one page for people (`page`)

The parts (`catalogue.PREFLIGHTS`) run one after the other. One that fails is an item, and the others are complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from lamplighter.catalogue import PREFLIGHTS
from lamplighter.kernel.job import Params as JobParams
from lamplighter.kernel.job import Report as JobReport
from lamplighter.kernel.job import Run, job
from lamplighter.kernel.preflight import (
    Item,
    Look,
    Part,
    Severity,
    Verdict,
    explained,
    failures,
    not_reached,
    verdict,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

PREFIX: Final = "preflight/"
LIMIT: Final = timedelta(minutes=8)
"""How long all parts together may take; the function has two minutes more."""
NAMED: Final = 40
"""Items that the job's result spells out; the document has all."""


class Params(JobParams):
    """What a run takes: nothing. The settings say what is looked at."""


class Section(BaseModel):
    """What one part found."""

    title: str
    items: list[Item]


class Counts(BaseModel):
    """How many items there are of each severity."""

    blocked: int = 0
    warnings: int = 0
    notes: int = 0


class Document(BaseModel):
    """The whole report, as `preflight/<job_id>.json` has it."""

    schema_version: int = 1
    job_id: str
    generated_at: datetime
    verdict: Verdict
    counts: Counts
    sections: list[Section]
    settings: dict[str, Any] = {}
    """All proposals as one document of settings, to start from. It applies nothing."""


class Report(JobReport):
    """What the ledger keeps of a preflight."""

    verdict: Verdict
    items: Counts
    blocked: list[str] = []
    """The first items that block, as `name: sentence`."""
    warnings: list[str] = []
    """The first warnings, likewise."""
    documents: dict[str, str] = {}
    """Where `json` and `html` are, as `s3://...`; empty where the archive bucket could not be written."""


@job("preflight", params=Params, timeout=timedelta(minutes=10), singleton=True)
def handler(run: Run, params: Params) -> Report:  # noqa: ARG001 - it takes none
    """Look at everything that the jobs will use.

    What cannot be read is an item of the report, never an error of the job.
    """
    document = examine(run)
    found = [item for section in document.sections for item in section.items]
    documents, problem = _stored(document)
    if problem:
        found.append(problem)
    return Report(
        verdict=verdict([item.severity for item in found]),
        items=_counts(found),
        blocked=_named(found, Severity.BLOCKED),
        warnings=_named(found, Severity.WARNING),
        documents=documents,
    )


def examine(run: Run) -> Document:
    """The report on all parts."""
    from lamplighter.kernel.aws import client

    end = run.now() + LIMIT
    engine, host, reachable = _database()
    look = Look(
        settings=run.settings,
        now=run.now(),
        engine=engine,
        host=host,
        s3=client("s3"),
        environment=os.environ,
        left=lambda: timedelta(0) if run.stop() else end - run.now(),
    )
    sections = []
    for number, (title, name) in enumerate(PREFLIGHTS.items()):
        run.progress(95 * number // len(PREFLIGHTS), title)
        stopped = run.stop()
        if stopped == "cancelled":
            break
        items = [not_reached(title.lower())] if stopped else list(_looked_at(name, look))
        if title == "Database":
            items = [*reachable, *items]
        sections.append(Section(title=title, items=items))
    items = [item for section in sections for item in section.items]
    return Document(
        job_id=run.job_id,
        generated_at=look.now,
        verdict=verdict([item.severity for item in items]),
        counts=_counts(items),
        sections=sections,
        settings=proposed(items),
    )


def _database() -> tuple[Engine | None, str, list[Item]]:
    """The engine and its host, or why there is none."""
    from lamplighter.kernel.database import address, engine
    from lamplighter.kernel.no_database import NoDatabase

    try:
        where = address(os.environ)
        with engine().connect():
            return engine(), where.host, []
    except NoDatabase as error:
        return None, "", [Item(severity=Severity.NOTE, name="database", sentence=explained(error))]
    except failures() as error:
        advice = "Correct what the sentence names: address, secret, network or pooler. Then run the preflight again."
        return None, "", [Item(severity=Severity.BLOCKED, name="database", sentence=explained(error), advice=advice)]


def _looked_at(name: str, look: Look) -> Iterator[Item]:
    """The items of a part. Whatever ends it is an item, too."""
    part: Part = resolve_name(name)
    try:
        yield from part(look)
    except failures() as error:
        yield Item(
            severity=Severity.WARNING,
            name=name.partition(":")[0].split(".")[1],
            sentence=f"This part could not be looked at to its end. {explained(error)}",
            advice="Correct what the sentence names, then run the preflight again.",
        )


def proposed(items: list[Item]) -> dict[str, Any]:
    """All proposals as one document."""
    document: dict[str, Any] = {}
    for item in items:
        if item.settings:
            document = _merged(document, item.settings)
    return document


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Objects by name, lists one after the other without repetitions; of anything else the later."""
    result = dict(base)
    for name, value in over.items():
        before = result.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            result[name] = _merged(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            result[name] = [*before, *(one for one in value if one not in before)]
        else:
            result[name] = value
    return result


def _counts(items: list[Item]) -> Counts:
    number = {severity: sum(item.severity is severity for item in items) for severity in Severity}
    return Counts(blocked=number[Severity.BLOCKED], warnings=number[Severity.WARNING], notes=number[Severity.NOTE])


def _named(items: list[Item], severity: Severity) -> list[str]:
    chosen = [f"{item.name}: {item.sentence}" for item in items if item.severity is severity]
    more = [f"and {len(chosen) - NAMED} more in the document"] if len(chosen) > NAMED else []
    return chosen[:NAMED] + more


def _stored(document: Document) -> tuple[dict[str, str], Item | None]:
    """Write the document and its page; where they are, and what went wrong."""
    from lamplighter.kernel.aws import client
    from lamplighter.kernel.deletion import archive_bucket
    from lamplighter.preflight import page

    written = {}
    try:
        bucket = archive_bucket()
        for kind, body, content_type in (
            ("json", document.model_dump_json(indent=1), "application/json"),
            ("html", page.render(document), "text/html; charset=utf-8"),
        ):
            key = f"{PREFIX}{document.job_id}.{kind}"
            client("s3").put_object(Bucket=bucket, Key=key, Body=body.encode(), ContentType=content_type)
            written[kind] = f"s3://{bucket}/{key}"
    except failures() as error:
        return written, Item(
            severity=Severity.BLOCKED,
            name="archive bucket",
            sentence=f"The report could not be written to the archive bucket. {explained(error)}",
            advice="Allow s3:PutObject in the bucket's policy.",
        )
    return written, None
