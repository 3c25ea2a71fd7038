"""`make bench-core`: 2% of every leaf task of `core`, by lm-eval and in both of evalkit's ways.

    python -m bench.core [--minutes 90]

evalkit answers in one process with a thread a core, and with a process a core. The documents (at
least one a leaf) are drawn with a seed, and asked as `core` asks them: bbh goes on for 1,024 tokens
where a random model does not stop. Both sides get all cores; lm-eval has batch size 4. A member of
`core` is a piece, but lm-eval's bbh is cut along its own order, so that its batches stay what they
are. Each piece's run is kept, so a stopped command goes on where it was.
"""

import argparse
import os
import pickle
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import evalkit
from bench import agreement, data, model, report, sides, tables
from bench.lengths import CORE
from bench.process import Process
from bench.sides import Ran
from bench.speed import say
from evalkit.base import canon
from evalkit.base.machine import stamp
from evalkit.inputs.suite import SuiteTask
from evalkit.plan.requests.request import Request

SHARE, SEED, SIZE = 0.02, 0, 4
PIECE = 8 * SIZE  # prompts of bbh in a piece
Pieces = dict[str, list[Request]]


def drawn(requests: Sequence[Request]) -> list[Request]:
    """The requests of 2% of each leaf's documents."""
    documents: dict[str, set[int]] = defaultdict(set)
    for request in requests:
        documents[request.task].add(request.doc_id)
    chosen = {}
    for task, ids in documents.items():
        source = random.Random(f"{SEED}/{task}")
        chosen[task] = set(source.sample(sorted(ids), max(1, round(SHARE * len(ids)))))
    return [request for request in requests if request.doc_id in chosen[request.task]]


def member(request: Request) -> str:
    """The member of `core` that a request belongs to."""
    return next(name for name in CORE if request.task.startswith(name))


def pieces(requests: Sequence[Request], length: dict[str, int]) -> tuple[Pieces, Pieces]:
    """What is asked at once, of lm-eval and of evalkit. `length`: the tokens of each prompt."""
    ours: Pieces = defaultdict(list)
    for request in requests:
        ours[member(request)].append(request)
    theirs = {name: part for name, part in ours.items() if name != "bbh"}
    bbh = sorted(ours["bbh"], key=lambda one: (-length[one.id], one.context))
    for start in range(0, len(bbh), PIECE):
        theirs[f"bbh {start // PIECE + 1}"] = bbh[start : start + PIECE]
    return theirs, dict(ours)


class Kept:
    """Runs of pieces that were measured before, by what was asked of what code."""

    def __init__(self) -> None:
        self._folder = data.cache() / "core"
        canon.make_folder(self._folder)
        package = Path(evalkit.__file__).parent
        self._code = {p.name: canon.sha256_file(p) for p in sorted(package.rglob("*.py"))}

    def path(self, side: str, asked: Sequence[Request]) -> Path:
        """Where a piece's run is kept."""
        covered = {
            "side": side,
            "asked": [[one.id, one.context, one.continuation] for one in asked],
            "versions": stamp.versions() | {"lm_eval": stamp.version("lm_eval")},
            "code": self._code if side != "lm-eval" else {},
            "cores": len(os.sched_getaffinity(0)),
        }
        return self._folder / canon.digest(covered)[7:23]

    def run(self, side: str, asked: Sequence[Request], answer: Any) -> Ran:
        """The kept run, or a new one."""
        path = self.path(side, asked)
        if not path.is_file():
            ran = answer()
            ran.passes = []
            canon.write_atomic(path, pickle.dumps(ran))
        kept: Ran = pickle.loads(path.read_bytes())
        return kept


def measure(minutes: float) -> dict[str, Any] | None:
    """The figures; None where the time was up before all pieces were measured."""
    until = time.monotonic() + 60 * minutes
    cores = len(os.sched_getaffinity(0))
    with data.served():
        folder = str(model.folder())
        asked = drawn(data.requests(data.load(data.suite([SuiteTask(name) for name in CORE]))))
    theirs, ours = pieces(asked, _lengths(folder, asked))
    lm_eval, threads = Process(sides.LmEval, folder, cores), sides.started(folder, cores)
    workers = sides.Workers(folder, cores)
    answer: dict[str, Callable[[list[Request]], Ran]] = {
        "lm-eval": lambda part: lm_eval.call("answer", part, SIZE),
        "threads": lambda part: threads.call("answer", part),
        "workers": workers.answer,
    }
    kept = Kept()
    runs: dict[str, dict[str, Ran]] = {side: {} for side in report.SIDES}
    for side in report.SIDES:
        for name, part in (theirs if side == "lm-eval" else ours).items():
            if time.monotonic() > until:
                return None
            say(f"{side}: {name}")
            runs[side][name] = kept.run(side, part, lambda s=side, p=part: answer[s](p))
    for each in (lm_eval, threads, workers):
        each.stop()
    return _figures(asked, runs)


def _lengths(folder: str, asked: Sequence[Request]) -> dict[str, int]:
    from evalkit.inputs.models import model as models
    from evalkit.inputs.models.tokenizer import Tokenizer

    tokens = Tokenizer(models.resolve(folder)).encode(
        [request.context for request in asked], special_tokens=True
    )
    return {request.id: len(ids) for request, ids in zip(asked, tokens, strict=True)}


def _figures(asked: Sequence[Request], runs: dict[str, dict[str, Ran]]) -> dict[str, Any]:
    total = {side: sum(ran.seconds for ran in runs[side].values()) for side in report.SIDES}
    variant = min(report.VARIANTS, key=lambda side: total[side])
    found: dict[str, Any] = {"machine": tables.machine(), "documents": data.source()}
    found |= {"variant": variant, "share": SHARE, "members": {}}
    for name in CORE:
        ids = {request.id for request in asked if member(request) == name}
        parts = {side: [ran for ran in each.values() if ran.answers.keys() <= ids]
                 for side, each in runs.items()}  # fmt: skip
        answers = {
            side: {key: value for ran in each for key, value in ran.answers.items()}
            for side, each in parts.items()
        }
        found["members"][name] = {
            "documents": len({key.rsplit("/", 2)[0] for key in ids}),
            "requests": len(ids),
            "seconds": {side: sum(ran.seconds for ran in each) for side, each in parts.items()},
            "agreement": agreement.compare(answers[variant], answers["lm-eval"]).to_json(),
        }
    return found


def main() -> None:
    """Measure or go on measuring; publish when all is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=90.0, help="then stop, to be continued")
    given = parser.parse_args()
    figures = measure(given.minutes)
    if figures is None:
        say("the time is up: the same command goes on from here")
        return
    text = report.core(figures)
    print(text)
    tables.publish("bench-core", text, figures)


if __name__ == "__main__":
    main()
