"""Every benchmark, one after another: `python bench/run.py [--quick] [NAME...]`.

A benchmark is a program in this folder. It measures its peer in the same run, prints both and their ratio, and
takes `--quick` for a rough figure in seconds. What it prints of one machine says nothing of another; the ratio does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run those that are named, or all; how many of them failed is the exit code."""
    there = sorted(path.stem for path in HERE.glob("*.py") if path.name != Path(__file__).name)
    parser = argparse.ArgumentParser(description=f"The benchmarks: {', '.join(there)}.")
    parser.add_argument("--quick", action="store_true", help="rough figures, in seconds")
    parser.add_argument("name", nargs="*", default=there)
    asked = parser.parse_args()
    failed = 0
    for name in asked.name:
        print(f"== {name}", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), *(["--quick"] if asked.quick else [])]
        failed += subprocess.run(command).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
