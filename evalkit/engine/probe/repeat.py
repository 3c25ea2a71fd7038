"""Whether the same batch twice gives the same bits here: what every promise of equal bits rests on.

Between the two, kept trunks are dropped and the allocator is disturbed, so that tensors lie
elsewhere in memory: a kernel that splits its sums by alignment, by how busy the device is or by the
clock shows. On a GPU a batch of real size is among them, since small ones may take other kernels.
"""

from typing import Any

import numpy as np
import torch

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.engine.core import Engine
from evalkit.engine.probe import trials
from evalkit.plan.batch import Batch
from evalkit.plan.tokenise import Tokens

WIDE, NARROW = (64, 256), (3, 12)  # rows and tokens of the batches, on a GPU and on a CPU
BLOCKS = (3, 65_537, 1_000_003, 17, 4_194_305)  # bytes: of odd sizes, so that others come after


def check(trial: Engine, allowed: Tokens) -> None:
    """EvalkitError where the same batch twice does not give the same bits. `trial`, `allowed`: see
    `problem`."""
    unlike = problem(trial, allowed)
    if unlike:
        raise EvalkitError(
            f"the same batch twice does not give the same bits here: {unlike}",
            where=str(trial.device),
            fix="no answer of this device can be repeated: try another, or --device cpu",
            code=Exit.FAILED,
        )


def problem(trial: Engine, allowed: Tokens) -> str:
    """What is not the same the second time; empty where every bit is. `trial`: an engine whose
    tokenizer stops texts (`trials.Stops`); `allowed`: token ids for prompts."""
    first = _answers(trial, allowed)
    trial.kept = None
    held = disturb_allocator(trial.device)
    again = _answers(trial, allowed)
    del held
    unlike = [name for name in first if first[name] != again[name]]
    if not unlike:
        return ""
    return f"{len(unlike)} of {len(first)} answers have other bits the second time"


def _answers(trial: Engine, allowed: Tokens) -> dict[str, str]:
    """Every answer, as text that shows each bit."""
    stops: Any = trials.Stops()  # its calls count
    trial.tokenizer = stops
    found = {}
    for number, batch in enumerate(_batches(trial, allowed)):
        for name, answer in trial.execute(batch).items():
            found[f"{number} {name}"] = canon.dumps(canon.finite(answer))
    return found


def _batches(trial: Engine, allowed: Tokens) -> list[Batch]:
    material = trials.Material(allowed, seed=7)
    rows, tokens = NARROW if trial.device.type == "cpu" else WIDE
    trunk = material.documents[0][0]
    before = trials.tokens_of(trunk)
    source = np.random.default_rng(7)
    drawn = source.choice(allowed, (rows, tokens)).tolist()
    asked = [[trials.Question(before + row[:-1], 4, row[-1])] for row in drawn]
    prompts = [before + row[:tokens] for row in drawn]
    return [
        trials.scoring(trial.level, trunk, asked),
        trials.writing(trial.level, trunk, prompts),
    ]


def disturb_allocator(device: torch.device) -> list[torch.Tensor]:
    """Give back what the allocator keeps, and take blocks between which others must find room."""
    torch.cuda.empty_cache()  # does nothing where there is no GPU
    blocks = [torch.empty(size, dtype=torch.uint8, device=device) for size in BLOCKS]
    return blocks[::2]
