"""`python -m local.scan`: what it prints, and how it says that it cannot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from local import scan
from local.stack import ROOT
from tests.integration.cloud_world import ACCOUNT, REGION, Cloud


@pytest.fixture
def stopped(cloud: Cloud) -> str:
    """An instance that was stopped 40 days ago, with the volume that is paid for it; without tags."""
    ec2 = boto3.client("ec2")
    mapping = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 100}}
    image = ec2.register_image(Name="base", RootDeviceName="/dev/sda1", BlockDeviceMappings=[mapping])["ImageId"]
    made = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, InstanceType="t3.micro")["Instances"][0]
    cloud.stopped(made["InstanceId"], ago=timedelta(days=40))
    cloud.asked.clear()
    return str(made["InstanceId"])


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON of a scan that went well."""
    assert scan.main(["--format", "json", *arguments]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a scan says that could not be."""
    assert scan.main(list(arguments)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err.rstrip("\n")


def test_the_command_runs_from_the_repositorys_root_with_nothing_but_its_python(cloud: Cloud, stopped: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_") or name == "PATH"}
    command = [sys.executable, "-m", "local.scan", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    lists = ["findings", "exempted", "expired_exceptions", "unknown", "errors"]
    assert list(said) == ["api_calls", "seconds", *lists]
    (found,) = [one for one in said["findings"] if one["check"] == "stopped_instances"]
    assert found.pop("evidence")["stopped_days"] == 40
    assert found.pop("monthly_usd") > 0
    assert found == {
        "check": "stopped_instances",
        "resource_id": stopped,
        "region": REGION,
        "account": ACCOUNT,
        "severity": "low",
        "confidence": 1.0,
    }
    assert said["api_calls"] == len(cloud.asked)
    assert said["unknown"] == said["errors"] == said["exempted"] == []
    assert not [name for name in cloud.asked if not re.match("Describe|List|Get", name)]


def test_a_scan_loads_nothing_that_takes_time_and_is_not_needed(cloud: Cloud) -> None:
    heavy = {"aws_lambda_powertools", "boto3", "OpenSSL", "pydantic", "rich", "sqlalchemy"}
    command = [sys.executable, "-X", "importtime", "-m", "local.scan", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "botocore.session" in loaded
    assert not heavy & loaded


def test_every_region_is_looked_at_and_counted_once(
    cloud: Cloud, stopped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    boto3.client("ec2", region_name="eu-west-1").create_volume(Size=1, AvailabilityZone="eu-west-1a")
    cloud.asked.clear()
    said = run(capsys, "--region", "eu-west-1", "--region", REGION, "--region", "eu-west-1")

    assert {one["region"] for one in said["findings"]} == {REGION, "eu-west-1"}
    assert cloud.calls()["DescribeVolumes"] == 2
    assert cloud.calls()["GetCallerIdentity"] == 1
    assert said["api_calls"] == len(cloud.asked)


def test_a_region_that_cannot_be_looked_at_is_told_and_the_others_are_looked_at(
    cloud: Cloud, stopped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.refuse_in("ap-east-1", "OptInRequired")
    said = run(capsys, "--region", REGION, "--region", "ap-east-1")

    assert stopped in {one["resource_id"] for one in said["findings"]}
    (error,) = said["errors"]
    assert (error["region"], error["account"]) == ("ap-east-1", ACCOUNT)
    assert "OptInRequired" in error["error"]


def test_who_asks_is_told_by_any_region_that_is_enabled(
    cloud: Cloud, stopped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that an account has not opted in to knows nobody, not even at STS."""
    cloud.refuse_in("me-south-1", "InvalidClientTokenId", who_asks=True)
    said = run(capsys, "--region", "me-south-1", "--region", REGION)

    assert stopped in {one["resource_id"] for one in said["findings"]}
    assert [(error["region"], error["account"]) for error in said["errors"]] == [("me-south-1", ACCOUNT)]
    assert said["api_calls"] == len(cloud.asked)


def test_what_may_not_be_read_is_unknown(cloud: Cloud, stopped: str, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.refuse("DescribeVolumes", "UnauthorizedOperation")
    said = run(capsys)

    told = [one for one in said["unknown"] if one["check"] == "unattached_volumes"]
    reason = "volumes: DescribeVolumes was refused (UnauthorizedOperation: The test says so.)"
    common = {"region": REGION, "account": ACCOUNT}
    assert told == [{"check": "unattached_volumes", "resource_id": "*", **common, "reason": reason}]
    assert "outdated_images" not in {one["check"] for one in said["unknown"]}


def test_what_is_worth_most_comes_first_then_what_is_most_severe(
    cloud: Cloud, stopped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ec2 = boto3.client("ec2")
    group = ec2.create_security_group(GroupName="open", Description="open")["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh])
    said = run(capsys)["findings"]

    assert said[0]["resource_id"] == stopped
    severities = [scan.SEVERITIES.index(one["severity"]) for one in said if one["monthly_usd"] is None]
    assert severities == sorted(severities)
    assert len(set(severities)) > 1


def test_an_exception_takes_a_finding_out_until_it_expires(
    cloud: Cloud, stopped: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "exceptions.json"
    entry = {"check": "stopped_instances", "resource": stopped, "reason": "The yearly report", "owner": "ada"}
    file.write_text(json.dumps({"exceptions": [entry | {"expires": "2999-12-31"}]}))
    said = run(capsys, "--exceptions", str(file))

    assert "stopped_instances" not in {one["check"] for one in said["findings"]}
    (one,) = said["exempted"]
    assert one["resource_id"] == stopped
    assert one["exemption"] == entry | {"expires": "2999-12-31"}

    file.write_text(json.dumps({"exceptions": [entry | {"expires": "2020-12-31"}]}))
    said = run(capsys, "--exceptions", str(file))
    assert "stopped_instances" in {one["check"] for one in said["findings"]}
    assert said["expired_exceptions"] == [entry | {"expires": "2020-12-31"}]
    assert scan.main(["--exceptions", str(file)]) == 0
    assert "Exceptions that have expired" in capsys.readouterr().out


def test_limits_are_those_of_the_deployed_jobs(
    cloud: Cloud, stopped: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(scan.LIMITS, '{"stopped_days": 41}')
    assert "stopped_instances" not in {one["check"] for one in run(capsys)["findings"]}

    monkeypatch.setenv(scan.LIMITS, '{"stopped_days": 0}')
    assert re.match(r"In .*LAMPLIGHTER_CLOUD_LIMITS.*: cloud_limits.stopped_days: .*, got 0\.$", refusal(capsys))


def test_people_are_shown_money_risk_and_what_is_unknown(
    cloud: Cloud, stopped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.refuse("DescribeLogGroups", "AccessDeniedException")
    assert scan.main([]) == 0
    shown = capsys.readouterr().out

    assert shown.index("a month could be saved") < shown.index(stopped) < shown.index("Risks")
    assert shown.index("Risks") < shown.index("Could not be judged") < shown.index("DescribeLogGroups")
    assert re.search(rf"\n{len(cloud.asked)} API calls, \d+\.\d seconds; nothing was changed\.\n$", shown)
    assert "\033" not in shown  # no colours but on a terminal


def test_an_empty_account_has_nothing_to_show(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert scan.main([]) == 0
    assert "Nothing was found." in capsys.readouterr().out


# -- what cannot be -----------------------------------------------------------------------------------------------


def test_without_credentials_it_says_how_to_give_them(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")

    assert refusal(capsys).startswith("There are no AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and")
    assert cloud.asked == []


def test_credentials_that_aws_refuses_are_told(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.refuse("GetCallerIdentity", "InvalidClientTokenId")
    assert re.match(r"AWS does not accept these credentials: .*InvalidClientTokenId", refusal(capsys))
    assert cloud.asked == ["GetCallerIdentity"]


def test_a_profile_that_does_not_exist_is_told(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert refusal(capsys) == "The AWS configuration is not usable: The config profile (nobody) could not be found"


def test_a_region_that_does_not_exist_is_told_before_anybody_is_asked(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, "--region", "eu-wets-1") == "region: AWS has none called eu-wets-1; did you mean eu-west-1?"
    assert refusal(capsys, "--region", "moon") == "region: AWS has none called moon."
    assert cloud.asked == []


def test_no_region_is_told(cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    assert refusal(capsys) == "No region is set: give --region, or set AWS_DEFAULT_REGION."


def test_an_endpoint_that_cannot_be_reached_is_told(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert re.match(r"AWS cannot be reached: .*http://127\.0\.0\.1:9", refusal(capsys))


def test_no_region_that_could_be_looked_at_is_a_failure(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.refuse_in(REGION, "UnauthorizedOperation")
    assert re.match(f"Nothing of account {ACCOUNT} can be read in {REGION}: .*UnauthorizedOp", refusal(capsys))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "are not a JSON document"),
        ("[]", "take a JSON object of one field"),
        ('{"exceptions": [{"check": "open_port"}]}', r"exceptions\[0\].check takes the id of a check"),
    ],
)
def test_bad_exceptions_are_told_before_anybody_is_asked(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, told: str
) -> None:
    file = tmp_path / "exceptions.json"
    file.write_text(content)

    assert re.match(f"--exceptions: in {file}: .*{told}", refusal(capsys, "--exceptions", str(file)))
    assert refusal(capsys, "--exceptions", "/nowhere") == (
        "--exceptions: /nowhere cannot be read: No such file or directory."
    )
    assert cloud.asked == []
