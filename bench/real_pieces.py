"""What `make bench-real` asks of whom, in pieces whose answers are kept as soon as they are there.

A side's pieces of a task are answered in a process of its own, or several; `Kept` has them from
then on, so a stopped command goes on where it was.
"""

import hashlib
import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import data, passes, sides
from bench.process import Process
from bench.speed import say
from evalkit.base import canon, kept
from evalkit.base.machine import stamp
from evalkit.inputs import suite as suites
from evalkit.inputs.suite import SuiteTask
from evalkit.plan.requests.asking import Asking
from evalkit.plan.requests.request import Request

SIDES, DTYPES, SIZE = ("lm-eval", "evalkit"), ("float32", "bfloat16"), 4
COMPUTING = ("lm_eval", "tokenizers", "torch", "transformers")  # what lm-eval's answers come from


@dataclass(frozen=True)
class Work:
    """The first `limit` documents of each leaf task of a task, with these shots where they are
    not the task's own. `chat`: through the model's chat template, each shot as two turns."""

    task: str
    limit: int
    shots: int | None = None
    chat: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.task}{' chat' if self.chat else ''} {self.limit}"


# bbh with one document a task is asked of evalkit by itself: decoding has little to share then.
WORKS = (
    Work("hellaswag", 500),
    Work("arc_challenge", 300),
    Work("mmlu", 10),
    Work("gsm8k", 50, 5),
    Work("bbh", 1),
    Work("bbh", 5),
)
CHAT = (Work("gsm8k", 50, 5, chat=True),)


@dataclass(frozen=True)
class Piece:
    """What a side answers at once. `name` says which part of the task it is."""

    side: str
    dtype: str
    task: str
    name: str
    asked: tuple[Request, ...]


def load(work: Work) -> Any:
    """A task's documents as the harness loads them: at the revisions that `core` pins, other
    datasets at the Hub's current ones."""
    from evalkit.harness import tasks
    from evalkit.harness.data import loading
    from evalkit.harness.data import loading as pinning

    lock = suites.lock_of(suites.load("core"))
    revisions = {name: dataset["revision"] for name, dataset in lock.datasets.items()}
    pins = pinning.Pins(revisions, resolve=loading.current)
    suite = data.suite(
        [SuiteTask(work.task, work.shots)], limit=work.limit, apply_chat_template=work.chat,
        fewshot_as_multiturn=work.chat,
    )  # fmt: skip
    return tasks.load(suite, pins)


def pieces(
    side: str, dtype: str, task: str, asked: Sequence[Request], length: dict[str, int]
) -> list[Piece]:
    """The pieces of a side's work. `length`: the tokens of each prompt.

    evalkit plans all of a task at once, and lm-eval its choices. lm-eval's texts are cut along its
    own order, longest prompts first, a batch a piece; where the task has several leaf tasks, in
    rounds of one document each, so that the first documents stand for themselves.
    """
    if side == "evalkit" or asked[0].settings is None:
        return [Piece(side, dtype, task, "all", tuple(asked))]
    several = len({one.task for one in asked}) > 1
    rounds: dict[int, list[Request]] = defaultdict(list)
    for one in asked:
        rounds[one.doc_id if several else 0].append(one)
    found = []
    for number, part in sorted(rounds.items()):
        part.sort(key=lambda one: (-length[one.id], one.context))
        for start in range(0, len(part), SIZE):
            name = f"{number + 1}.{start // SIZE + 1}"
            found.append(Piece(side, dtype, task, name, tuple(part[start : start + SIZE])))
    return found


