"""Cloud Custodian and Prowler, asked what the checks ask, for the benches of the cloud scan.

Each is installed into a virtual environment of its own below `.local/bench`, as its package says; where there is no
Python that it runs on, it is left out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.cloud_stub import REGION
from lamplighter.kernel.cloud import Limits
from local.stack import ROOT

type Found = set[tuple[str, str]]
"""A check's id and a resource's, for each finding."""

HOME: Final = ROOT / ".local" / "bench"
LIMITS: Final = Limits()
IDLE: Final = {"type": "metrics", "days": LIMITS.idle_days, "op": "less-than"}
SILENT: Final = {**IDLE, "statistics": "Sum", "value": 1, "missing-value": 0}
AGENT: Final = {"namespace": "CWAgent", "name": "mem_used_percent"}
NETWORK: Final = {"namespace": "AWS/NetworkELB", "name": "ProcessedBytes"}
AGE: Final = {"type": "value", "value_type": "age", "op": "ge"}
UNUSED: Final = {"type": "unused", "value": True}
UNTAGGED: Final = {"or": [{f"tag:{tag}": "absent"} for tag in LIMITS.required_tags]}
RUNNING: Final = {"State.Name": "running"}
OPEN: Final = {"type": "ingress", "Ports": list(LIMITS.sensitive_ports)}

POLICIES: Final[Sequence[tuple[str, str, list[Any]]]] = (
    ("idle_cpu", "ec2", [RUNNING, {**IDLE, "name": "CPUUtilization", "value": LIMITS.idle_cpu_percent}]),
    ("idle_memory", "ec2", [RUNNING, {**IDLE, **AGENT, "value": LIMITS.idle_memory_percent}]),
    ("stopped_instances", "ec2", [{"State.Name": "stopped"}, {"type": "state-age", "days": LIMITS.stopped_days}]),
    ("unattached_volumes", "ebs", [{"Attachments": []}, {**AGE, "key": "CreateTime", "value": LIMITS.unattached_days}]),
    ("old_snapshots", "ebs-snapshot", [{"type": "age", "days": LIMITS.snapshot_days, "op": "ge"}, UNUSED]),
    ("unassociated_addresses", "network-addr", [{"AssociationId": "absent"}]),
    ("idle_load_balancers", "app-elb", [{"Type": "application"}, {**SILENT, "name": "RequestCount"}]),
    ("idle_load_balancers", "app-elb", [{"Type": "network"}, {**SILENT, **NETWORK}]),
    ("idle_nat_gateways", "nat-gateway", [{**SILENT, "name": "BytesOutToDestination"}]),
    ("log_groups_without_retention", "log-group", [{"retentionInDays": "absent"}]),
    ("gp2_volumes", "ebs", [{"VolumeType": "gp2"}]),
    ("unencrypted_volumes", "ebs", [{"Encrypted": False}]),
    ("public_instances", "ec2", [{"PublicIpAddress": "present"}, {f"tag:{LIMITS.public_allowed_tag}": "absent"}]),
    (
        "open_ports",
        "security-group",
        [{"or": [{**OPEN, "Cidr": {"value": "0.0.0.0/0"}}, {**OPEN, "CidrV6": {"value": "::/0"}}]}],
    ),
    ("outdated_images", "ec2", [{"type": "image-age", "days": LIMITS.image_days, "op": "ge"}]),
    ("missing_tags", "ec2", [UNTAGGED]),
    ("missing_tags", "ebs", [UNTAGGED]),
    ("missing_tags", "ebs-snapshot", [UNTAGGED]),
)
"""The check that each policy stands for, Custodian's name of the resource, and its filters."""

