"""The CPU set: every comparison with transformers that a machine without a GPU can make, one after the other.

    python benchmarks/cpu.py            # writes benchmarks/results/; docs/log/cpu.md has the times
    python benchmarks/cpu.py decode     # some of it
    python benchmarks/cpu.py wide       # not part of the set: requests to layers of true size, longer than all the rest

Each runs in a process of its own; what fails is told in the end and does not stop the others.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

SET = {
    "start": ["start.py"],
    "preprocessing": ["preprocessing.py"],
    "decode": ["decode.py"],
    "vision": ["vision.py", "--rounds", "1"],
    "engine": ["engine.py"],
    "ties": ["ties.py"],
}
MORE = {"wide": ["engine.py", "--layers", "2", "--rounds", "1"]}


def main() -> None:
    """Runs what was named, or all."""
    names = sys.argv[1:] or list(SET)
    every = {**SET, **MORE}
    unknown = [name for name in names if name not in every]
    if unknown:
        sys.exit(f"there is no {', '.join(unknown)}; choose from {', '.join(every)}")
    failed = []
    for name in names:
        began = time.monotonic()
        print(f"== {name}", flush=True)
        done = subprocess.run([sys.executable, str(Path(__file__).parent / every[name][0]), *every[name][1:]], check=False)
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
