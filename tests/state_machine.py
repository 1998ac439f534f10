"""Executes a state machine's own definition in process: what those of phased jobs use of the language."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

Invoke = Callable[[str, Any], Any]
"""Calls a function by its name with a payload; what it raises is the function's error."""


class Killed(BaseException):
    """A function is killed in the middle."""


class ExecutionFailed(Exception):
    """The execution came to a Fail state, or a task failed and nothing caught it."""

    def __init__(self, error: str, cause: str) -> None:
        super().__init__(f"{error}: {cause}")
        self.error, self.cause = error, cause


@dataclass(kw_only=True)
class Execution:
    """One execution. `steps` yields the name of each state before it is entered, so that a test can come between."""

    definition: Mapping[str, Any]
    invoke: Invoke
    arn: str
    started: str
    input: Any
    status: str = "RUNNING"
    output: Any = None
    failure: ExecutionFailed | None = None
    entered: list[str] = field(default_factory=list)
    concurrency: list[int] = field(default_factory=list)
    """What each Map was told; here its items come one after the other."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """What `$$` holds beside the execution: a Map's item."""
    data: Any = None

    def run(self) -> Any:
        """The output. Raises ExecutionFailed."""
        for _ in self.steps():
            pass
        return self.output

    def steps(self) -> Iterator[str]:
        name, data = self.definition["StartAt"], self.input
        while True:
            self.data = data
            yield name
            self.entered.append(name)
            state = self.definition["States"][name]
            try:
                match state["Type"]:
                    case "Task":
                        then, data = self._task(state, data)
                        if then is None:
                            self.status, self.output = "SUCCEEDED", data
                            return
                        name = then
                    case "Map":
                        name, data = yield from self._map(state, data)
                    case "Choice":
                        name = _choose(state, data)
                    case "Fail":
                        raise ExecutionFailed(_at(state["ErrorPath"], data), _at(state["CausePath"], data))
                    case "Succeed":
                        self.status, self.output = "SUCCEEDED", _at(state["OutputPath"], data)
                        return
            except ExecutionFailed as failure:
                self.status, self.failure = "FAILED", failure
                raise

    def share(self, index: int) -> Any:
        """What the Map that the execution has come to gives to one of its items."""
        state = self.definition["States"]["Items"]
        return self._part(state, self.data, _at(state["ItemsPath"], self.data)[index]).input

    def _part(self, state: Mapping[str, Any], data: Any, item: Any) -> Execution:
        within = replace(self, context={"$$.Map.Item.Value": item})
        given = within._filled(state["ItemSelector"], data)
        return replace(self, definition=state["ItemProcessor"], input=json.loads(json.dumps(given)), entered=[])

    def _map(self, state: Mapping[str, Any], data: Any) -> Generator[str, None, tuple[str, Any]]:
        self.concurrency.append(_at(state["MaxConcurrencyPath"], data))
        results = []
        try:
            for item in _at(state["ItemsPath"], data):
                part = self._part(state, data, item)
                yield from part.steps()
                results.append(part.output)
        except ExecutionFailed as failure:
            return self._caught(state, data, failure.error, failure.cause)
        return state["Next"], data | {state["ResultPath"].removeprefix("$."): results}

    def _caught(self, state: Mapping[str, Any], data: Any, name: str, cause: str) -> tuple[str, Any]:
        for catch in state.get("Catch", ()):
            if _matches(catch, name):
                return catch["Next"], data | {"error": {"Error": name, "Cause": cause}}
        raise ExecutionFailed(name, cause)

    def _task(self, state: Mapping[str, Any], data: Any) -> tuple[str | None, Any]:
        tries: dict[int, int] = {}
        while True:
            given = self._filled(state["Parameters"], data)
            try:
                answer = self.invoke(given["FunctionName"], _travelled(given["Payload"]))
                result = {"Payload": _travelled(answer)}
                return state.get("Next"), _at(state["OutputPath"], result)
            except (Exception, Killed) as error:  # noqa: BLE001 - as Lambda does
                name = "Runtime.ExitError" if isinstance(error, Killed) else type(error).__name__
                cause = json.dumps({"errorType": name, "errorMessage": str(error)})
            for number, retry in enumerate(state.get("Retry", ())):
                if _matches(retry, name) and tries.get(number, 0) < retry["MaxAttempts"]:
                    tries[number] = tries.get(number, 0) + 1
                    break
            else:
                return self._caught(state, data, name, cause)

    def _filled(self, template: Mapping[str, Any], data: Any) -> dict[str, Any]:
        filled: dict[str, Any] = {}
        for key, value in template.items():
            if isinstance(value, dict):
                filled[key] = self._filled(value, data)
            elif key.endswith(".$"):
                filled[key.removesuffix(".$")] = self._value(value, data)
            else:
                filled[key] = value
        return filled

    def _value(self, path: str, data: Any) -> Any:
        if call := re.fullmatch(r"States\.Format\('([^']*)', (.+)\)", path):
            return call[1].replace("{}", str(_at(call[2], data)))
        context = {"$$.Execution.Id": self.arn, "$$.Execution.StartTime": self.started, **self.context}
        return context[path] if path in context else _at(path, data)


def load(text: str, **substitutions: str) -> dict[str, Any]:
    """A definition with its substitutions made, as CloudFormation does."""
    for name, value in substitutions.items():
        text = text.replace(f"${{{name}}}", value)
    return dict(yaml.safe_load(text))


def _travelled(value: Any) -> Any:
    """As it comes out of a state, which takes 256 KiB ("Quotas")."""
    told = json.dumps(value)
    assert len(told) < 256 * 1024
    return json.loads(told)


def _at(path: str, data: Any) -> Any:
    for part in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        data = data[part[0]] if part[0] else data[int(part[1])]
    return data


def _choose(state: Mapping[str, Any], data: Any) -> str:
    for choice in state["Choices"]:
        if _at(choice["Variable"], data) == choice["StringEquals"]:
            return str(choice["Next"])
    return str(state["Default"])


def _matches(handler: Mapping[str, Any], error: str) -> bool:
    return error in handler["ErrorEquals"] or "States.ALL" in handler["ErrorEquals"]
