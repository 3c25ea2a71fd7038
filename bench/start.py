"""`make bench-start`: where the seconds of a short command go, from Enter to the last line.

    python -m bench.start [--model smollm2] [--checkout FOLDER --as before]

Runs the whole command `evalkit eval` on 40 documents each of HellaSwag and ARC-Challenge, and the
demo, with workers as a user gets them: the first time as set-up leaves a host (packages, lm-eval's
index of its tasks and the datasets' files are there, no other cache), and the second time. The
phases come from the runs' own events logs; what stands between two phases is counted too, so that
they add up to the whole. `--checkout` measures another checkout's code, such as the one before a
change; `--as` says which column of the table its figures go into. The table goes into
docs/speed.md.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from bench import data, tables

LIMIT = 40
SUITE = {"name": "short", "tasks": ["hellaswag", "arc_challenge"]}
MAIN = "from evalkit.cli import main; main()"
# A row of the table: what it is, the event that ends it. Together they are the whole command.
PARTS = {
    "start Python, import": ("started", None),
    "prepare": ("phase.done", "prepare"),
    "load data, plan; workers load meanwhile": ("phase.start", "start"),
    "wait for the first worker": ("phase.done", "start"),
    "answer": ("phase.done", "execute"),
    "score, record, verify": ("end", None),
}
Figures = dict[str, Any]


def run(arguments: list[str], folder: Path, checkout: Path) -> Figures:
    """One command in a process of its own: its parts' seconds, the probe's, the whole, and the
    seconds of all cores, which hold on a busy machine as well."""
    out = Path(tempfile.mkdtemp(dir=folder))
    environment = os.environ | {
        "PYTHONPATH": os.fspath(checkout), "XDG_CACHE_HOME": os.fspath(folder / "cache"),
    }  # fmt: skip
    started = time.time()
    with (out / "log.txt").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", MAIN, "eval", *arguments, "--out", out / "results"],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        ended = time.time()
        log.seek(0)
        # Where only verify finds fault, such as with the harness, the command has run all the same.
        if not list(out.glob("results/*/*/record.json")):
            raise RuntimeError(f"it ended with {process.returncode}:\n{log.read()}")
    events = list(_events(out / "results"))
    return {
        "parts": _parts(events, started, ended),
        "probe": sum(event["seconds"] for event in events if event["event"] == "probed"),
        "seconds": ended - started,
        "cpu_seconds": used.ru_utime + used.ru_stime,
    }


def _events(results: Path) -> Iterator[dict[str, Any]]:
    """The events of the one run."""
    (path,) = results.glob("*/*/events/*.jsonl")
    for line in path.read_text("utf-8").splitlines():
        event = json.loads(line)
        yield event | {"at": datetime.fromisoformat(event["time"]).timestamp()}


def _parts(events: list[dict[str, Any]], started: float, ended: float) -> dict[str, float]:
    """How long each part took; its end is the event that the table names."""
    found: dict[str, float] = {}
    before = started
    for name, (event, phase) in PARTS.items():
        at = [
            each["at"]
            for each in events
            if each["event"] == event and (phase is None or each.get("phase") == phase)
        ]
        after = at[0] if at else ended
        found[name], before = after - before, after
    return found


def measure(model: str, checkout: Path) -> Figures:
    """Both commands, each the first and the second time."""
    found: Figures = {}
    with tempfile.TemporaryDirectory(prefix="evalkit-start-") as name:
        folder = Path(name)
        suite = folder / "short.yaml"
        suite.write_text(yaml.safe_dump(SUITE))
        lock(suite, checkout)  # the datasets' files are there from now on
        index(folder, checkout)
        short = ["--model", model, "--suite", str(suite), "--limit", str(LIMIT)]
        demo = ["--model", "demo", "--suite", "demo"]
        commands = {"HellaSwag 40, ARC 40": short, "make demo": demo}
        for title, arguments in commands.items():
            for turn in ("first", "second"):
                found[f"{title}, {turn}"] = run(arguments, folder, checkout)
                print(f"{title}, {turn}: {found[f'{title}, {turn}']}", file=sys.stderr, flush=True)
    return found


def lock(suite: Path, checkout: Path) -> None:
    """Lock the suite's data, which fetches it."""
    environment = os.environ | {"PYTHONPATH": os.fspath(checkout)}
    subprocess.run([sys.executable, "-P", "-c", MAIN, "lock", suite], env=environment, check=True)


def index(folder: Path, checkout: Path) -> None:
    """Keep lm-eval's index of its tasks, as set-up does."""
    code = re.search(r'INDEX = """(.*?)"""', (checkout / "requirements/setup.py").read_text(), re.S)
    if code is not None:  # an older checkout keeps none
        environment = os.environ | {
            "PYTHONPATH": os.fspath(checkout), "XDG_CACHE_HOME": os.fspath(folder / "cache"),
        }  # fmt: skip
        subprocess.run([sys.executable, "-P", "-c", code[1]], env=environment, check=True)


def text(figures: Figures) -> str:
    """Everything that goes into the docs."""
    sides = [name for name in ("before", "after") if name in figures]
    blocks = [tables.on(figures[sides[-1]]["machine"])]
    for title in figures[sides[-1]]["runs"]:
        runs = [figures[side]["runs"][title] for side in sides]
        rows = [[name, *(f"{run['parts'][name]:.1f}" for run in runs)] for name in PARTS]
        rows.append(["**all**", *(f"**{run['seconds']:.1f}**" for run in runs)])
        rows.append(["of that in the probe", *(f"{run['probe']:.1f}" for run in runs)])
        rows.append(["seconds of all cores", *(f"{run['cpu_seconds']:.1f}" for run in runs)])
        blocks.append(tables.table([title, *sides], rows))
    return "\n\n".join(blocks)


def main() -> None:
    """Measure one side, print the table of both, and publish it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="its folder or name")
    parser.add_argument("--checkout", type=Path, default=data.ROOT)
    parser.add_argument("--as", dest="side", choices=["before", "after"], default="after")
    given = parser.parse_args()
    kept = tables.FIGURES / "bench-start.json"
    figures: Figures = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    with data.served():
        runs = measure(given.model, given.checkout.resolve())
    figures[given.side] = {"machine": tables.machine(), "runs": runs}
    print(text(figures))
    tables.publish("bench-start", text(figures), figures)


if __name__ == "__main__":
    main()
