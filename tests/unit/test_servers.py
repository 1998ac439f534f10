"""Servers of the local stack: what `make down` ends (`local.servers`)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.servers import Server
from tests.ports import free_ports

FORKS = """
import os, pathlib, sys, time
if os.fork() == 0:
    if "session" in sys.argv:
        os.setsid()
    pathlib.Path("child.new").write_text(str(os.getpid()))
    os.rename("child.new", "child")
time.sleep(600)
"""


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that has a child, started."""
    child = tmp_path / "child"
    command = (sys.executable, "-c", FORKS, *request.param)
    server = Server(
        name="forking",
        port=free_ports(),
        command=command,
        directory=tmp_path,
        is_ready=child.exists,
        environment=dict(os.environ),
        working_directory=tmp_path,
    )
    server.start()
    yield server
    for pid in (int(child.read_text()), main_of(server)):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def main_of(server: Server) -> int:
    return int((server.directory / "forking.pid").read_text().split()[0])


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("server", [(), ("session",)], indirect=True)
@pytest.mark.parametrize("dies", [False, True])
def test_a_server_is_stopped_with_its_children(server: Server, dies: bool) -> None:
    """As Postgres does, a child may have a session of its own and outlive a main process that was killed."""
    child = int((server.directory / "child").read_text())
    if dies:
        os.kill(main_of(server), signal.SIGKILL)
    assert server.is_running()

    assert server.stop() is True

    assert not server.is_running()
    assert not is_alive(child)
    assert not is_alive(main_of(server))
    assert server.stop() is False
