"""The preflight of the stack's own buckets: the archive and the uploads. The media bucket is the orphan cleanup's."""

from __future__ import annotations

from collections.abc import Iterator

from lamplighter.deletion import buckets
from lamplighter.kernel.preflight import Item, Look, Severity, explained


def part(look: Look) -> Iterator[Item]:
    """An item on each bucket, or on what is wrong with it."""
    for name, variable, versioned in (
        ("archive bucket", "ARCHIVE_BUCKET", True),
        ("uploads bucket", "UPLOADS_BUCKET", False),
    ):
        yield from _bucket(look, name, look.environment.get(variable, ""), versioned=versioned)


def _bucket(look: Look, name: str, bucket: str, *, versioned: bool) -> Iterator[Item]:
    from botocore.exceptions import BotoCoreError, ClientError

    if problem := buckets.listing_problem(look.s3, bucket):
        yield Item(severity=Severity.BLOCKED, name=name, sentence=problem[0], advice=problem[1])
        return
    try:
        status = look.s3.get_bucket_versioning(Bucket=bucket).get("Status", "Disabled")
    except (ClientError, BotoCoreError) as error:
        yield Item(
            severity=Severity.WARNING,
            name=name,
            sentence=f"Whether {bucket} is versioned cannot be read. {explained(error)}",
            advice="Allow s3:GetBucketVersioning in the bucket's policy.",
        )
        return
    if versioned and status != "Enabled":
        sentence, advice = "manifests and archived rows that somebody overwrites are lost", "Switch versioning on."
    elif not versioned and status == "Enabled":
        sentence, advice = "uploads that are deleted stay as noncurrent versions", "Suspend versioning."
    else:
        yield Item(severity=Severity.NOTE, name=name, sentence=f"{bucket} can be listed; its versioning is {status}.")
        return
    yield Item(
        severity=Severity.WARNING,
        name=name,
        sentence=f"Versioning of {bucket} is {status}, so {sentence}.",
        advice=advice,
    )
