"""CloudWatch metrics from functions: AWS/Lambda for every invocation, and the embedded metrics (EMF) of their logs."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from ministack.services import cloudwatch, lambda_svc


def apply() -> None:
    count_every_invocation()
    extract_embedded_metrics()


def count_every_invocation() -> None:
    """MiniStack counts direct invokes only; those of streams, schedules and state machines would be missing."""
    emit, dispatch = lambda_svc._emit_lambda_metrics, lambda_svc._execute_function_dispatch

    def emit_throttles_only(name: str, duration_ms: float, error: bool, throttle: bool) -> None:  # noqa: ARG001
        if throttle:
            emit(name, 0, error, throttle)

    def dispatch_and_count(func: Any, config: Any, event: Any, request_id: str, started: float) -> Any:
        answer = dispatch(func, config, event, request_id, started)
        emit(config.get("FunctionName", ""), (time.time() - started) * 1000, bool(answer.get("error")), False)
        return answer

    lambda_svc._emit_lambda_metrics = emit_throttles_only
    lambda_svc._execute_function_dispatch = dispatch_and_count


def extract_embedded_metrics() -> None:
    """CloudWatch Logs turns EMF lines into metrics; MiniStack keeps them as text."""
    write_logs = lambda_svc._emit_lambda_logs

    def write_logs_and_metrics(func: Any, request_id: str, log_text: str, *args: Any, **kwargs: Any) -> Any:
        for line in (log_text or "").splitlines():
            if line.startswith("{") and '"_aws"' in line:
                with contextlib.suppress(ValueError, KeyError, TypeError):  # CloudWatch ignores malformed EMF, too
                    _record(json.loads(line))
        return write_logs(func, request_id, log_text, *args, **kwargs)

    lambda_svc._emit_lambda_logs = write_logs_and_metrics


def _record(line: dict[str, Any]) -> None:
    for directive in line["_aws"]["CloudWatchMetrics"]:
        for names in directive["Dimensions"]:
            dimensions = {name: line[name] for name in names}
            for metric in directive["Metrics"]:
                value, unit = line[metric["Name"]], metric.get("Unit", "None")
                for one in value if isinstance(value, list) else [value]:
                    cloudwatch.record_metric(directive["Namespace"], metric["Name"], one, unit, dimensions)
