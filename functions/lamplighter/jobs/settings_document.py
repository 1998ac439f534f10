"""The effective document of settings: put together, validated, written to the jobs table, schedules brought in line.

    defaults < template parameter `Settings` < SSM parameter, or the S3 object that it points to   (later wins)

`apply_settings` is the only writer. The function `settings` calls it at a deployment and manually, the timeout checker
once a minute. What nobody changed costs one read of the table and one of the parameter, and loads no pydantic: the item
holds a hash of what the document was made of (`inputs`). A document that is refused changes nothing.

Writes are conditional on the item's `version`, so of two at once the later one starts over with what the first wrote.
The schedules are brought in line once for each document (`scheduled` is the hash of the last one) and at a deployment.
A schedule follows when what is wanted of it changed: `schedules` is what was wanted last. So a schedule which an
operator stopped stays stopped when other settings change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Final

from aws_lambda_powertools import Logger

from lamplighter.kernel.aws import client
from lamplighter.kernel.errors import Permanent, Retryable

if TYPE_CHECKING:
    from lamplighter.kernel.settings import Settings

logger = Logger(child=True)

KEY: Final = "settings#effective"
TRIES: Final = 10
"""How often a write that lost against another is tried again."""
MAX_DEPLOYED: Final = 4096
"""Characters of the template parameter."""
_EMPTY: Final = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a call of `apply_settings` did."""

    changed: bool = False
    """Whether it wrote a new document."""
    sha256: str = ""
    """Of the document in force; empty before the first."""
    switched: tuple[str, ...] = ()
    """The schedules that it changed."""
    refused: str | None = None
    """Why it refused a document, which is in force no more than before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What a document is made of."""

    deployed: str
    """The template parameter."""
    override: str
    """The SSM parameter."""
    etag: str = ""
    """Of the S3 object that it points to."""
    pointed: str | None = None
    """The object's text; None where it was not read, because it is as it was."""
    problem: str | None = None
    """Why the parameter or the object cannot be used."""

    @property
    def inputs(self) -> str:
        return _sha256("\0".join((self.deployed, self.override, self.etag, self.problem or "")))


def apply_settings(*, deployed: str | None = None, strict: bool = False) -> Applied:
    """Make what is given the effective document, if it changed and is valid, and bring the schedules in line.

    Args:
        deployed: the template parameter `Settings`, at a deployment; None is the one of the last deployment.
        strict: raise where a document is refused.

    Raises:
        SettingsError: at a deployment, or with `strict`: the document is refused; says which setting is wrong.
        Retryable: the parameter or the table cannot be read now, or others keep writing.
    """
    overtaken = False
    for _ in range(TRIES):
        item = _item()
        given = _gather(item.get("deployed", _EMPTY) if deployed is None else deployed or _EMPTY, item)
        in_force = item.get("sha256", "")
        known = given.inputs == item.get("inputs") or (given.inputs == item.get("refused") and not strict)
        done: Applied | None = Applied(sha256=in_force)
        if deployed is not None or not known:
            done = _replace(item, given, at_deployment=deployed is not None, strict=strict)
        elif item.get("scheduled", "") == in_force and not overtaken:
            return Applied(sha256=in_force)
        if done is None:
            continue
        if not done.sha256 or (done.refused and deployed is None):
            return done
        switched = _bring_in_line(done.sha256, at_deployment=deployed is not None, overtaken=overtaken)
        if switched is not None:
            return replace(done, switched=switched)
        overtaken = True  # the schedules are now as an older document says
    raise Retryable("The settings were not applied, because others kept writing them at the same time.")


def check(document: object) -> str | None:
    """What is wrong with a document that the SSM parameter might hold; None where nothing is.

    Raises:
        Retryable: the table or an object that it points to cannot be read now.
    """
    from lamplighter.kernel.settings import SettingsError

    try:
        _composed(_pointed(_item().get("deployed", _EMPTY), json.dumps(document), {}))
    except SettingsError as error:
        return str(error)
    return None


