"""Step Functions: definitions in YAML, and how many items of a Map run at a time."""

from __future__ import annotations

import json
from typing import Any

import yaml


def apply() -> None:
    read_yaml_definitions()
    take_concurrency_from_the_input()


def read_yaml_definitions() -> None:
    """CloudFormation takes JSON or YAML; MiniStack stores YAML as it is, and every execution fails at once."""
    from ministack.services.cloudformation import provisioners

    read = provisioners._sfn_definition

    def read_as_json(props: dict[str, Any]) -> str:
        return json.dumps(yaml.safe_load(read(props)))

    provisioners._sfn_definition = read_as_json


def take_concurrency_from_the_input() -> None:
    """MiniStack knows `MaxConcurrency`, but not `MaxConcurrencyPath`: it would run all items of a Map at once."""
    from ministack.services import stepfunctions

    run_items = stepfunctions._run_map_items

    def run_some_items(state_def: dict[str, Any], raw_input: Any, execution: Any, ctx: Any) -> Any:
        if "MaxConcurrencyPath" in state_def:
            at_a_time = stepfunctions._resolve_path_or_ctx(state_def["MaxConcurrencyPath"], raw_input, ctx)
            state_def = state_def | {"MaxConcurrency": at_a_time}
        return run_items(state_def, raw_input, execution, ctx)

    stepfunctions._run_map_items = run_some_items
