"""A bucket as a preflight sees it: can it be listed, does it keep what is deleted, for how long, and who cleans it.

It only reads. Only a run that deletes shows whether objects may be deleted (REQUIREMENTS O4, S5, S10).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from lamplighter.deletion import versioning
from lamplighter.kernel.preflight import Item, Severity, explained, sentence

_ELSEWHERE: Final = frozenset(
    {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
"""Error codes of a request that went to another region than the bucket's."""
_DENIED: Final = frozenset({"AccessDenied", "403", "Forbidden", "AllAccessDisabled"})
_ABSENT: Final = frozenset({"NoSuchBucket", "404"})


def listing_problem(s3: Any, bucket: str) -> tuple[str, str] | None:
    """Why the bucket cannot be listed and what to do, or None."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        code = str(error.response["Error"]["Code"])
        if code in _ABSENT:
            return f"There is no bucket {bucket}.", "Correct the name in the deployment."
        if code in _ELSEWHERE:
            region = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region")
            where = f"in {region}" if region else "in another region"
            return (
                f"The bucket {bucket} is {where}, not in that of the stack.",
                "Deploy the stack in the bucket's region.",
            )
        if code in _DENIED:
            return f"The bucket {bucket} may not be listed ({code}).", "Allow s3:ListBucket in the bucket's policy."
        return sentence(f"The bucket {bucket} cannot be listed: {error}"), "Correct what the sentence names."
    except BotoCoreError as error:
        return sentence(f"The bucket {bucket} cannot be reached: {error}"), "Check the network, and the S3 endpoint."
    return None


def undo_items(s3: Any, bucket: str, folder: str, *, name: str, days: int, severity: Severity) -> Iterator[Item]:
    """What keeps undo from restoring objects below `folder` for so many days.

    Args:
        s3: the client.
        bucket: whose objects are to be deleted.
        folder: that is cleaned, empty for the whole bucket.
        name: of the items.
        days: for how long undo is promised.
        severity: of a bucket without versions, whose deletions are refused.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    if found := versioning.problem(s3, bucket):
        yield Item(
            severity=severity,
            name=name,
            sentence=found,
            advice="Switch versioning on, or set media.allow_unversioned to delete without undo.",
        )
    try:
        s3.list_object_versions(Bucket=bucket, MaxKeys=1)
    except (ClientError, BotoCoreError) as error:
        yield Item(
            severity=Severity.WARNING,
            name=name,
            sentence=f"Undo cannot list versions and delete markers. {explained(error)}",
            advice="Allow s3:ListBucketVersions in the bucket's policy.",
        )
    try:
        rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket).get("Rules", [])
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
            yield Item(
                severity=Severity.WARNING,
                name=name,
                sentence=f"For how long the bucket keeps deleted files is unknown. {explained(error)}",
                advice="Allow s3:GetLifecycleConfiguration in the bucket's policy.",
            )
        return
    for sentence_, advice in shortened(rules, folder, days):
        yield Item(severity=Severity.WARNING, name=name, sentence=sentence_, advice=advice)


def shortened(rules: Sequence[Mapping[str, Any]], folder: str, days: int) -> Iterator[tuple[str, str]]:
    """Lifecycle rules that take earlier what undo needs, each as a sentence and what to do.

    A rule that keeps a number of newer noncurrent versions leaves the one that undo restores.
    """
    for rule in rules:
        if rule.get("Status") != "Enabled" or not _overlaps(_prefix(rule), folder):
            continue
        noncurrent = rule.get("NoncurrentVersionExpiration", {})
        kept = noncurrent.get("NoncurrentDays")
        if kept is not None and kept < days and not noncurrent.get("NewerNoncurrentVersions"):
            called = rule.get("ID") or "without a name"
            yield (
                f"The lifecycle rule {called} removes deleted files permanently after {kept} days; undo is promised "
                f"for {days}.",
                f"Set NoncurrentDays to at least {days}, or deploy with a smaller UndoDays.",
            )


def _prefix(rule: Mapping[str, Any]) -> str:
    """Below what the rule works; a filter by tag or size alone works anywhere."""
    chosen = rule.get("Filter", {})
    return str(rule.get("Prefix") or chosen.get("Prefix") or chosen.get("And", {}).get("Prefix") or "")


def _overlaps(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
