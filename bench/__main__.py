"""All benches, one after the other: `make bench`."""

from __future__ import annotations

import os
import subprocess
import sys

BENCHES = ("orphan_scan",)

for name in BENCHES:
    print(f"\n## bench/{name}.py", flush=True)
    subprocess.run([sys.executable, "-m", f"bench.{name}"], check=True, env=os.environ | {"PYTHONPATH": "functions"})
