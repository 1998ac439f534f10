"""Starts AWS's runtime interface client with the managed runtime's `sys.path`: function, layers, runtime."""

import os
import site
import sys

LAYERS = ("/opt/python/lib/python3.13/site-packages", "/opt/python")


def main() -> None:
    task = os.environ["LAMBDA_TASK_ROOT"]
    sys.path[:0] = (task, *LAYERS)
    for folder in (task, *LAYERS):
        site.addsitedir(folder)

    from awslambdaric.__main__ import main as serve

    serve(["bootstrap.py", os.environ["_HANDLER"]])


if __name__ == "__main__":
    main()
