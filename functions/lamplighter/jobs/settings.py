"""Settings: applies the document of settings, at a deployment and manually, and validates one that is only planned.

    {}                                     applies what the template and the SSM parameter hold, now
    {"validate": {"media": {...}}}         says what would be wrong with it in the SSM parameter, and changes nothing

As the custom resource of the template it fails a deployment whose settings are bad, with the sentence that says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aws_lambda_powertools import Logger

from lamplighter.jobs import custom_resource
from lamplighter.jobs.settings_document import Applied, apply_settings, check
from lamplighter.kernel.errors import Permanent

logger = Logger()


def handler(event: Any, context: object) -> dict[str, Any]:  # noqa: ARG001 - Lambda's signature
    """Apply or validate.

    Raises:
        SettingsError: manually, the document is refused.
        Permanent: the event has another shape.
        Retryable: manually, the parameter or the table cannot be read now.
    """
    if custom_resource.is_request(event):
        return custom_resource.serve(event, physical_id="settings", work=_deploy)
    if not isinstance(event, Mapping) or event.keys() - {"validate"}:
        raise Permanent('Takes {} to apply the settings, or {"validate": {...}} to validate a document.')
    if "validate" in event:
        problem = check(event["validate"])
        return {"valid": problem is None} | ({"problem": problem} if problem else {})
    return _told(apply_settings(strict=True))


def _deploy(properties: Mapping[str, Any]) -> dict[str, Any]:
    deployed = properties.get("Settings", "")
    if not isinstance(deployed, str):
        raise Permanent("Settings: takes the JSON object as text.")
    return {"Sha256": apply_settings(deployed=deployed).sha256}


def _told(applied: Applied) -> dict[str, Any]:
    return {"changed": applied.changed, "sha256": applied.sha256, "switched": list(applied.switched)}
