"""Reaching Postgres as on RDS: over TCP, with TLS verified, by a secret or an IAM token."""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import text

from lamplighter.kernel import aws, database
from lamplighter.kernel.errors import DatabaseUnavailable, Permanent, Retryable


def certify(directory: Path) -> None:
    """A certificate of `localhost` that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "server.key").write_bytes(private)
    (directory / "server.key").chmod(0o600)


class Terminator:
    """Postgres behind TLS: the embedded server is built without it, so this speaks it in front of its socket."""

    def __init__(self, directory: Path, behind: str) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(directory / "server.crt", directory / "server.key")
        self._behind = behind
        self.certificate = directory / "server.crt"
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.name = ""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            assert client.recv(8) == (8).to_bytes(4) + (80877103).to_bytes(4)
            client.sendall(b"S")
            with self._context.wrap_socket(client, server_side=True) as secured, socket.socket(socket.AF_UNIX) as plain:
                plain.connect(self._behind)
                while True:
                    ready, _, _ = select.select([secured, plain], [], [])
                    source, target = (secured, plain) if secured in ready else (plain, secured)
                    data = source.recv(65536)
                    while source is secured and secured.pending():
                        data += secured.recv(65536)
                    if not data:
                        return
                    target.sendall(data)


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[Terminator]:
    """This test's database behind TLS."""
    certify(tmp_path)
    directory = database_url.partition("?host=")[2]
    terminator = Terminator(tmp_path, f"{directory}/.s.PGSQL.5432")
    terminator.name = database_url.partition("?")[0].rpartition("/")[2]
    yield terminator
    terminator.server.close()


@pytest.fixture(autouse=True)
def no_engine_is_kept() -> Iterator[None]:
    database.engine.cache_clear()
    yield
    database.engine.cache_clear()


@pytest.fixture
def secrets(s3: Any) -> Any:
    """The secrets of an account of this test's own."""
    return aws.client("secretsmanager")


def keep(secrets: Any, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    secret = secrets.create_secret(Name=uuid4().hex, SecretString=value)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("DATABASE_SECRET_ARN", secret["ARN"])


def test_a_secret_as_rds_makes_them_opens_a_verified_connection(
    server: Terminator, secrets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_CA_FILE", str(server.certificate))
    facts = {"username": "postgres", "password": "p", "host": "localhost", "port": server.port, "dbname": server.name}
    keep(secrets, monkeypatch, json.dumps(facts))

    with database.engine().connect() as connection:
        assert connection.execute(text("SELECT repeat('x', 3000000)")).scalar_one() == "x" * 3_000_000
    with database._dial(database.address(os.environ)) as sock:
        assert isinstance(sock, ssl.SSLSocket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_server_that_nobody_vouches_for_is_refused(server: Terminator, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://postgres:hunter2@localhost:{server.port}/{server.name}?sslmode=verify-full"
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.delenv("DATABASE_CA_FILE", raising=False)

    with pytest.raises(DatabaseUnavailable, match="CERTIFICATE_VERIFY_FAILED") as caught:
        database.engine().connect()

    assert "hunter2" not in str(caught.value) + repr(database.address(os.environ))


def test_a_certificate_of_another_host_is_refused(server: Terminator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_CA_FILE", str(server.certificate))
    url = f"postgresql://postgres:p@127.0.0.1:{server.port}/{server.name}?sslmode=verify-full"
    monkeypatch.setenv("DATABASE_URL", url)

    with pytest.raises(DatabaseUnavailable, match="IP address mismatch"):
        database.engine().connect()


def test_a_secret_of_rds_own_making_takes_the_rest_from_the_environment(
    secrets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(secrets, monkeypatch, json.dumps({"username": "app", "password": "p"}))
    with pytest.raises(Permanent, match="lacks 'DATABASE_NAME'"):
        database.address(os.environ)
    monkeypatch.setenv("DATABASE_HOST", "db.example.com")
    monkeypatch.setenv("DATABASE_NAME", "media")

    where = database.address(os.environ)

    assert (str(where), where.user, where.password, where.tls) == ("db.example.com:5432/media", "app", "p", True)


@pytest.mark.parametrize("value", ["no json", "[]", '"text"', '{"username": "app"}', '{"username": 1, "password": 2}'])
def test_a_secret_of_another_kind_is_one_sentence(secrets: Any, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    keep(secrets, monkeypatch, value)

    with pytest.raises(Permanent, match=r"The database secret arn:\S+ (must hold|lacks)"):
        database.address(os.environ)


def test_a_secret_that_is_not_there_may_come(secrets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("DATABASE_SECRET_ARN", "arn:aws:secretsmanager:us-east-1:000000000000:secret:none")

    with pytest.raises(Retryable, match="cannot be read"):
        database.address(os.environ)


def test_an_iam_token_is_made_for_each_connection(s3: Any) -> None:
    given = {"DATABASE_HOST": "db.example.com", "DATABASE_NAME": "media", "DATABASE_USER": "app"}

    where = database.address(given)

    assert where.tls
    assert where.password
    assert where.password.startswith("db.example.com:5432/?Action=connect&DBUser=app&")
    assert "X-Amz-Expires=900" in where.password
