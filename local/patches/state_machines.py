"""Step Functions: definitions in YAML."""

from __future__ import annotations

import json
from typing import Any

import yaml


def apply() -> None:
    read_yaml_definitions()


def read_yaml_definitions() -> None:
    """CloudFormation takes JSON or YAML; MiniStack stores YAML as it is, and every execution fails at once."""
    from ministack.services.cloudformation import provisioners

    read = provisioners._sfn_definition

    def read_as_json(props: dict[str, Any]) -> str:
        return json.dumps(yaml.safe_load(read(props)))

    provisioners._sfn_definition = read_as_json
