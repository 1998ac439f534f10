"""A deployment that fails comes back: a first one to nothing, an update to the version before (REQUIREMENTS P1).

The local AWS rolls everything back, so these rules of CloudFormation are held to the template here:

- A resource whose service refuses to delete it ends the rollback in ROLLBACK_FAILED.
- A custom resource that is not answered fails after its ServiceTimeout, in a rollback, too.
- The service token of a custom resource cannot be changed.
- A rollback does not take back what a custom resource did.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.template.project import ROOT, Project

PROJECT = Project()
CUSTOM = {name: raw for name, raw in PROJECT.resources.items() if raw["Type"].startswith("Custom::")}
KEPT = {name: raw for name, raw in PROJECT.resources.items() if "DeletionPolicy" in raw}


def named(value: Any) -> Iterator[str]:
    """What a part of the template refers to, by Ref, GetAtt or Sub."""
    match value:
        case {"Ref": name}:
            yield name
        case {"Fn::GetAtt": [name, *_]}:
            yield name
        case {"Fn::GetAtt": str(name)}:
            yield name.partition(".")[0]
        case {"Fn::Sub": text}:
            parts = [text] if isinstance(text, str) else text
            yield from (name.partition(".")[0] for name in re.findall(r"\$\{([\w.:]+)\}", parts[0]))
            yield from named(parts[1:])
        case dict():
            for inner in value.values():
                yield from named(inner)
        case list():
            for inner in value:
                yield from named(inner)


def before(name: str) -> set[str]:
    """Resources that are complete before this one is begun."""
    found: set[str] = set()
    pending = [name]
    while pending:
        raw = PROJECT.resources[pending.pop()]
        explicit = raw.get("DependsOn", [])
        every = {*named(raw.get("Properties", {})), *([explicit] if isinstance(explicit, str) else explicit)}
        new = {one for one in every if one in PROJECT.resources} - found
        found |= new
        pending += new
    return found


def test_nothing_refuses_to_be_deleted_by_a_rollback() -> None:
    """A table that is protected cannot be deleted: the stack would stick in ROLLBACK_FAILED."""
    words = ("DeletionProtection", "DeletionProtectionEnabled", "TerminationProtection", "ObjectLockEnabled")
    refusing = [
        name for name, raw in PROJECT.resources.items() if any(word in raw.get("Properties", {}) for word in words)
    ]
    assert refusing == []
    assert {raw["DeletionPolicy"] for raw in KEPT.values()} == {"RetainExceptOnCreate"}
    assert KEPT.keys() >= {"JobsTable", "MediaBucket", "ArchiveBucket", "UploadsBucket"}


def test_the_table_is_protected_all_the_same() -> None:
    protection = CUSTOM["JobsTableProtection"]
    assert protection["Properties"]["Enabled"] == {"Ref": "DeletionProtection"}
    assert PROJECT.template["Parameters"]["DeletionProtection"]["Default"] == "true"
    assert "JobsTable" in before("JobsTableProtection")


def test_every_custom_resource_is_answered_from_outside_of_the_vpc() -> None:
    """A function in a VPC without a way out cannot answer, and neither the creation nor its rollback would end."""
    for name, raw in CUSTOM.items():
        (function,) = named(raw["Properties"]["ServiceToken"])
        properties = PROJECT.resources[function]["Properties"]
        assert "VpcConfig" not in properties, name
        assert properties.get("Timeout", 60) < raw["Properties"]["ServiceTimeout"] <= 3600, name


def test_nothing_fails_after_a_migration() -> None:
    """What a migration did stays when the deployment is rolled back to code that does not know it."""
    first = before("DatabaseSchema")
    kinds = ("AWS::Serverless::Function", "AWS::Serverless::StateMachine")
    code = {name for kind in kinds for name in PROJECT.of_type(kind)}
    assert code | {"EffectiveSettings", "JobsTable"} <= first
    after = {name for name in PROJECT.resources if "DatabaseSchema" in before(name)}
    assert after == set()


def test_no_partition_is_written_out() -> None:
    """REQUIREMENTS P4: `arn:aws:` names nothing in China, GovCloud or Europe's sovereign cloud."""
    files = [
        ROOT / "template.yaml",
        ROOT / "docs" / "member-account-role.yaml",
        *(ROOT / "statemachines").glob("*"),
        *(ROOT / "functions").rglob("*.py"),
    ]
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"arn:aws[:-]|\.amazonaws\.com[/\"']", line)
    ]
    assert found == []


def test_state_machines_are_given_their_partition() -> None:
    for name, properties in PROJECT.of_type("AWS::Serverless::StateMachine").items():
        assert properties["DefinitionSubstitutions"]["Partition"] == {"Ref": "AWS::Partition"}, name
        text = (ROOT / properties["DefinitionUri"]).read_text()
        assert "arn:${Partition}:states:::" in text, name


def test_a_secret_under_a_customers_key_can_be_read() -> None:
    (statement,) = [
        one for where, one in PROJECT.statements if where == "DatabasePolicy" and one["Sid"] == "DecryptSecret"
    ]
    assert statement["Action"] == "kms:Decrypt"
    assert statement["Condition"]["StringEquals"] == {
        "kms:ViaService": {"Fn::Sub": "secretsmanager.${AWS::Region}.${AWS::URLSuffix}"},
        "kms:EncryptionContext:SecretARN": {"Ref": "DatabaseSecretArn"},
    }