IDS: Final = {
    "ec2": "InstanceId",
    "ebs": "VolumeId",
    "ebs-snapshot": "SnapshotId",
    "network-addr": "AllocationId",
    "app-elb": "LoadBalancerArn",
    "nat-gateway": "NatGatewayId",
    "log-group": "logGroupName",
    "security-group": "GroupId",
}
"""Where Custodian's resources have their ids."""
OPEN_TO: Final = "ec2_securitygroup_allow_ingress_from_internet_to_"
CHECKS: Final[Mapping[str, tuple[str, ...]]] = {
    "stopped_instances": ("ec2_instance_stopped_older_than_specific_days",),
    "unassociated_addresses": ("ec2_elastic_ip_unassigned",),
    "log_groups_without_retention": ("cloudwatch_log_group_retention_policy_specific_days_enabled",),
    "unencrypted_volumes": ("ec2_ebs_volume_encryption",),
    "public_instances": ("ec2_instance_public_ip",),
    "open_ports": (
        f"{OPEN_TO}all_ports",
        f"{OPEN_TO}high_risk_tcp_ports",
        f"{OPEN_TO}tcp_port_22",
        f"{OPEN_TO}tcp_port_3389",
        f"{OPEN_TO}tcp_port_postgres_5432",
        f"{OPEN_TO}tcp_port_memcached_11211",
    ),
    "outdated_images": ("ec2_instance_with_outdated_ami",),
}
"""Prowler's checks, by the check that they stand for; it has none for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A scanner that ours is held against."""

    name: str
    package: str
    """As pip takes it."""
    program: str

    def install(self) -> bool:
        """Make sure that it is there; says why where it cannot be."""
        if self.executable.exists():
            return True
        python = _python()
        if python is None:
            print(f"{self.name} needs a Python from 3.10 to 3.12, of which none was found: left out")
            return False
        uv = ROOT / ".tools" / "bin" / "uv"
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", python, self._environment],
            [uv, "pip", "install", "--quiet", "--python", self._environment / "bin" / "python", self.package],
        ):
            if subprocess.run(command, check=False).returncode:
                print(f"{self.name} could not be installed: left out")
                return False
        return True

    @property
    def executable(self) -> Path:
        return self._environment / "bin" / self.program

    @property
    def _environment(self) -> Path:
        return HOME / self.name.lower().replace(" ", "-")


CUSTODIAN: Final = Peer(name="Cloud Custodian", package="c7n==0.9.53", program="custodian")
PROWLER: Final = Peer(name="Prowler", package="prowler==5.46.0", program="prowler")


def custodian(directory: Path) -> list[str | Path]:
    """The command that asks all policies, and writes what it finds into the directory."""
    policies = [
        {"name": f"policy-{n}", "resource": resource, "filters": filters}
        for n, (_check, resource, filters) in enumerate(POLICIES)
    ]
    (directory / "policies.json").write_text(json.dumps({"policies": policies}))
    return [CUSTODIAN.executable, "run", "--output-dir", directory, "--cache-period", "0", "--region", REGION,
            directory / "policies.json"]  # fmt: skip


def custodians(directory: Path) -> Found:
    """What Custodian wrote there."""
    return {
        (check, one[IDS[resource]])
        for n, (check, resource, _filters) in enumerate(POLICIES)
        for one in json.loads((directory / f"policy-{n}" / "resources.json").read_text())
    }


def prowler(directory: Path) -> list[str | Path]:
    """The command that runs all checks, and writes what it finds into the directory."""
    checks = [check for those in CHECKS.values() for check in those]
    (directory / "found.ocsf.json").unlink(missing_ok=True)  # it would add to what is there
    return [PROWLER.executable, "aws", "--checks", *checks, "--region", REGION, "--output-directory", directory,
            "--output-filename", "found", "--output-formats", "json-ocsf", "--no-banner",
            "--ignore-exit-code-3"]  # fmt: skip


def prowlers(directory: Path) -> Found:
    """What Prowler wrote there."""
    stands_for = {check: ours for ours, those in CHECKS.items() for check in those}
    return {
        (stands_for[one["metadata"]["event_code"]], _id(resource["uid"]))
        for one in json.loads((directory / "found.ocsf.json").read_text())
        if one["status_code"] == "FAIL"
        for resource in one["resources"]
    }


def _id(arn: str) -> str:
    """The id that an ARN ends in; a log group's name has slashes of its own."""
    if match := re.search(r":log-group:([^:]+)", arn):
        return match[1]
    return arn if ":loadbalancer/" in arn else arn.rpartition("/")[2]


def _python() -> str | None:
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    known: Iterable[str | None] = (
        *(shutil.which(f"python3.{minor}") for minor in (12, 11, 10)),
        *(str(path) for minor in (12, 11, 10) for path in versions.glob(f"3.{minor}*/bin/python")),
    )
    probe = (
        "import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))"  # a pyenv shim may be there only
    )
    for python in filter(None, known):
        if not subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode:
            return python
    return None


def environment(url: str, home: Path) -> dict[str, str]:
    """What a scanner gets: an endpoint, credentials, nothing of the user's own."""
    return {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "HOME": str(home),
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
