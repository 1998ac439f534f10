"""The demo accounts: what the cloud jobs scan here, and what they have to find (`local.estate` says how).

The local AWS plants them when it starts; whoever wants to know what there is reads `LocalAws.planted`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
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
"""The setting `cloud.targets` that covers them all."""

TEMPLATE: Final = Path(__file__).parent.parent / "docs" / "member-account-role.yaml"

BORN: Final = "local:born"
"""The tag of a resource that is to have come into being at its value, an ISO-8601 moment: no API of AWS makes anything
older than it is."""
PLANTED: Final = "planted.json"
"""The file in MiniStack's temporary directory that lists what was planted."""
LASTS: Final = timedelta(days=4)
"""For how long the checks say of it what they have to. Then what was young is no longer."""


def let_in(cloudformation: Any, stack_name: str) -> None:
    """Have the account of this client let the stack's functions in to scan and to act, as its owner would."""
    values = {
        "LamplighterAccount": HOME,
        "LamplighterStack": stack_name,
        "ExternalId": EXTERNAL_ID,
        "RoleName": ROLE,
        "AllowActions": "true",
    }
    cloudformation.create_stack(
        StackName=ROLE,
        TemplateBody=TEMPLATE.read_text(),
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    waiter = cloudformation.get_waiter("stack_create_complete")
    waiter.wait(StackName=ROLE, WaiterConfig={"Delay": 0.1, "MaxAttempts": 100})
