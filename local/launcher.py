"""Runs MiniStack, the local AWS, mended where it differs from AWS in ways this project would notice.

Started by `local.stack` as `python -m local.launcher`; configured by MiniStack's own environment variables
(GATEWAY_PORT, BIND_HOST, AUTH, TMPDIR ...). Each patch is a function of its own in `local/patches/`, says why it is
there, and refuses to run when what it mends has changed.
"""

from __future__ import annotations

from importlib.metadata import version

MINISTACK = "1.5.33"


def main() -> None:
    found = version("ministack")
    if found != MINISTACK:
        raise SystemExit(
            f"The patches in local/patches were proved on ministack {MINISTACK}, but {found} is installed."
        )

    # Not before: MiniStack reads the environment when it is imported.
    from local.patches import (
        alarms,
        cloud,
        dynamodb,
        functions,
        metrics,
        objects,
        permissions,
        recycle_bin,
        routes,
        schedules,
        state_machines,
        streams,
    )

    for patches in (
        functions,
        dynamodb,
        streams,
        schedules,
        metrics,
        alarms,
        permissions,
        state_machines,
        cloud,
        recycle_bin,
        objects,
        routes,
    ):
        patches.apply()

    from ministack.app import main as serve

    serve()


if __name__ == "__main__":
    main()
