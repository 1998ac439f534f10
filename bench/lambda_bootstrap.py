"""What the emulator starts in place of Lambda's own bootstrap: the module path Lambda would have, then its client."""

import os
import sys

sys.path[:1] = os.environ["BENCH_PATH"].split(os.pathsep)  # in place of this file's directory

from awslambdaric.__main__ import main  # noqa: E402

main(["bootstrap", sys.argv[1]])