class Kept:
    """Pieces that were answered before, each a file in a folder."""

    def __init__(self, folder: Path, weights: str) -> None:
        self._folder, self.weights = folder, weights
        canon.make_folder(folder)
        rooms = ("engine/", "plan/")  # what answers and their seconds follow from
        self._code = {name: digest for name, digest in kept.code().items()
                      if name.startswith(rooms)}  # fmt: skip

    def path(self, piece: Piece) -> Path:
        """Where a piece's answers are kept: another model, version or question has another name."""
        ours = stamp.versions() if piece.side == "evalkit" else {}
        covered = {
            "weights": self.weights,
            "asked": [[one.id, one.context, one.continuation] for one in piece.asked],
            "settings": [one.settings.to_json() for one in piece.asked if one.settings],
            "versions": ours | {name: stamp.version(name) for name in COMPUTING},
            "code": self._code if piece.side == "evalkit" else {},
        }
        digest = canon.digest(covered)[7:19]
        parts = (piece.side, piece.dtype, piece.task, piece.name, digest)
        return self._folder / ("-".join(parts) + ".json")

    def read(self, piece: Piece) -> dict[str, Any] | None:
        """A piece's answers and what they took; None where it was not answered yet."""
        path = self.path(piece)
        found: dict[str, Any] | None = json.loads(path.read_bytes()) if path.is_file() else None
        return found

    def write(self, piece: Piece, ran: sides.Ran) -> None:
        """Keep a piece's answers, and what they took on how many cores."""
        body = {
            "seconds": ran.seconds,
            "cpu": ran.cpu,
            "cores": len(os.sched_getaffinity(0)),
            "tokens": passes.num_tokens(ran.passes),
            "answers": ran.answers,
            "texts": ran.texts,
        }
        canon.write_atomic(self.path(piece), json.dumps(body) + "\n")


class Real:
    """The model, the questions, and what is known of the answers."""

    def __init__(self, reference: str, out: Path, works: Sequence[Work]) -> None:
        from evalkit.inputs.models import model as models
        from evalkit.inputs.models.tokenizer import Tokenizer

        model = models.resolve(reference)
        self.folder, self._tokenizer = str(model.folder), Tokenizer(model)
        self.kept = Kept(out, weights(sorted(model.folder.glob("*.safetensors"))))
        self._sides: dict[tuple[str, str], Any] = {}
        self.works = works
        self.loaded: dict[Work, Any] = {}  # documents as the harness loads them
        self.asked: dict[Work, list[Request]] = {}
        for work in works:
            say(f"{work.name}: documents and prompts")
            self.loaded[work] = loaded = load(work)
            template = self._tokenizer.chat_template_for(loaded.suite)
            self.asked[work] = data.requests(loaded, Asking(template))

    def decode(self, tokens: list[int]) -> str:
        """A text's tokens as text, special ones left out."""
        return self._tokenizer.decode([tokens], skip_special_tokens=True)[0]

    def pieces(self, side: str, dtype: str, work: Work) -> list[Piece]:
        """The pieces of a side's work in a dtype."""
        asked = self.asked[work]
        texts = self._tokenizer.encode([one.context for one in asked], special_tokens=True)
        length = {one.id: len(ids) for one, ids in zip(asked, texts, strict=True)}
        return pieces(side, dtype, work.task, asked, length)

    def measure(self, until: float, again: str | None) -> None:
        """Answer what is not kept, and `again` this task, until then (time.monotonic). A task is
        done by both sides before the next one, so that what is there can be compared."""
        done: set[Path] = set()
        for work, dtype, side in itertools.product(self.works, DTYPES, SIDES):
            for piece in self.pieces(side, dtype, work):
                path = self.kept.path(piece)
                if path in done or (path.is_file() and piece.task != again):
                    continue
                if time.monotonic() > until:
                    return self.stop()
                say(f"{side}, {dtype}: {piece.task} {piece.name}")
                self.kept.write(piece, self._answer(piece))
                done.add(path)
        self.stop()

    def _answer(self, piece: Piece) -> sides.Ran:
        key, cores = (piece.side, piece.dtype), len(os.sched_getaffinity(0))
        ours = piece.side == "evalkit"
        if key not in self._sides:
            self._sides[key] = (
                sides.Workers(self.folder, cores, piece.dtype)
                if ours
                else Process(sides.LmEval, self.folder, cores, piece.dtype)
            )
        side, asked = self._sides[key], list(piece.asked)
        ran: sides.Ran = side.answer(asked) if ours else side.call("answer", asked, SIZE)
        return ran

    def stop(self) -> None:
        """End the processes of all sides."""
        for side in self._sides.values():
            side.stop()
        self._sides.clear()


def weights(files: Sequence[Path]) -> str:
    """A digest of a model's weights, whatever else stands in their files."""
    return canon.digest(dict(_tensors(files)))


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, "np") as stored:
            for name in stored.keys():  # noqa: SIM118  (no dictionary)
                yield name, hashlib.sha256(stored.get_tensor(name).tobytes()).hexdigest()
