"""Generation for a batch of prompts: left-padded, one key-value cache, in step until all stopped.

A row stops at an end-of-text token, when a stop string shows in its decoded tail, or at its
longest. Its text is what lm-eval's `hf` model would give: special tokens skipped, cut at the first
stop string. Greedy, or sampled from a generator seeded by the request's own id, so that who shares
the batch can't change a draw.
"""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from evalkit.errors import EvalkitError
from evalkit.plan import Batch
from evalkit.request import Settings

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

TAIL_TOKENS = 8  # beyond a stop string's bytes (a token is one at least): what stands around it


@dataclass
class _Slot:
    """One row while it generates."""

    id: str
    prompt: list[int]
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    stop: str = ""


def generate(engine: "Engine", batch: Batch) -> dict[str, dict[str, Any]]:
    """Texts of a batch, with each token's log-probability and its margin to the runner-up."""
    settings = batch.settings
    assert settings is not None, "a generating batch has settings"
    slots = [
        _Slot(target.id, batch.rows[target.row].tolist(), _generator(target.id, settings))
        for target in batch.targets
    ]
    input_ids, mask = _padded(batch)  # [rows, tokens]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    ids, mask, positions = (t.to(engine.device) for t in (input_ids, mask, positions))
    cache = None
    for _ in range(settings.max_gen_toks):
        output = engine.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache = output.past_key_values
        _advance(engine, slots, output.logits[:, -1].float(), settings)
        if all(slot.stop for slot in slots):
            break
        ids = torch.tensor([[slot.tokens[-1]] for slot in slots], device=engine.device)
        mask = torch.cat([mask, mask.new_ones(len(slots), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return {slot.id: _answer(engine, slot, settings) for slot in slots}


def _padded(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded on the left, and the mask of what is not padding: [rows, tokens] each."""
    input_ids = torch.zeros(len(batch.rows), batch.width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(batch.rows):
        input_ids[row, batch.width - len(tokens) :] = torch.from_numpy(tokens.astype("int64"))
        mask[row, batch.width - len(tokens) :] = 1
    return input_ids, mask


def _generator(request: str, settings: Settings) -> torch.Generator | None:
    if not settings.do_sample:
        return None
    seed = hashlib.sha256(f"{settings.seed}/{request}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)


def _advance(
    engine: "Engine", slots: list[_Slot], logits: torch.Tensor, settings: Settings
) -> None:
    """Choose each open row's next token from its logits [rows, vocabulary] and see if it stops.

    What a model's generation config does to its logits is done first, so a log-probability is that
    of the distribution that was chosen from.
    """
    if engine.processors:
        logits = torch.stack(
            [_processed(engine, *pair) for pair in zip(slots, logits, strict=True)]
        )
    total = torch.logsumexp(logits, dim=-1)  # [rows]
    top = logits.topk(2, dim=-1)
    best, second = (top.values[:, i].tolist() for i in (0, 1))
    first_ids = top.indices[:, 0].tolist()
    totals = total.tolist()
    open_slots = []
    for row, slot in enumerate(slots):
        if slot.stop:
            slot.tokens.append(slot.tokens[-1])  # keeps in step; cut off again in `_answer`
            continue
        token, value = first_ids[row], best[row]
        if slot.generator is not None:
            token = _sample(logits[row].cpu(), settings, slot.generator)
            value = float(logits[row, token])
        slot.tokens.append(token)
        slot.logprobs.append(value - totals[row])
        slot.margins.append(value - (second[row] if token == first_ids[row] else best[row]))
        open_slots.append(slot)
    _see_stops(engine, open_slots, settings)


def processors(config: Any) -> Any:
    """What a model's generation config does to logits even when it is greedy, by transformers' own
    processors; lm-eval's `hf` model obeys it too. Raises EvalkitError for beam search."""
    from transformers import (
        LogitsProcessorList,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
    )

    if (getattr(config, "num_beams", None) or 1) > 1:
        raise EvalkitError(
            f"the model's generation_config.json asks for {config.num_beams} beams",
            fix="evalkit has no beam search: set num_beams to 1 in a copy of the model",
        )
    found = LogitsProcessorList()
    if (penalty := getattr(config, "repetition_penalty", None) or 1.0) != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(penalty=float(penalty)))
    if size := getattr(config, "no_repeat_ngram_size", None) or 0:
        found.append(NoRepeatNGramLogitsProcessor(size))
    return found


def _processed(engine: "Engine", slot: _Slot, logits: torch.Tensor) -> torch.Tensor:
    before = torch.tensor([slot.prompt + slot.tokens], device=logits.device)
    processed: torch.Tensor = engine.processors(before, logits[None])[0]
    return processed


def _sample(logits: torch.Tensor, settings: Settings, generator: torch.Generator) -> int:
    """Draw from logits [vocabulary] in float32 on the CPU: temperature, then top-k, then top-p, in
    the order that transformers applies them."""
    scaled = logits / settings.temperature
    if settings.top_k:
        floor = scaled.topk(min(settings.top_k, scaled.numel())).values[-1]
        scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    if settings.top_p < 1.0:
        values, order = scaled.sort(descending=True, stable=True)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        dropped = order[before >= settings.top_p]
        scaled[dropped] = float("-inf")
    chances = scaled.softmax(-1)
    if chances.isnan().any():  # a broken model: its log-probabilities say so, the batch goes on
        return int(logits.argmax())
    return int(torch.multinomial(chances, 1, generator=generator))


def _see_stops(engine: "Engine", slots: list[_Slot], settings: Settings) -> None:
    longest = max((len(text.encode()) for text in settings.until), default=0)
    tails = [slot.tokens[-(longest + TAIL_TOKENS) :] for slot in slots]
    texts = engine.tokenizer.decode(tails, skip_special_tokens=False) if longest else tails
    for slot, text in zip(slots, texts, strict=True):
        if slot.tokens[-1] in engine.eos_ids:
            slot.stop = "eos"
        elif longest and any(stop and stop in text for stop in settings.until):
            slot.stop = "stop_string"
        elif len(slot.tokens) == settings.max_gen_toks:
            slot.stop = "length"


def _answer(engine: "Engine", slot: _Slot, settings: Settings) -> dict[str, Any]:
    tokens = slot.tokens[: len(slot.logprobs)]
    (text,) = engine.tokenizer.decode([tokens], skip_special_tokens=True)
    for stop in (*settings.until, engine.eos_text):  # some tokenizers' EOS is not a special token
        if stop:
            text = text.split(stop)[0]
    return {
        "text": text,
        "tokens": tokens,
        "logprobs": slot.logprobs,
        "margins": slot.margins,
        "stop": slot.stop,
    }
