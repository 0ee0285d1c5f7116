"""Every benchmark, one after another: `python bench/run.py [--quick] [--write] [NAME...]`.

A benchmark is a program in this folder. It measures its peer in the same run, prints both and their ratio, and
takes `--quick` for a rough figure in seconds; those that need longer are left out of a quick run unless they are
named. What it prints of one machine says nothing of another; the ratio does.
With `--write` the results are kept: `docs/performance.json`, a table in `docs/PERFORMANCE.md`,
`docs/performance.svg`, `docs/curves.svg`; and `scale` writes the figures of `docs/SCALE.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rig.about import machine
from rig.drawing import drawing
from rig.plotting import curves
from rig.rounds import is_a_bound

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
# They keep a page of their own as well.
WRITERS = ("scale",)
# They wait for what takes its time: hosts that are looked at again, and a machine that is measured part by part.
LONG = ("down", "hanging", "outcomes", "scale")
BEGIN, END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"


def main() -> int:
    """Run those that are named, or all; how many of them failed is the exit code."""
    there = sorted(path.stem for path in HERE.glob("*.py") if path.name != Path(__file__).name)
    parser = argparse.ArgumentParser(description=f"The benchmarks: {', '.join(there)}.")
    parser.add_argument("--quick", action="store_true", help="rough figures, in seconds")
    parser.add_argument("--write", action="store_true", help="keep the results in docs/")
    parser.add_argument("--directory", help="on the file system to measure")
    parser.add_argument("name", nargs="*")
    asked = parser.parse_args()
    failed, found = 0, []
    for name in asked.name or [name for name in there if not (asked.quick and name in LONG)]:
        print(f"== {name}", flush=True)
        documents = run(name, asked)
        failed += documents is None
        for document in documents or ():
            found.append({"bench": name, **document})
            print(table([found[-1]]), flush=True)
    if asked.write and found:
        write(found, quick=asked.quick)
    return failed


def run(name: str, asked: argparse.Namespace) -> list[dict[str, Any]] | None:
    """What a benchmark has found; None: it failed."""
    command = [sys.executable, str(HERE / f"{name}.py"), "--json"]
    command += ["--quick"] if asked.quick else []
    command += ["--directory", asked.directory] if asked.directory else []
    command += ["--write"] if asked.write and name in WRITERS else []
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        print(f"{name} failed", file=sys.stderr)
        return None
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def table(found: list[dict[str, Any]]) -> str:
    """As Markdown, one line a way."""
    return "\n".join(line for document in found for line in _lines(document))


def _lines(document: dict[str, Any]) -> Iterator[str]:
    claim, peer = document["claim"], document["peer"]
    beside = next(way["median"] for way in document["ways"] if way["name"] == peer)
    for way in document["ways"]:
        if way["name"] != peer:
            yield (
                f"| `{document['bench']}` | {claim['work']}{_of(way, document)} | {way['median']:,.1f} {claim['unit']} "
                f"| {peer}: {beside:,.1f} | {way['ratio']:.2f} × | {'' if is_a_bound(way) else _wanted(claim)} |"
            )


def _of(way: dict[str, Any], document: dict[str, Any]) -> str:
    return "" if len(document["ways"]) == 2 else f" ({way['name']})"


def _wanted(claim: dict[str, Any]) -> str:
    if claim.get("below") is not None:
        return f"< {claim['below']:g} {claim['unit']}"
    if claim["at_least"] is not None:
        return f"≥ {claim['at_least']:g} ×"
    return f"≤ {claim['at_most']:g} ×" if claim["at_most"] is not None else ""


def write(found: list[dict[str, Any]], *, quick: bool) -> None:
    """Keeps the results; those of benchmarks that did not run now stay as they were."""
    path = DOCS / "performance.json"
    kept = json.loads(path.read_text())["found"] if path.exists() else []
    names = {document["bench"] for document in found}
    every = sorted(
        [*found, *(one for one in kept if one["bench"] not in names)], key=lambda one: str(one["bench"])
    )
    about = {
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "quick": quick,
    }
    path.write_text(json.dumps({**about, "found": every}, indent=1) + "\n")
    (DOCS / "performance.svg").write_text(drawing(every))
    (DOCS / "curves.svg").write_text(curves(every))
    head = "| bench | work | qrunner | peer, in the same run | ratio | to reach |\n|---|---|---|---|---|---|"
    text = f"Measured {about['date']} on {about['machine']}{', roughly' if quick else ''}.\n\n{head}\n{table(every)}"
    page = DOCS / "PERFORMANCE.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    sys.exit(main())
