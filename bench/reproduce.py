"""What `reproduce` says of ten known changes: `python -m bench.reproduce` writes docs/reproduce.md.

A small model, trained for seconds, is evaluated on the demo's tasks. Each experiment changes one
thing, reproduces, and knows which verdicts and which cause are right; a wrong one ends the command
with 1. Another transformers comes from the package index, into a folder of its own.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import data
from bench.model import talker
from bench.tables import machine, on, table
from evalkit.base import canon
from evalkit.base.events import Events
from evalkit.judge.reproduce import Outcome, Wanted, reproduce, verdicts
from evalkit.plan import store as plans
from evalkit.record import journal
from evalkit.run import evaluate as run
from evalkit.run.preparing import prepare
from evalkit.run.preparing.prepare import Options

DOC = data.ROOT / "docs" / "reproduce.md"
OTHER = "5.22.2"  # another transformers
TASKS = data.ROOT / "evalkit" / "inputs" / "models" / "builtin" / "demo" / "tasks"
EQUAL = ("BITWISE", "ANSWERS", "NUMERICS")
ROW_TO_CHANGE = ("qa.jsonl", "Which of these is a drink?", "Which of these do people drink?")
PLANTED = "demo_qa/3/1/0"
PROMPT = ("demo_qa.yaml", "Question:", "Q:")


@dataclass(frozen=True)
class Result:
    """What an experiment came to, and what is right."""

    name: str
    verdict: str
    cause: str
    flips: int
    right: bool


class Experiments:
    """The originals, and what is changed about them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.events, self.model = folder, Events(), talker()
        self.original = self.evaluated("original", model=str(self.model))
        self.results: list[Result] = []

    def evaluated(self, name: str, **options: Any) -> Path:
        """A finished run in a folder of that name."""
        asked = {"suite": "demo", "out": self.folder / name} | options
        return run.evaluate(Options(**asked), self.events, workers=0)

    def again(
        self, name: str, verdicts: tuple[str, ...], cause: str, original: Path | None = None,
        **given: Any,
    ) -> None:  # fmt: skip
        """Reproduce, and hold the outcome against what is right."""
        given = {"model": str(self.model)} | given
        wanted = Wanted(self.folder / name.replace(" ", "-"), given, workers=0)
        found = reproduce(original or self.original, wanted, self.events, [])
        print("\n".join(found.lines()), flush=True)
        self.note(name, verdicts, cause, found)

    def note(self, name: str, verdicts: tuple[str, ...], cause: str, found: Outcome) -> None:
        """Keep a result."""
        flips = len(found.pair.flips) if found.pair else 0
        right = found.verdict.value in verdicts and found.cause.startswith(cause)
        if found.verdict.value == "BITWISE":
            right = "BITWISE" in verdicts
        told = found.verdict.value
        if told == "REPRODUCED":
            told += f" ±{100 * found.margin:.1f}"
        self.results.append(Result(name, told, found.cause or "", flips, right))

    def all(self) -> None:
        """Every experiment."""
        self.again("the same machine again", ("BITWISE",), "")
        self.again("2 threads", EQUAL, "other numerics: numerics.threads", threads=2)
        with budgets(max_tokens=2048, row_tokens=64, chunk=64, max_slots=3):
            self.again("smaller budgets", EQUAL, "another engine, level or batching: engine.policy")
        self.again(
            "level none", EQUAL, "another engine, level or batching: engine.level", level="none"
        )
        low = self.evaluated("low", model=str(self.model), dtype="bfloat16")
        self.again("bf16 again in float32", (*EQUAL, "REPRODUCED", "INCONCLUSIVE"),
                   "other numerics: numerics.profile", low, profile="precise")  # fmt: skip
        self.other_version()
        changed = self.weights()
        self.again("a layer's weights changed", ("DIFFERENT", "INCONCLUSIVE"),
                   "other weights or another tokenizer: model.model.safetensors",
                   model=str(changed))  # fmt: skip
        mine = self.evaluated("mine", model=str(self.model), suite=str(suite(self.folder / "a")))
        for name, change in {"a dataset's row changed": ROW_TO_CHANGE,
                             "another prompt": PROMPT}.items():  # fmt: skip
            place = suite(self.folder / name.replace(" ", "-"), change)
            self.again(name, ("INCOMPARABLE",), "another question was asked: suite", mine,
                       suite=str(place))  # fmt: skip
        self.again("a wrong answer in the original",
                   ("ANSWERS", "INCONCLUSIVE", "REPRODUCED", "DIFFERENT"),
                   "no recorded input differs", self.planted())  # fmt: skip

    def planted(self) -> Path:
        """A copy of the original, scored with one answer made another: consistent in itself."""
        copy = self.folder / "planted" / self.original.parent.name / self.original.name
        shutil.copytree(self.original, copy)
        for name in ("record.json", "results.json", "samples.jsonl.gz"):
            (copy / name).unlink()
        for path in (copy / "journal").glob("*.jsonl"):
            lines = [canon.loads(line) for line in path.read_text().splitlines()]
            for line in lines:
                if PLANTED in line["answers"]:
                    line["answers"][PLANTED] |= {"loglikelihood": -1e-3, "is_greedy": True}
                line["sha256"] = journal.checksum(line)
            path.write_text("".join(canon.dumps(line) + "\n" for line in lines))
        run.finish_only(copy, self.events, [], suite=None, model=str(self.model), offline=True,
                        prefer=None)  # fmt: skip
        return copy

    def weights(self) -> Path:
        """A copy of the model with one layer's weights made others."""
        from safetensors.torch import load_file, save_file

        copy = self.folder / "changed-model"
        shutil.copytree(self.model, copy)
        tensors = load_file(copy / "model.safetensors")
        name = next(n for n in sorted(tensors) if "layers.1.mlp.down_proj" in n)
        tensors[name] = -tensors[name]
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        return copy

    def other_version(self) -> None:
        """The same again under another release of transformers, in a process of its own."""
        target = data.cache() / f"transformers-{OTHER}"
        if not target.is_dir():
            making = target.with_name(f".{target.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            subprocess.run(
                [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", making,
                 f"transformers=={OTHER}"], check=True,
            )  # fmt: skip
            making.rename(target)
        out = self.folder / "version"
        program = (
            "import sys; from pathlib import Path; from evalkit.base.events import Events\n"
            "from evalkit.judge.reproduce import Wanted, reproduce\n"
            "wanted = Wanted(Path(sys.argv[2]), {'model': sys.argv[3]}, workers=0)\n"
            "found = reproduce(Path(sys.argv[1]), wanted, Events(), [])\n"
            "print(found.verdict.value); print(found.cause)\n"
            "print([each.after for each in found.differences"
            " if each.name == 'versions.transformers'])\n"
        )
        made = subprocess.run(
            [sys.executable, "-c", program, self.original, out, self.model], check=True, text=True,
            stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": f"{target}:{data.ROOT}"},
        )  # fmt: skip
        verdict, cause, found = made.stdout.splitlines()
        right = verdict in EQUAL and found == f"['{OTHER}']"
        right = right and (verdict == "BITWISE" or cause.startswith("another version"))
        self.results.append(Result(f"transformers {OTHER}", verdict, cause, 0, right))


