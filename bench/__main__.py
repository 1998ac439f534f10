"""All benches, or those named, one after the other: `make bench`, `python -m bench checker cost`."""

from __future__ import annotations

import os
import subprocess
import sys

BENCHES = ("adoption", "audit_archive", "checker", "cloud_agreement", "cloud_large", "cloud_scan", "cold_start", "cost",
           "csv_processing", "fingerprints", "orphan_scan", "purge", "schemas", "worlds")  # fmt: skip

chosen = sys.argv[1:] or BENCHES
if unknown := set(chosen) - set(BENCHES):
    raise SystemExit(f"There is no bench called {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}.")
for name in chosen:
    print(f"\n## bench/{name}.py", flush=True)
    subprocess.run([sys.executable, "-m", f"bench.{name}"], check=True, env=os.environ | {"PYTHONPATH": "functions"})
