"""The demo accounts: what the cloud jobs scan here, and what they have to find (`local.estate` says how).

The local AWS plants them when it starts; whoever wants to know what there is reads `LocalAws.planted`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

HOME: Final = "000000000000"
"""The account that the stack is in; MiniStack's own."""
MEMBER: Final = "111111111111"
"""One that lets the stack in, by `ROLE`."""
STRANGER: Final = "222222222222"
"""One that does not: it has no such role."""
REGIONS: Final = ("us-east-1", "eu-west-1")
ROLE: Final = "lamplighter-scan"
EXTERNAL_ID: Final = "lamplighter-demo"

TARGETS: Final[tuple[Mapping[str, Any], ...]] = (
    {"accounts": [HOME], "regions": list(REGIONS)},
    {"accounts": [MEMBER, STRANGER], "regions": list(REGIONS), "role": ROLE, "external_id": EXTERNAL_ID},
)
"""The setting `cloud_targets` that covers them all."""

PLANTED: Final = "planted.json"
"""The file in MiniStack's temporary directory that lists what was planted."""


def let_in(iam: Any) -> None:
    """Make `ROLE` in the account of this IAM client, for the stack's account to assume with the external id."""
    trust = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{HOME}:root"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": EXTERNAL_ID}},
    }
    may = {
        "Effect": "Allow",
        "Action": ["ec2:*", "elasticloadbalancing:Describe*", "cloudwatch:GetMetricData", "cloudwatch:ListMetrics",
                   "logs:DescribeLogGroups", "rbin:*"],
        "Resource": "*",
    }  # fmt: skip
    iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=_policy(trust))
    iam.put_role_policy(RoleName=ROLE, PolicyName=ROLE, PolicyDocument=_policy(may))


def _policy(statement: Mapping[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
