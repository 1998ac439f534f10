"""DynamoDB: what the ledger needs of PartiQL and MiniStack lacks."""

from __future__ import annotations

from typing import Any

from ministack.services import dynamodb


def apply() -> None:
    append_to_lists_in_partiql()
    stream_partiql_updates()
    stream_partiql_deletes()


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


def stream_partiql_updates() -> None:
    """An UPDATE statement is a change like any other and belongs into the table's stream; MiniStack leaves it out, so
    that nobody would hear of what the timeout checker retried, failed or released."""
    update = dynamodb._partiql_update

    def update_and_stream(table: Any, parsed: Any, data: Any = None) -> Any:
        partition, sort, _condition, error = dynamodb._partiql_key_target(table, parsed)
        old = None if error else table["items"].get(partition, {}).get(sort)
        answer = update(table, parsed, data)
        if old is not None:
            new = table["items"][partition][sort]
            if new is not old:  # MiniStack stores a changed copy
                dynamodb._emit_stream_event(parsed["table"], "MODIFY", old, new)
        return answer

    dynamodb._partiql_update = update_and_stream


def stream_partiql_deletes() -> None:
    """The same for a DELETE statement: on AWS its REMOVE record comes to the stream's consumers, which must bear it."""
    delete = dynamodb._partiql_delete

    def delete_and_stream(table: Any, parsed: Any, data: Any = None) -> Any:
        partition, sort, _condition, error = dynamodb._partiql_key_target(table, parsed)
        old = None if error else table["items"].get(partition, {}).get(sort)
        answer = delete(table, parsed, data)
        if old is not None and sort not in table["items"].get(partition, {}):
            dynamodb._emit_stream_event(parsed["table"], "REMOVE", old, None)
        return answer

    dynamodb._partiql_delete = delete_and_stream
