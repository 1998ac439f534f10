"""Whether a bucket keeps what is deleted from it, asked before the first deletion (REQUIREMENTS S5).

In a versioned bucket a deletion adds a delete marker, and undo removes the marker. Without versioning a deletion is
final, with suspended versioning it overwrites, and with MFA delete only a person with a device may remove a marker.
"""

from __future__ import annotations

from typing import Any

from lamplighter.kernel.errors import Permanent


def problem(s3: Any, bucket: str) -> str | None:
    """Why undo could not restore what is deleted from the bucket now, as a sentence, or None. Previews report it."""
    try:
        answer = _versioning(s3, bucket)
    except Permanent as error:
        return str(error)
    status = answer.get("Status")
    if status != "Enabled":
        state = "suspended" if status == "Suspended" else "off"
        return f"Versioning of {bucket} is {state}, so undo could not restore its files: switch it on."
    if answer.get("MFADelete") == "Enabled":
        return f"{bucket} has MFA delete, so undo could not remove its delete markers: switch MFA delete off."
    return None


def has_mfa_delete(s3: Any, bucket: str) -> bool:
    """Whether only a person with a device may remove a delete marker.

    Raises:
        Permanent: there is no such bucket, or it may not be asked.
    """
    return bool(_versioning(s3, bucket).get("MFADelete") == "Enabled")


def _versioning(s3: Any, bucket: str) -> Any:
    from botocore.exceptions import ClientError

    try:
        return s3.get_bucket_versioning(Bucket=bucket)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in {"AccessDenied", "403"}:
            sentence = f"Whether {bucket} is versioned cannot be read: allow s3:GetBucketVersioning on it."
        elif code == "NoSuchBucket":
            sentence = f"There is no bucket {bucket}."
        else:
            raise
    raise Permanent(sentence)


def demand_versioned(s3: Any, bucket: str, *, allow_unversioned: bool = False) -> None:
    """Ask before an earnest run deletes anything.

    Args:
        s3: the client.
        bucket: whose objects are to be deleted.
        allow_unversioned: the setting by which an owner does without undo.

    Raises:
        Permanent: undo could not restore what would be deleted.
    """
    if not allow_unversioned and (found := problem(s3, bucket)):
        raise Permanent(f"{found} Nothing was deleted. To delete without undo, set allow_unversioned to true.")
