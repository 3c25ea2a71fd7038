"""What a suite costs in tokens: a table by the planner, for docs/suites.md.

    python -m bench.costs [--model MODEL] SUITE...

Nothing is computed: each suite is planned with the model's tokenizer, the data being the lock's (of
the Hub, or of the cache). Members that a suite ships without a lock of are left out, and counted in
no line. How long the texts will be nobody knows: `at most` is what they may be.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from evalkit.base import canon
from evalkit.base.events import Events
from evalkit.inputs import suite as suites
from evalkit.plan import store
from evalkit.run import evaluate
from evalkit.run.preparing.prepare import Options

HEAD = (
    "| suite | documents | requests | texts | prompt tokens | computed | generated, at most |\n"
    "|---|--:|--:|--:|--:|--:|--:|"
)


def main(argv: list[str] | None = None) -> None:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m bench.costs")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("suites", nargs="+")
    given = parser.parse_args(argv)
    print(HEAD, flush=True)
    for name in given.suites:
        with tempfile.TemporaryDirectory() as folder:
            print(line(name, planned(name, given.model, Path(folder)), Path(folder)), flush=True)


def planned(name: str, model: str, folder: Path) -> Path:
    """The folder of a planned run of a shipped suite, without what its lock leaves out."""
    lock = suites.read_lock(suites.FOLDER / f"{name}.lock.yaml")
    body: dict[str, Any] = yaml.safe_load((suites.FOLDER / f"{name}.yaml").read_text("utf-8"))
    body["tasks"] = [
        item for item in body["tasks"]
        if (item["task"] if isinstance(item, dict) else item) not in lock.unlocked
    ]  # fmt: skip
    canon.write_atomic(folder / f"{name}.yaml", yaml.safe_dump(body))
    replace(lock, unlocked={}).write(folder / f"{name}.lock.yaml")
    options = Options(model=model, suite=str(folder / f"{name}.yaml"), out=folder, level="tree")
    return evaluate.plan_only(options, Events())


def line(name: str, run: Path, folder: Path) -> str:
    """A suite's line of the table."""
    body = canon.read_json(run / "plan.json")
    lock = suites.read_lock(folder / f"{name}.lock.yaml")
    unique = canon.read_json(run / "run.json")["unique_tokens"]
    asked = {(b["task"], t[-1].partition("#")[0]) for b in body["batches"] for t in b["targets"]}
    written = [b for b in body["batches"] if b["settings"] is not None]
    texts = sum(len(b["targets"]) for b in written)
    most = sum(len(b["targets"]) * body["settings"][b["settings"]]["max_gen_toks"] for b in written)
    numbers = (
        sum(task["documents"] for task in lock.tasks.values()), len(asked), texts, unique,
        store.figures(body).computed, most,
    )  # fmt: skip
    return f"| `{name}` | {' | '.join(f'{number:,}' for number in numbers)} |"


if __name__ == "__main__":
    main(sys.argv[1:])
