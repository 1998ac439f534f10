"""A job table of a million rows that counts its requests: stands in for DynamoDB where a local emulator is too slow.

It speaks DynamoDB's JSON protocol for what the timeout checker asks for, and does it for real: Query over the sparse
index `by_deadline` or `by_due` with its key condition, `Limit`, `ExclusiveStartKey`, the 1 MB page and the index's
projection; BatchExecuteStatement of UPDATEs, each with its own WHERE, on the rows. Any other request is an error. Each
answer is held back by a simulated latency. Runs in a process of its own (`served`).
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Final

from lamplighter.kernel.ledger import transitions
from lamplighter.kernel.ledger.dynamo import DynamoStore, to_item
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import SHARDS, Job, Policy, job_key, new_job_id, to_text

Item = dict[str, Any]

INDEXES: Final = {"by_deadline": ("live_shard", "expires_at"), "by_due": ("due_shard", "run_at")}
PAGE_BYTES: Final = 1_000_000
"""Where a Query ends a page (Amazon DynamoDB, "Paginating table query results"); here in bytes of JSON."""
NOT_PROJECTED: Final = frozenset({"payload", "result", "errors", "message", "progress", "trigger", "dry_run"})
"""Attributes that the template keeps out of both indexes, among those that the rows here have."""

_STATEMENT: Final = re.compile(r'UPDATE "jobs" (?P<clauses>.+?) WHERE pk = \?(?P<where>(?: AND "\w+" = \?)*)')
_CLAUSE: Final = re.compile(
    r'SET "(?P<append>\w+)" = list_append\("(?P=append)", \?\)|SET "(?P<set>\w+)" = \?|REMOVE "(?P<remove>\w+)"'
)


class Table:
    """The rows as DynamoDB JSON text, by key, and the two indexes as sorted lists of (sort key, key)."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.before: dict[str, bytes] = {}
        """What each changed row was at first."""
        self.requests: Counter[str] = Counter()
        self.latency = 0.0
        self._indexes: dict[str, dict[str, list[tuple[str, str]]]] = {index: {} for index in INDEXES}
        self._lock = threading.Lock()

    def fill(self, start: datetime, *, total: int, expiring: list[tuple[timedelta, int]], live: int) -> None:
        """Write `total` rows: `live` running and as many waiting ones that outlast any test here; for each of
        `expiring`, so many running ones that expire just before `start` plus that delay; the rest finished."""
        policy = Policy(timeout=timedelta(minutes=30), target="lambda:sync")
        clock = [start]
        ledger = Ledger(DynamoStore("jobs"), clock=lambda: clock[0])  # only makes rows, writes none
        payload = {"library": "photos", "paths": [f"2026/01/{day:02}" for day in range(1, 9)]}

        def running(started: datetime) -> Job:
            clock[0] = started
            job = ledger.new_job("sync", policy, job_id=_PLACE, payload=payload)
            return transitions.claim(job, attempt=1, continuation=0, now=started)

        for delay, count in expiring:
            self._add(running(start + delay - policy.timeout - timedelta(seconds=1)), count)
        late = start + timedelta(days=1)
        self._add(running(late), live)
        clock[0] = start
        self._add(ledger.new_job("sync", policy, job_id=_PLACE, payload=payload, run_at=late), live)
        finished = transitions.complete(running(start), now=start, result={"status": "completed", "files": 1234})
        self._add(finished, total - len(self.rows))
        for index in self._indexes.values():
            for entries in index.values():
                entries.sort()

    def _add(self, model: Job, count: int) -> None:
        text = json.dumps(to_item(model), separators=(",", ":"))
        shard = zlib.crc32(_PLACE.encode()) % SHARDS
        model_item = json.loads(text)
        for _ in range(count):
            number = len(self.rows)
            job_id = new_job_id(model.created_at, hashlib.sha256(str(number).encode()).digest())
            mine = zlib.crc32(job_id.encode()) % SHARDS
            self.rows[job_key(job_id)] = text.replace(_PLACE, job_id).replace(f'#{shard}"', f'#{mine}"').encode()
            for index, (partition, sort) in INDEXES.items():
                if partition in model_item and sort in model_item:
                    value = model_item[partition]["S"].replace(f"#{shard}", f"#{mine}")
                    self._indexes[index].setdefault(value, []).append((model_item[sort]["S"], job_key(job_id)))

    def reset(self) -> None:
        """Make every changed row what it was, and count from zero."""
        for key, row in self.before.items():
            self._write(key, json.loads(self.rows[key]), json.loads(row))
        self.before.clear()
        self.requests.clear()

    def digest(self, *, without: set[str]) -> str:
        """A hash over all rows but these."""
        whole = hashlib.sha256()
        for key, row in self.rows.items():
            if key not in without:
                whole.update(row)
        return whole.hexdigest()

    def read(self, keys: list[str]) -> dict[str, bytes]:
        """These rows as they are now."""
        return {key: self.rows[key] for key in keys}

    def expired_by(self, now: datetime) -> set[str]:
        """The keys of the live rows that have expired by `now`."""
        last = (to_text(now), "\uffff")
        return {key for entries in self._indexes["by_deadline"].values() for at, key in entries if (at, key) <= last}

    def changed_per_shard(self) -> list[int]:
        """How many rows of each shard have changed."""
        shards = Counter(zlib.crc32(key.removeprefix("JOB#").encode()) % SHARDS for key in self.before)
        return [shards[shard] for shard in range(SHARDS)]

    def answer(self, operation: str, request: Item) -> Item:
        """Do what DynamoDB would. Raises ValueError at a request this table does not know."""
        with self._lock:
            self.requests[operation] += 1
            if operation == "Query":
                return self._query(request)
            if operation == "BatchExecuteStatement":
                return {"Responses": [self._execute(statement) for statement in request["Statements"]]}
        raise ValueError(f"{operation} is not known here")

    def _query(self, request: Item) -> Item:
        index = request["IndexName"]
        partition, sort = INDEXES[index]
        names, values = request["ExpressionAttributeNames"], request["ExpressionAttributeValues"]
        conditions = ("#key = :value AND #sort <= :until", "#key = :value AND #sort BETWEEN :since AND :until")
        if request["KeyConditionExpression"] not in conditions or names != {"#key": partition, "#sort": sort}:
            raise ValueError("that key condition is not known here")
        entries = self._indexes[index].get(values[":value"]["S"], [])
        start = request.get("ExclusiveStartKey")
        at = bisect.bisect_right(entries, (start[sort]["S"], start["pk"]["S"])) if start else 0
        if since := values.get(":since"):
            at = max(at, bisect.bisect_left(entries, (since["S"], "")))
        end = bisect.bisect_right(entries, (values[":until"]["S"], "\uffff"))
        found, size = [], 0
        for _, key in entries[at : min(end, at + request["Limit"])]:
            found.append(
                {name: value for name, value in json.loads(self.rows[key]).items() if name not in NOT_PROJECTED}
            )
            size += len(self.rows[key])
            if size > PAGE_BYTES:
                break
        answer: Item = {"Items": found, "Count": len(found), "ScannedCount": len(found)}
        # As DynamoDB does, a page that the limit ended has a key to go on from, even where nothing follows.
        if found and (at + len(found) < end or len(found) == request["Limit"]):
            answer["LastEvaluatedKey"] = {name: found[-1][name] for name in ("pk", partition, sort)}
        return answer

    def _execute(self, statement: Item) -> Item:
        clauses, names = _parsed(statement["Statement"])
        parameters = iter(statement["Parameters"])
        given: list[Item] = [{} if kind == "REMOVE" else next(parameters) for kind, _ in clauses]
        key = next(parameters)["S"]
        row = self.rows.get(key)
        old = json.loads(row) if row else {}
        expected = zip(names, parameters, strict=True)
        if not row or any(old.get(name) != value for name, value in expected):
            return {"Error": {"Code": "ConditionalCheckFailed", "Message": "The conditional request failed"}}
        new = dict(old)
        for (kind, name), value in zip(clauses, given, strict=True):
            if kind == "SET":
                new[name] = value
            elif kind == "APPEND":
                new[name] = {"L": old[name]["L"] + value["L"]}
            else:
                new.pop(name, None)
        self.before.setdefault(key, row)
        self._write(key, old, new)
        return {"TableName": "jobs"}

    def _write(self, key: str, old: Item, new: Item) -> None:
        for index, (partition, sort) in INDEXES.items():
            was, becomes = ([item[name]["S"] for name in (partition, sort) if name in item] for item in (old, new))
            if was == becomes:
                continue
            if len(was) == 2:  # an item without one of them is not in the index
                entries = self._indexes[index][was[0]]
                del entries[bisect.bisect_left(entries, (was[1], key))]
            if len(becomes) == 2:
                bisect.insort(self._indexes[index].setdefault(becomes[0], []), (becomes[1], key))
        self.rows[key] = json.dumps(new, separators=(",", ":")).encode()


