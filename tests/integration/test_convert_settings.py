"""A deployed stack's parameters become a document of settings (REQUIREMENTS P2)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamplighter.kernel import aws
from lamplighter.kernel.settings import parse
from local.convert_settings import convert, main

BEFORE = json.loads((Path(__file__).parents[1] / "documents" / "parameters-0.1.json").read_text())
"""Every template parameter of 0.1 that was a setting, with its default."""


def test_a_stack_with_the_defaults_of_0_1_needs_no_settings() -> None:
    document, warnings = convert(BEFORE, "{}")
    assert document == {}
    assert any(
        warning.startswith("These acted before, and only preview from now on: downloads") for warning in warnings
    )
    assert any("above 0.2 now" in warning for warning in warnings)
    assert any("4 times now" in warning for warning in warnings)


def test_what_an_owner_chose_is_kept_and_the_ssm_document_wins() -> None:
    chosen = BEFORE | {
        "OrphanCleanupDryRun": "false",
        "OrphanCleanupReferences": "a.b,c.d",
        "OrphanCleanupMaxOrphanShare": "0.4",
        "OrphanCleanupMaxUnmappedReferences": "5",
        "RetryBaseSeconds": "5",
        "RetentionDays": '{"downloads": 30}',
        "UploadCleanupIntervalMinutes": "30",
        "AuditLogKeepDays": "180",
        "CloudRemedies": '{"idle_cpu": {"action": "stop"}}',
        "AlertEmail": "a@example.com",
    }
    document, warnings = convert(chosen, '{"retry_base_seconds": 7, "allow_override": true}')
    assert document == {
        "allow_override": True,
        "jobs": {"retry_base_seconds": 7},
        "media": {
            "apply": True,
            "max_orphan_share": 0.4,
            "references": [
                {"max_unmatched": 5, "table": "a", "column": "b"},
                {"max_unmatched": 5, "table": "c", "column": "d"},
            ],
        },
        "retention": {"rules": {"downloads": {"keep_days": 30}, "audit_log": {"keep_days": 180}}},
        "uploads": {"cleanup_interval_seconds": 1800},
        "cloud": {"remedies": {"idle_cpu": {"action": "stop"}}},
    }
    settings = parse(document, source="the converted document")
    assert settings.media.references[0].max_unmatched == 5
    assert warnings[0].startswith("media.apply is true, because OrphanCleanupDryRun was false")


def test_the_command_reads_a_stack_and_prints_a_document(aws_account: None, capsys: pytest.CaptureFixture[str]) -> None:
    template = {
        "Parameters": {name: {"Type": "String", "Default": str(value)} for name, value in BEFORE.items()},
        "Resources": {
            "SettingsParameter": {
                "Type": "AWS::SSM::Parameter",
                "Properties": {"Name": "/before/settings", "Type": "String", "Value": '{"cloud_concurrency": 2}'},
            }
        },
    }
    aws.client("cloudformation").create_stack(StackName="before", TemplateBody=json.dumps(template))
    aws.client("cloudformation").get_waiter("stack_create_complete").wait(StackName="before", WaiterConfig={"Delay": 1})
    assert main(["--stack-name", "before"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"cloud": {"concurrency": 2}}
    assert "# These acted before" in said.err
    assert main(["--stack-name", "gone"]) == 2
    assert capsys.readouterr().err.startswith("The stack gone cannot be read: ")
