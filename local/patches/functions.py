"""Lambda: errors by their names, fast cold starts, nothing visible that AWS would not show, asynchronous invokes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ministack.core import lambda_runtime
from ministack.services import eventbridge, lambda_svc
from ministack.services.cloudformation import provisioners

_ERROR_KEY = "__lambda_error__"


def apply() -> None:
    report_exceptions_as_lambda_does()
    unpack_each_archive_once()
    run_functions_in_a_bare_interpreter()
    name_throttles_as_lambda_does()
    stop_workers_of_deleted_functions()
    invoke_event_targets_asynchronously()


def report_exceptions_as_lambda_does() -> None:
    """MiniStack calls every exception `Runtime.HandlerError` and kills the worker; state machines match type names."""
    theirs = (
        '_real_stdout.write(json.dumps({"status": "error", "error": str(e), "trace": traceback.format_exc()}) + "\\n")'
    )
    ours = (
        'traceback.print_exc(); _real_stdout.write(json.dumps({"status": "ok", "result": {"'
        + _ERROR_KEY
        + '": {"errorMessage": str(e), "errorType": type(e).__name__, "requestId": _ms_ctx.get("request_id", ""), '
        '"stackTrace": traceback.format_tb(e.__traceback__)}}}) + "\\n")'
    )
    assert lambda_runtime._PYTHON_WORKER_SCRIPT.count(theirs) == 1, "MiniStack's worker script changed"
    lambda_runtime._PYTHON_WORKER_SCRIPT = lambda_runtime._PYTHON_WORKER_SCRIPT.replace(theirs, ours)

    execute = lambda_svc._execute_function_warm

    def execute_and_unwrap_error(func: Any, event: Any, request_id: str) -> Any:
        answer = execute(func, event, request_id)
        body = answer.get("body")
        if isinstance(body, dict) and _ERROR_KEY in body:
            return {"body": body[_ERROR_KEY], "error": True, "log": answer.get("log", "")}
        return answer

    lambda_svc._execute_function_warm = execute_and_unwrap_error


def unpack_each_archive_once() -> None:
    """MiniStack unzips code and layers for each worker: seconds of cold start, and their bytecode is thrown away."""
    cache = Path(tempfile.gettempdir()) / f"functions-{os.environ['GATEWAY_PORT']}"
    locks: dict[str, threading.Lock] = {}
    guard = threading.Lock()

    class UnpackOnce(zipfile.ZipFile):
        def extractall(self, path: Any = None, members: Any = None, pwd: bytes | None = None) -> None:  # noqa: ARG002
            archive, into = Path(str(self.filename)), Path(path)
            with archive.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[:24]
            with guard:
                lock = locks.setdefault(digest, threading.Lock())
            unpacked = cache / digest
            with lock:
                if not unpacked.is_dir():
                    partial = cache / f"{digest}.partial"
                    super().extractall(partial)
                    partial.rename(unpacked)
            for entry in unpacked.iterdir():
                (into / entry.name).symlink_to(entry)
            with contextlib.suppress(OSError):
                archive.unlink()

    assert lambda_runtime.zipfile is zipfile, "MiniStack's lambda_runtime no longer unpacks with zipfile"
    lambda_runtime.zipfile = SimpleNamespace(
        ZipFile=UnpackOnce, BadZipFile=zipfile.BadZipFile, LargeZipFile=zipfile.LargeZipFile
    )


def run_functions_in_a_bare_interpreter() -> None:
    """MiniStack runs functions in its own environment, whose packages would hide a dependency missing in the layer."""
    detect = lambda_runtime._detect_runtime_binary
    interpreter = getattr(sys, "_base_executable", sys.executable)

    def bare_python(runtime: str) -> Any:
        return (interpreter, lambda_runtime._PYTHON_WORKER_SCRIPT) if runtime.startswith("python") else detect(runtime)

    lambda_runtime._detect_runtime_binary = bare_python


def name_throttles_as_lambda_does() -> None:
    """State machines see `Lambda.Unknown` for a throttle; on AWS, Retry names `Lambda.TooManyRequestsException`."""
    throttle = lambda_svc._throttle_response

    def named(*args: Any, **kwargs: Any) -> Any:
        answer = throttle(*args, **kwargs)
        answer["body"]["errorType"] = "Lambda.TooManyRequestsException"
        return answer

    lambda_svc._throttle_response = named


def stop_workers_of_deleted_functions() -> None:
    """Deleting a stack leaves its warm worker processes behind."""
    handler = provisioners._RESOURCE_HANDLERS["AWS::Lambda::Function"]
    delete = handler["delete"]

    def delete_and_stop(physical_id: str, properties: Any) -> Any:
        answer = delete(physical_id, properties)
        lambda_runtime.invalidate_worker(
            physical_id, account=lambda_svc.get_account_id(), region=lambda_svc.get_region()
        )
        return answer

    handler["delete"] = delete_and_stop


def invoke_event_targets_asynchronously() -> None:
    """On AWS, Scheduler and EventBridge invoke asynchronously, so the function's retries and OnFailure apply."""
    assert hasattr(eventbridge, "_dispatch_to_lambda"), "MiniStack's EventBridge no longer has _dispatch_to_lambda"

    def dispatch(arn: str, payload: str) -> None:
        function, config, _name = lambda_svc._get_func_record_for_ref(arn)
        if function and config:
            record = lambda_svc._execution_record_for_config(function, config)
            policies = {
                key: function[key] for key in ("event_invoke_config", "event_invoke_configs") if function.get(key)
            }
            lambda_svc.invoke_async_with_retry(record | policies, json.loads(payload))

    eventbridge._dispatch_to_lambda = dispatch