def _replace(item: Mapping[str, str], given: _Given, *, at_deployment: bool, strict: bool) -> Applied | None:
    """Write what is given as the effective document; None if another wrote first."""
    from lamplighter.kernel.notify import resolve
    from lamplighter.kernel.settings import SettingsError

    try:
        document = _composed(given)
    except SettingsError as error:
        # A rollback brings the parameter of the settings in force back: it must succeed, whatever an operator has put
        # into the SSM parameter meanwhile.
        rolled_back = at_deployment and given.deployed == item.get("deployed") and _is_valid(item.get("document"))
        if at_deployment and not rolled_back:
            raise
        _refuse(item, given, str(error))
        if strict:
            raise
        return Applied(sha256=item.get("sha256", ""), refused=str(error))
    sha256 = _sha256(document)
    changed = sha256 != item.get("sha256")
    new = {
        "document": document,
        "sha256": sha256,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds") if changed else item["at"],
        "deployed": given.deployed,
        "inputs": given.inputs,
        "etag": given.etag,
    }
    if "scheduled" in item and not at_deployment:
        new["scheduled"] = item["scheduled"]
    if before := _wanted_before(item):
        new["schedules"] = json.dumps(before)
    if not _put(item, new):
        return None
    if "refused" in item:
        resolve(f"settings#{item['refused']}")
    if changed:
        logger.info("settings applied", extra={"sha256": sha256})
    return Applied(changed=changed, sha256=sha256)


def _refuse(item: Mapping[str, str], given: _Given, problem: str) -> None:
    """Alert, once, and remember what was refused, so that it is looked at no more."""
    from lamplighter.kernel.notify import alert

    kept = f"those of {item['at']} stay in force" if "at" in item else "the defaults stay in force"
    alert(
        f"settings#{given.inputs}",
        subject="A bad settings document was refused",
        message=f"{problem} The document was refused as a whole; {kept}. Correct the SSM parameter "
        f"{os.environ['SETTINGS_PARAMETER']}; it is read once a minute.",
    )
    _put(item, {name: value for name, value in item.items() if name != "version"} | {"refused": given.inputs})


def _composed(given: _Given) -> str:
    """The effective document that the parts make. Raises SettingsError."""
    from lamplighter.catalogue import SETTINGS_CHECKS
    from lamplighter.kernel.settings import MAX_BYTES, Layer, SettingsError, merged, read, validated

    if given.problem:
        raise SettingsError(given.problem)
    template, parameter = "the template parameter Settings", "the settings parameter"
    if len(given.deployed) > MAX_DEPLOYED:
        raise SettingsError(f"In {template}: it takes at most {MAX_DEPLOYED} characters, got {len(given.deployed)}.")
    layers = [Layer.of(read(given.deployed, source=template), source=template)]
    if given.etag:
        parameter = f"{_pointer(given.override)}, which the settings parameter names"
        text = given.pointed if given.pointed is not None else _object_text(given.override)
    else:
        text = given.override
    layers.append(Layer.of(read(text, source=parameter), source=parameter))
    settings = validated(layers)
    for name in SETTINGS_CHECKS:
        try:
            resolve_name(name)(settings)
        except Permanent as error:
            raise SettingsError(f"In the settings: {error}") from None
    document = json.dumps(merged(layers), ensure_ascii=False, separators=(",", ":"))  # rules have an order
    try:
        size = len(document.encode())
    except UnicodeEncodeError:
        raise SettingsError("In the settings: they hold half of a surrogate pair, which is no text.") from None
    if size > MAX_BYTES:
        raise SettingsError(f"The settings together hold {size} bytes; they take at most {MAX_BYTES}.")
    return document


