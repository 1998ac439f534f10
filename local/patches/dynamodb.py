"""DynamoDB: the one PartiQL function the ledger uses that MiniStack lacks."""

from __future__ import annotations

from typing import Any

from ministack.services import dynamodb


def apply() -> None:
    append_to_lists_in_partiql()


def append_to_lists_in_partiql() -> None:
    """`UPDATE ... SET errors = list_append(errors, ?)`: documented for PartiQL on AWS, "Unsupported operation" here."""
    call = dynamodb._pq_call

    def call_with_list_append(name: str, arguments: list[Any], nodes: Any) -> Any:
        if name != "list_append":
            return call(name, arguments, nodes)
        if len(arguments) != 2 or not all(argument is not None and "L" in argument for argument in arguments):
            raise ValueError("An operand in the update expression has an incorrect data type")
        return {"L": [*arguments[0]["L"], *arguments[1]["L"]]}

    dynamodb._pq_call = call_with_list_append