@contextmanager
def budgets(**changed: int) -> Iterator[None]:
    """Plan with another batching policy until the block ends."""
    before: Callable[[], plans.Policy] = prepare.Policy
    prepare.Policy = lambda: replace(before(), **changed)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        prepare.Policy = before  # type: ignore[assignment, misc]


def suite(folder: Path, change: tuple[str, str, str] | None = None) -> Path:
    """A copy of the demo's suite in a folder, one text of one file changed, with its own lock."""
    from evalkit.harness import locking

    shutil.copytree(TASKS, folder / "tasks")
    if change:
        name, old, new = change
        (path,) = (folder / "tasks").rglob(name)
        text = path.read_text("utf-8")
        assert old in text, f"no {old!r} in {name}"
        path.write_text(text.replace(old, new, 1), "utf-8")
    place = folder / "mine.yaml"
    place.write_text("name: mine\ntasks: [demo_qa, demo_endings]\ninclude_path: tasks\n")
    locking.write_lock(str(place), update=False, offline=True)
    return place


PAGE = """# What a reproduction says

Written by `python -m bench.reproduce`. {on}

`evalkit reproduce RUN` runs a record's suite again, with the recorded settings as far as nothing
else is given, into a folder of its own. What can be opened, run or sent to is yours to name: a
suite that isn't shipped, a model that isn't built in, an adapter, an engine of lm-eval's. The
record says what it asks for, and you give `--suite FILE`, `--model`, `--adapter`, `--engine` and
`--engine-arg`. Prompts are built from your suite, never taken from the record's plan. It prints
first what differs, then one verdict, the strongest that it can show:

{meanings}

The margin is twice the original's standard error, at least one point and at most five; equivalence
is shown by two one-sided tests, Holm's adjustment over the top-level tasks. The noise is measured
on the model: how far its log-probabilities lie from those in float32. The cause is a guess from
what both sides recorded: the first that differs of suite, model, adapter, numerics, engine,
versions, hardware, software. `--sample N` plans again and answers N whole batches of that plan,
which can still be BITWISE where it is the original's; it scores nothing, so it ends in BITWISE,
NUMERICS, DIFFERENT, or, where the plan is another, INCOMPARABLE.

## Known changes

A Llama of 128 hidden units, trained for seconds, on the demo's 210 documents; each row changes one
thing. A wrong verdict or cause ends the command with an error. The model is at chance on most of
these tasks, so other weights flip answers without moving a score by more than chance.

{results}
"""


def main() -> None:
    """Run the experiments and write the page; 1 where one came out wrong."""
    with tempfile.TemporaryDirectory() as folder:
        made = Experiments(Path(folder))
        made.all()
    rows = [[r.name, r.verdict, r.cause or "-", str(r.flips)] for r in made.results]
    meanings = "\n".join(f"- `{v.value}`: {text};" for v, text in verdicts.MEANING.items())
    found = table(["changed", "verdict", "likely cause", "flips"], rows)
    page = PAGE.format(on=on(machine()), meanings=meanings[:-1] + ".", results=found)
    canon.write_atomic(DOC, page)
    wrong = [r for r in made.results if not r.right]
    sys.exit("\n".join(f"wrong: {r.name}: {r.verdict} ({r.cause})" for r in wrong) or 0)


if __name__ == "__main__":
    main()