def _is_valid(document: str | None) -> bool:
    from lamplighter.kernel.settings import SettingsError, parse, read

    try:
        parse(read(document or "", source="the settings in force"), source="the settings in force")
    except SettingsError:
        return False
    return True


# --- What is given ---------------------------------------------------------------------------------------------------


def _gather(deployed: str, item: Mapping[str, str]) -> _Given:
    from botocore.exceptions import BotoCoreError, ClientError

    name, ssm = os.environ["SETTINGS_PARAMETER"], client("ssm")
    try:
        override = ssm.get_parameter(Name=name)["Parameter"]["Value"]
    except ssm.exceptions.ParameterNotFound:
        problem = f"The settings parameter {name} does not exist; create it, with {{}} for no settings."
        return _Given(deployed=deployed, override="", problem=problem)
    except (BotoCoreError, ClientError) as error:
        raise Retryable(f"The settings parameter {name} cannot be read: {error}") from error
    return _pointed(deployed, override, item)


def _pointed(deployed: str, override: str, item: Mapping[str, str]) -> _Given:
    """With the object that the parameter points to, if it does."""
    if '"s3"' not in override:
        return _Given(deployed=deployed, override=override)
    try:
        address = _pointer(override)
    except ValueError as error:
        return _Given(deployed=deployed, override=override, problem=f"In the settings parameter: {error}.")
    if address is None:
        return _Given(deployed=deployed, override=override)
    from botocore.exceptions import ClientError

    bucket, _, key = address.removeprefix("s3://").partition("/")
    known = item.get("etag") if item.get("inputs") else None
    condition = {"IfNoneMatch": known} if known else {}
    try:
        found = client("s3").get_object(Bucket=bucket, Key=key, **condition)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 304 and known:
            return _Given(deployed=deployed, override=override, etag=known)
        if status not in (400, 403, 404):
            raise Retryable(f"The settings at {address} cannot be read: {error}") from error
        code = error.response["Error"]["Code"]
        problem = f"In the settings parameter: {address} cannot be read ({code}); is it there?"
        return _Given(deployed=deployed, override=override, problem=problem)
    return _read_object(deployed, override, address, found)


def _read_object(deployed: str, override: str, address: str, found: Mapping[str, Any]) -> _Given:
    from lamplighter.kernel.settings import MAX_BYTES

    etag = found["ETag"]
    with found["Body"] as body:
        if found["ContentLength"] > MAX_BYTES:
            size = f"{address} holds {found['ContentLength']} bytes; settings take at most {MAX_BYTES}"
            return _Given(
                deployed=deployed, override=override, etag=etag, problem=f"In the settings parameter: {size}."
            )
        try:
            text = body.read().decode()
        except UnicodeDecodeError:
            problem = f"In the settings parameter: {address} is no JSON in UTF-8."
            return _Given(deployed=deployed, override=override, etag=etag, problem=problem)
    return _Given(deployed=deployed, override=override, etag=etag, pointed=text)


def _object_text(override: str) -> str:
    """The object again: its ETag was that of the item, but another part of the document changed."""
    address = _pointer(override) or ""
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return str(client("s3").get_object(Bucket=bucket, Key=key)["Body"].read().decode())


def _pointer(override: str) -> str | None:
    """The address that a parameter of the form `{"s3": "s3://bucket/key"}` gives; None for any other text.

    Raises:
        ValueError: it is none in the archive bucket, or does not stand alone.
    """
    try:
        value = json.loads(override)
    except (ValueError, RecursionError):
        return None  # what reads the document says what is wrong with it
    if not isinstance(value, dict) or "s3" not in value:
        return None
    address, bucket = value["s3"], os.environ["ARCHIVE_BUCKET"]
    prefix = f"s3://{bucket}/"
    if not isinstance(address, str) or not address.startswith(prefix) or len(address) <= len(prefix):
        raise ValueError(
            f"s3 takes the address of an object in the archive bucket, {prefix}<key>, got {address!r:.120}"
        )
    if len(value) > 1:
        raise ValueError("s3 stands alone; put all settings into the object that it names")
    return address