@lru_cache
def _parsed(statement: str) -> tuple[list[tuple[str, str]], list[str]]:
    """What an UPDATE does, (SET, APPEND or REMOVE, attribute) each, and the attributes of its WHERE beside the key."""
    parsed = _STATEMENT.fullmatch(statement)
    clauses = list(_CLAUSE.finditer(parsed["clauses"])) if parsed else []
    if parsed is None or " ".join(clause[0] for clause in clauses) != parsed["clauses"]:
        raise ValueError(f"that statement is not known here: {statement}")
    kinds = {"append": "APPEND", "set": "SET", "remove": "REMOVE"}
    found = [(kinds[str(clause.lastgroup)], str(clause[str(clause.lastgroup)])) for clause in clauses]
    return found, re.findall(r'"(\w+)"', parsed["where"])


_PLACE: Final = "0" * 26
"""The job_id of a model row; every row made from it has its own instead."""


class Server(ThreadingHTTPServer):
    """The table on a port of 127.0.0.1."""

    daemon_threads = True
    request_queue_size = 64  # the default drops one of eight that connect at once, for a second

    def __init__(self, table: Table) -> None:
        self.table = table
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet an answer
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        operation = self.headers["X-Amz-Target"].partition(".")[2]
        try:
            status, answer = 200, self.server.table.answer(operation, request)
        except (ValueError, KeyError) as error:
            status, answer = 400, {"__type": "com.amazon.coral.validate#ValidationException", "message": str(error)}
        body = json.dumps(answer, separators=(",", ":")).encode()
        time.sleep(self.server.table.latency)
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


class Remote:
    """The table in its process, from outside."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.endpoint_url: str = connection.recv()

    def ask(self, what: str, *values: Any, **named: Any) -> Any:
        """Call a method of the table, or set (`what` ends with =) or read one of its attributes."""
        self._connection.send((what, values, named))
        return self._connection.recv()


@contextmanager
def served(**contents: Any) -> Iterator[Remote]:
    """A table, filled as `Table.fill` says, served until the block ends."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, contents), daemon=True)
    process.start()
    try:
        yield Remote(ours)
    finally:
        process.terminate()
        process.join()


def _serve(connection: Connection, contents: dict[str, Any]) -> None:
    table = Table()
    table.fill(**contents)
    server = Server(table)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection.send(f"http://127.0.0.1:{server.server_address[1]}")
    while True:
        what, values, named = connection.recv()
        if what.endswith("="):
            setattr(table, what[:-1], values[0])
            connection.send(None)
        else:
            found = getattr(table, what)
            connection.send(found(*values, **named) if callable(found) else found)
