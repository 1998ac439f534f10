"""Free ports for the servers of a test process; several processes may look for theirs at once."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack


def free_ports() -> int:
    """The first of three free ports in a row.

    They are below those that systems give to outgoing connections, and looked for from a place of this process's own:
    nobody takes them between this look and the server's start.
    """
    for first in range(10_000 + 3 * (os.getpid() % 3_000), 32_000, 3):
        with ExitStack() as probes:
            try:
                for port in range(first, first + 3):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError("There are no three free ports in a row.")
