"""Turns a deployed stack's parameters into a document of settings: `python -m local.convert_settings --stack-name X`.

For upgrades from a version whose behaviour was a template parameter each. It reads the stack's parameters and its SSM
document with the caller's own credentials, prints the JSON document to standard output and what has to be decided to
standard error, and changes nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from local.scan import FUNCTIONS
from local.settings import OWNERS

if TYPE_CHECKING:
    from lamplighter.kernel.settings import Settings

RESOURCE: Final = "SettingsParameter"
"""The logical id of the SSM parameter, in every version."""


_DEFAULTS: Final = {
    "orphan_cleanup_max_orphan_share": "0.5",
    "retry_max_attempts": "3",
    "audit_log_keep_days": "90",
    "orphan_cleanup_max_unmapped_references": "0",
}
"""Of parameters whose default was another one, or went into something else."""


class CannotConvert(Exception):
    """The stack cannot be read, or what it holds cannot be converted; says why."""


def convert(parameters: Mapping[str, str], override: str) -> tuple[dict[str, Any], list[str]]:
    """The document that a stack's template parameters and its SSM document make, and what the owner has to decide.

    A parameter that has its default is left out.

    Raises:
        SettingsError: they are no valid settings.
    """
    from lamplighter import rules
    from lamplighter.kernel.settings import Layer, merged, read, validated

    given = {old: value for name, value in parameters.items() if (old := _old_name(name))}
    source = "the stack's parameters"
    layers = [Layer.of({old: value for old, value in given.items() if value != _DEFAULTS.get(old, "")}, source=source)]
    if deployed := parameters.get("Settings"):
        layers.append(Layer.of(read(deployed, source="the template parameter Settings"), source="Settings"))
    if '"s3"' not in override:
        layers.append(Layer.of(read(override, source="the SSM parameter"), source="the SSM parameter"))
    settings = validated(layers)
    rules.checked(settings)
    document = {
        section: _differing(fields, getattr(settings, section)) if isinstance(fields, dict) else fields
        for section, fields in merged(layers).items()
    }
    if "allow_override" in document:
        document["allow_override"] = settings.allow_override
    return {name: value for name, value in document.items() if value}, list(_warnings(settings, given))


def _old_name(parameter: str) -> str | None:
    """The flat setting that a template parameter gave: `OrphanCleanupDryRun` gave `orphan_cleanup_dry_run`."""
    from lamplighter.kernel.settings import MAX_UNMAPPED, OLD_NAMES, RETENTION_DAYS

    name = re.sub(r"(?<!^)(?=[A-Z])", "_", parameter).lower()
    return name if name in {*OLD_NAMES, MAX_UNMAPPED, RETENTION_DAYS, "allow_override"} else None


def _differing(given: Mapping[str, Any], section: Any) -> dict[str, Any]:
    """The fields of a section that are not as by default, with the values that variables hold as text made plain."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        typed = getattr(section, name)
        if typed == type(section).model_fields[name].default:
            continue
        text = name == "references" and isinstance(value, str)
        found[name] = [str(one) for one in typed] if text else value if isinstance(value, dict | list) else typed
    return found


def _warnings(settings: Settings, given: Mapping[str, str]) -> Iterator[str]:
    if settings.media.apply:
        yield "media.apply is true, because OrphanCleanupDryRun was false: the orphan cleanup goes on deleting."
    waiting = [name for name in OWNERS if not settings.rule(name).apply]
    if waiting:
        names = ", ".join(waiting)
        yield (
            f"These acted before, and only preview from now on: {names}. For each that is to act, add "
            f'{{"retention": {{"rules": {{"{waiting[0]}": {{"apply": true}}}}}}}} with its name.'
        )
    if given.get("orphan_cleanup_max_orphan_share") == "0.5":
        yield "A run refused above a share of 0.5 of orphans, and does so above 0.2 now: media.max_orphan_share."
    if given.get("retry_max_attempts") == "3":
        yield "Jobs were tried 3 times and are tried 4 times now: jobs.retry_max_attempts."


def read_stack(name: str) -> tuple[dict[str, str], str]:
    """A stack's parameters, and the text of its SSM parameter.

    Raises:
        CannotConvert: it cannot be read.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        cloudformation, ssm = boto3.client("cloudformation"), boto3.client("ssm")
        (stack,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
        resource = cloudformation.describe_stack_resource(StackName=name, LogicalResourceId=RESOURCE)
        parameter = resource["StackResourceDetail"]["PhysicalResourceId"]
        override = ssm.get_parameter(Name=parameter)["Parameter"]["Value"]
    except (BotoCoreError, ClientError) as error:
        raise CannotConvert(f"The stack {name} cannot be read: {error}") from None
    return {one["ParameterKey"]: one["ParameterValue"] for one in stack.get("Parameters", [])}, override


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 and one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m local.convert_settings",
        description="Turn a deployed stack's parameters into a document of settings. Nothing is changed.",
    )
    parser.add_argument("--stack-name", default="lamplighter")
    told = parser.parse_args(arguments)
    sys.path.insert(0, str(FUNCTIONS))
    from lamplighter.kernel.settings import SettingsError

    try:
        parameters, override = read_stack(told.stack_name)
        document, warnings = convert(parameters, override)
    except (CannotConvert, SettingsError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(document, indent=2))
    size = len(json.dumps(document, separators=(",", ":")))
    if size > 4096:
        warnings.append(
            f"The document has {size} characters, and the template parameter Settings takes 4096: put it into an "
            "object of the archive bucket, and the object's address into the SSM parameter."
        )
    for warning in warnings:
        print(f"# {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
