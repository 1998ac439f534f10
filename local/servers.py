"""Servers that outlive the command that starts them: detached, logged, found again and stopped by their pid file.

A pid file is locked by the server itself (it inherits the locked descriptor), for as long as it lives. So a process
that was given the same pid later is never mistaken for it, and a crash leaves nothing to clean up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

_children: dict[int, subprocess.Popen[bytes]] = {}  # those of this process, to be reaped when stopped


class LocalAwsError(Exception):
    """The local AWS cannot do what it was asked to; the message says why, and what helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server on 127.0.0.1; `directory` holds its pid file and log."""

    name: str
    port: int
    command: tuple[str, ...]
    directory: Path
    is_ready: Callable[[], bool]
    environment: Mapping[str, str]
    prepare: Callable[[], object] = lambda: None  # just before it is started
    working_directory: Path | None = None
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    start_timeout: timedelta = timedelta(minutes=1)

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    def is_running(self) -> bool:
        try:
            os.close(self._lock_pid_file())
        except BlockingIOError:
            return True
        return False

    def start(self) -> bool:
        """Start it and wait until it answers; False when it was running already.

        Raises LocalAwsError when its port is taken, or it dies or does not answer in time.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            pid_file = self._lock_pid_file()
        except BlockingIOError:
            _pid, port = self._read_pid_file()
            if port != self.port:
                raise LocalAwsError(f"{self.name} runs already, on port {port}: stop it first (make down).") from None
            self._wait_until_ready(None)
            return False
        try:
            self._check_port()
            self.prepare()
            with self.log.open("wb") as log:
                process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.working_directory,
                    env=dict(self.environment),
                    user=self.user,
                    pass_fds=(pid_file,),
                    start_new_session=True,
                )
            os.ftruncate(pid_file, 0)
            os.write(pid_file, f"{process.pid} {self.port}".encode())
        finally:
            os.close(pid_file)
        _children[process.pid] = process
        self._wait_until_ready(process)
        return True

    def stop(self) -> bool:
        """Stop it with everything it started; False when it was not running.

        Raises LocalAwsError when it still runs then, as one of another user does.
        """
        if not self.is_running():
            return False
        pid, _port = self._read_pid_file()
        end = time.monotonic() + 10
        _signal_group(pid, self.stop_signal)
        while self.is_running() and _is_group(pid) and time.monotonic() < end:
            time.sleep(0.02)
        if self.is_running() and not _is_group(pid):
            self._signal_survivors(self.stop_signal)
            while self.is_running() and time.monotonic() < end:
                time.sleep(0.02)
        _signal_group(pid, signal.SIGKILL)
        if self.is_running():
            self._signal_survivors(signal.SIGKILL)
        while self.is_running():
            if time.monotonic() > end + 5:
                raise LocalAwsError(f"{self.name} does not stop; end its process group {pid} yourself.")
            time.sleep(0.02)
        if child := _children.pop(pid, None):
            child.wait()
        return True

    def _signal_survivors(self, number: signal.Signals) -> None:
        """Signal what the server started, where the server itself has died: Postgres gives its processes groups of
        their own."""
        for pid in self._holders() & self._holders():  # others may look at the pid file for a moment
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _holders(self) -> set[int]:
        """The processes that have the pid file open: those that inherited it locked."""
        file, found = self._pid_path.stat(), set()
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
                if os.path.samestat(link.stat(), file):
                    found.add(int(link.parts[2]))
        return found - {os.getpid()}

    @property
    def _pid_path(self) -> Path:
        return self.directory / f"{self.name}.pid"

    def _read_pid_file(self) -> tuple[int, int]:
        pid, port = self._pid_path.read_text().split()
        return int(pid), int(port)

    def _lock_pid_file(self) -> int:
        """The descriptor of the locked pid file. Raises BlockingIOError while the server lives."""
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._pid_path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        return descriptor

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                raise LocalAwsError(
                    f"Port {self.port}, which {self.name} needs, is taken by another program: stop that, or choose "
                    "three other ports by naming the first of them, as in `make up LOCAL_PORT=4710`."
                ) from None

    def _wait_until_ready(self, process: subprocess.Popen[bytes] | None) -> None:
        end = time.monotonic() + self.start_timeout.total_seconds()
        while not self.is_ready():
            if process is not None and process.poll() is not None:
                raise LocalAwsError(f"{self.name} stopped at once. Its log, {self.log}, ends:\n{tail(self.log)}")
            if time.monotonic() > end:
                raise LocalAwsError(f"{self.name} does not answer. Its log, {self.log}, ends:\n{tail(self.log)}")
            time.sleep(0.05)


def _is_group(pid: int) -> bool:
    """Whether a process group still has a process. A dead child of this process is reaped first."""
    if child := _children.get(pid):
        child.poll()
    return _signal_group(pid, 0)


def _signal_group(pid: int, number: int) -> bool:
    """Whether there was something to signal."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # gone, or only a zombie is left
        return False
    return True


def tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
