"""`make bench-large`: what evalkit itself costs when a suite has a million requests.

    python -m bench.large [--requests 10000 100000 1000000]

Makes a synthetic suite of each size with its lock and a tiny random model, then plans, executes
with an engine that computes nothing, finishes and verifies, each phase in a process of its own. It
reports their wall time and peak memory. With all sizes, the table goes into docs/speed.md and the
figures into bench/figures/bench-large.json; with fewer it is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import synthetic

ROOT = Path(__file__).resolve().parent.parent
SIZES = (10_000, 100_000, 1_000_000)


def make(folder: Path) -> None:
    """The suite, its lock and the model. The size stands in the folder."""
    from evalkit.harness import locking
    from tests import models

    suite = synthetic.write(folder, int((folder / "requests").read_text()))
    models.tiny(folder / "model")
    locking.write_lock(str(suite), offline=True)


def plan(folder: Path) -> None:
    """Plan the run, at the level that shares most."""
    from evalkit.base.events import Events
    from evalkit.run import evaluate
    from evalkit.run.preparing.prepare import Options

    options = Options(
        model=str(folder / "model"), suite=str(folder / "large.yaml"), out=folder / "results",
        level="tree", offline=True,
    )  # fmt: skip
    evaluate.plan_only(options, Events())


def execute(folder: Path) -> None:
    """Answer every batch with hashes."""
    from bench import stub

    stub.work(run_of(folder))


def finish(folder: Path) -> None:
    """Score through lm-eval and write the record."""
    from evalkit.base.events import Events
    from evalkit.run import evaluate

    evaluate.finish_only(
        run_of(folder), Events(), ["evalkit"], suite=str(folder / "large.yaml"),
        model=str(folder / "model"), offline=True, prefer=None,
    )  # fmt: skip


def verify(folder: Path) -> None:
    """Verify the record; the installed lm-eval scores every sample again."""
    from evalkit.judge.verify import verify as verified

    report = verified(run_of(folder))
    print("\n".join(report.lines()))
    assert report.consistent, "the run is broken"


def verify_light(folder: Path) -> None:
    """Verify the record as where lm-eval is not installed."""
    sys.modules["lm_eval"] = None  # type: ignore[assignment]
    verify(folder)


def describe(folder: Path) -> None:
    """Leave in the folder what the finished run holds."""
    run = run_of(folder)
    planned = json.loads((run / "plan.json").read_text("utf-8"))
    record = json.loads((run / "record.json").read_text("utf-8"))
    found = {
        "documents": sum(task["n"] for task in record["tasks"].values()),
        "planned": sum(len(batch["targets"]) for batch in planned["batches"]),
        "batches": len(planned["batches"]),
        "trunks": len(planned["trunks"]),
        "run_bytes": sum(file["size"] for file in record["files"].values()),
    }
    (folder / "described.json").write_text(json.dumps(found))


PHASES: dict[str, Callable[[Path], None]] = {
    "plan": plan,
    "execute, stub engine": execute,
    "finish": finish,
    "verify without lm-eval": verify_light,
    "verify with lm-eval": verify,
}

STEPS = {"make": make, **PHASES, "describe": describe}


def run_of(folder: Path) -> Path:
    """The folder of the one run."""
    (found,) = (folder / "results").glob("*/*/run.json")
    return found.parent


def child(name: str, folder: Path) -> dict[str, float]:
    """A phase in a process of its own: its wall seconds, those of all cores, which hold on a busy
    machine as well, and the peak memory, of it or of one that it started."""
    caches = {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HOME": str(folder / "hf")}
    started = time.monotonic()
    with (folder / "log.txt").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.large", "--phase", name, "--folder", folder],
            cwd=ROOT, env=os.environ | caches | {"HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"{name} ended with {process.returncode}:\n{log.read()}")
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
    }


def measure(requests: int) -> dict[str, Any]:
    """A suite of so many requests through every phase."""
    with tempfile.TemporaryDirectory(prefix="evalkit-large-") as name:
        folder = Path(name)
        (folder / "requests").write_text(str(requests))
        child("make", folder)
        phases = {}
        for phase in PHASES:
            phases[phase] = child(phase, folder)
            say(f"{requests:,} requests: {phase} in {phases[phase]['seconds']:.1f} s,"
                f" {phases[phase]['peak_bytes'] / 1e9:.2f} GB")  # fmt: skip
        child("describe", folder)  # what grows here would be counted in the next children
        return {"phases": phases, **json.loads((folder / "described.json").read_text())}


def say(text: str) -> None:
    """Tell what is being done."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print, and publish where all sizes were measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--phase", choices=STEPS, help="only this one, here")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.phase:
        STEPS[given.phase](given.folder)
        return
    sizes = [measure(requests) for requests in given.requests]  # before this process grows
    from bench import report_large, tables

    figures = {"machine": tables.machine(), "sizes": sizes}
    text = report_large.text(figures)
    print(text)
    if tuple(given.requests) == SIZES:
        tables.publish("bench-large", text, figures)


if __name__ == "__main__":
    main()
