"""Docker, the Lambda image and a local AWS that containers can reach; what was started here is ended here."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest

from local.stack import FIRST_PORT, ROOT, LocalAws

ARCHITECTURE = "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"
IMAGE = f"public.ecr.aws/lambda/python:3.13-{ARCHITECTURE}"


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="session")
def docker_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Docker that answers: the machine's own, or else one of ours, with its data in a temporary directory."""
    if shutil.which("docker") is None:
        pytest.fail("Docker is not installed; `apt-get install docker.io` does it on Debian and Ubuntu.")
    if docker("info").returncode == 0:
        yield
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.fail("Docker does not run: start it, or run this as root with dockerd installed.")
    with own_daemon(tmp_path_factory.mktemp("docker")):
        yield


@contextmanager
def own_daemon(directory: Path) -> Iterator[None]:
    address = f"unix://{directory}/socket"
    folders = ("--data-root", f"{directory}/data", "--exec-root", f"{directory}/exec", "--pidfile", f"{directory}/pid")
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(["dockerd", "--host", address, *folders], stdout=log, stderr=log)
    os.environ["DOCKER_HOST"] = address
    try:
        end = time.monotonic() + 60
        while docker("info").returncode != 0:
            if daemon.poll() is not None or time.monotonic() > end:
                pytest.fail(f"dockerd did not start:\n{(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        del os.environ["DOCKER_HOST"]
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(timeout=60)


@pytest.fixture(scope="session")
def image(docker_daemon: None) -> str:
    """AWS's image for Python 3.13; where it cannot be pulled, a stand-in made of this machine's Python."""
    if docker("image", "inspect", IMAGE).returncode == 0 or docker("pull", "--quiet", IMAGE).returncode == 0:
        return IMAGE
    python = Path(sys.executable).resolve()
    tools = ROOT / ".tools" / "bin" / "python3.13"  # with pip, as SAM wants one
    script = ROOT / "local" / "sam_image" / "build.sh"
    subprocess.run([script, tools if tools.exists() else python, IMAGE], check=True, timeout=300)
    return IMAGE


class Forwarder(socketserver.ThreadingTCPServer):
    """Passes connections on to a port of 127.0.0.1."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int) -> None:
        super().__init__((host, port), Relay)


class Relay(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Forwarder)
        with socket.create_connection(("127.0.0.1", self.server.server_address[1])) as upstream:
            back = threading.Thread(target=pump, args=(upstream, self.request), daemon=True)
            back.start()
            pump(self.request, upstream)
            back.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # one side hung up


@dataclass(frozen=True, kw_only=True)
class World:
    """A local AWS, the name by which containers reach it, and the built template that was deployed into it."""

    aws: LocalAws
    host: str
    template: Path

    @property
    def endpoint_url(self) -> str:
        return f"http://{self.host}:{self.aws.first_port}"

    @property
    def database_url(self) -> str:
        return f"{self.aws.database_url.replace('127.0.0.1', self.host)}?sslmode=disable"


@pytest.fixture(scope="session")
def world(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The deployed stack; LOCAL_TEST_PORT is the first of its three ports."""
    port = int(os.environ.get("LOCAL_TEST_PORT") or FIRST_PORT + 60)
    aws = LocalAws(directory=ROOT / ".local" / "sam-local", first_port=port)
    aws.stop()  # what an interrupted session left
    with ExitStack() as ending:
        ending.callback(aws.stop)
        aws.start()
        aws.deploy()
        built = tmp_path_factory.mktemp("built") / "build"
        shutil.copytree(ROOT / ".aws-sam" / "build", built)  # the next build, by whomever, removes it
        host = "host.docker.internal"  # Docker Desktop's name for this machine, 127.0.0.1 included
        if platform.system() == "Linux":
            subnet = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Subnet}}").stdout
            host = str(ip_network(subnet.strip())[1])  # the bridge's own address, which is this machine
            for number in (port, port + 1):
                forwarder = ending.enter_context(Forwarder(host, number))
                threading.Thread(target=forwarder.serve_forever, daemon=True).start()
                ending.callback(forwarder.shutdown)
        yield World(aws=aws, host=host, template=built / "template.yaml")