# --- The item --------------------------------------------------------------------------------------------------------


def _item() -> dict[str, str]:
    """The item's attributes as text; `version` counts its writes."""
    from botocore.exceptions import BotoCoreError, ClientError

    table = os.environ["JOBS_TABLE"]
    try:
        raw = client("dynamodb").get_item(TableName=table, Key={"pk": {"S": KEY}}, ConsistentRead=True).get("Item", {})
    except (BotoCoreError, ClientError) as error:
        raise Retryable(f"The settings cannot be read from the table {table}: {error}") from error
    return {name: next(iter(value.values())) for name, value in raw.items() if name != "pk"}


def _put(before: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Write the item unless another wrote it since it was read; whether it was written."""
    dynamodb = client("dynamodb")
    version = before.get("version")
    item = {"pk": {"S": KEY}, "version": {"N": str(int(version or 0) + 1)}}
    condition: dict[str, Any] = (
        {"ConditionExpression": "version = :version", "ExpressionAttributeValues": {":version": {"N": version}}}
        if version
        else {"ConditionExpression": "attribute_not_exists(pk)"}
    )
    try:
        dynamodb.put_item(
            TableName=os.environ["JOBS_TABLE"],
            Item=item | {name: {"S": value} for name, value in new.items()},
            **condition,
        )
    except dynamodb.exceptions.ConditionalCheckFailedException:
        return False
    return True


type _Wanted = dict[str, list[Any]]
"""Of schedules, by name: whether it is on (None where no setting says), and its expression."""


def _bring_in_line(sha256: str, *, at_deployment: bool, overtaken: bool) -> tuple[str, ...] | None:
    """Give the schedules the interval and the state that the document in force says; None if another is in force.

    Args:
        at_deployment: restore intervals, and what is off, too: CloudFormation may have written over them.
        overtaken: set everything: the schedules may be as an older document says.

    Raises:
        UnknownSchedule: the stack has none of this name.
    """
    from lamplighter.kernel.schedules import switch

    item = _item()
    if item["sha256"] != sha256:
        return None
    before, wanted = _wanted_before(item), _wanted(item["document"])
    switched = []
    for name, (on, expression) in wanted.items():
        if overtaken or before.get(name) != [on, expression]:
            changed = switch(name, on=on, expression=expression)
        else:
            changed = at_deployment and switch(name, on=False if on is False else None, expression=expression)
        switched += [name] if changed else []
    if switched:
        logger.info("schedules brought in line", extra={"switched": switched})
    marked = {name: value for name, value in item.items() if name != "version"}
    marked |= {"scheduled": sha256, "schedules": json.dumps(wanted)}
    if marked.items() <= item.items():
        return tuple(switched)
    return tuple(switched) if _put(item, marked) else None


def _wanted(document: str) -> _Wanted:
    """What a document says about the schedules. Raises SettingsError."""
    from lamplighter.jobs.schedules import expressions
    from lamplighter.kernel.no_database import has_database
    from lamplighter.kernel.settings import parse, read

    source = "the settings in force"
    settings: Settings = parse(read(document, source=source), source=source)
    on = {"orphan-cleanup": settings.media.enabled and has_database()}
    return {name: [on.get(name), expression] for name, expression in expressions(settings).items()}


def _wanted_before(item: Mapping[str, str]) -> _Wanted:
    """What the schedules were brought in line with last; nothing before the first time.

    Versions before the attribute `schedules` said only with which document.
    """
    from lamplighter.kernel.settings import SettingsError

    if "schedules" in item:
        wanted: _Wanted = json.loads(item["schedules"])
        return wanted
    if "document" not in item or item.get("scheduled") != item["sha256"]:
        return {}
    try:
        return _wanted(item["document"])
    except SettingsError:  # an earlier version took it
        return {}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
