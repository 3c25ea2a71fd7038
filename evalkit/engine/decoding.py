"""One prompt's text as it grows: choosing the next token, seeing that it stops, the answer.

A text stops at an end-of-text token, when a stop string shows in its decoded tail, or at its
longest. It is what lm-eval's `hf` model would give: special tokens skipped, cut at the first stop
string. Greedy, or sampled from a generator seeded by the request's own id, so that who shares the
batch can't change a draw.
"""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from evalkit.base.errors import EvalkitError
from evalkit.engine.tree.tree import path_end
from evalkit.plan.batch import Batch
from evalkit.plan.request import Settings

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

TAIL_TOKENS = 8  # beyond a stop string's bytes (a token is one at least): what stands around it


@dataclass
class Text:
    """One prompt and what has been generated behind it."""

    id: str
    prompt: list[int]
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    stop: str = ""


def texts_of(batch: Batch) -> list[Text]:
    """An empty text for each target of a batch, in their order."""
    settings = batch.settings
    assert settings is not None, "a generating batch has settings"
    before: list[int] = []
    link = batch.trunk
    while link is not None:
        before, link = [*link.tokens.tolist(), *before], link.parent
    texts = []
    for target in batch.targets:
        row = batch.rows[target.row]
        own = row.tokens[path_end(row, target.end, target.start - len(before))].tolist()
        texts.append(Text(target.id, before + own, _generator(target.id, settings)))
    return texts


def _generator(request: str, settings: Settings) -> torch.Generator | None:
    if not settings.do_sample:
        return None
    seed = hashlib.sha256(f"{settings.seed}/{request}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)


def advance(engine: "Engine", texts: list[Text], logits: torch.Tensor, settings: Settings) -> None:
    """Choose each text's next token from its logits [texts, vocabulary] and see if it stops.

    What a model's generation config does to its logits is done first, so a log-probability is that
    of the distribution that was chosen from.
    """
    logits = logits.float()
    if engine.processors:
        logits = torch.stack([processed(engine, *pair) for pair in zip(texts, logits, strict=True)])
    top = logits.topk(2, dim=-1)
    table = torch.cat([top.values, torch.logsumexp(logits, dim=-1, keepdim=True)], dim=1)
    first = top.indices[:, 0].tolist()
    for row, (text, (best, second, total)) in enumerate(zip(texts, table.tolist(), strict=True)):
        token, value = first[row], best
        if text.generator is not None:
            token = _sample(logits[row].cpu(), settings, text.generator)
            value = float(logits[row, token])
        text.tokens.append(token)
        text.logprobs.append(value - total)
        text.margins.append(value - (second if token == first[row] else best))
    see_stops(engine, texts, settings)


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


def processed(engine: "Engine", text: Text, logits: torch.Tensor) -> torch.Tensor:
    """Logits [vocabulary] of a text's next token as the generation config leaves them."""
    before = torch.tensor([text.prompt + text.tokens], device=logits.device)
    found: torch.Tensor = engine.processors(before, logits[None])[0]
    return found


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


def see_stops(engine: "Engine", texts: list[Text], settings: Settings) -> None:
    """Note of each text whether its last token ends it, and why."""
    longest = max((len(stop.encode()) for stop in settings.until), default=0)
    tails = [text.tokens[-(longest + TAIL_TOKENS) :] for text in texts]
    decoded = engine.tokenizer.decode(tails, skip_special_tokens=False) if longest else tails
    for text, tail in zip(texts, decoded, strict=True):
        if text.tokens[-1] in engine.eos_ids:
            text.stop = "eos"
        elif longest and any(stop and stop in tail for stop in settings.until):
            text.stop = "stop_string"
        elif len(text.tokens) == settings.max_gen_toks:
            text.stop = "length"


def answer(engine: "Engine", text: Text, settings: Settings) -> dict[str, Any]:
    """A stopped text as the journal holds it."""
    (decoded,) = engine.tokenizer.decode([text.tokens], skip_special_tokens=True)
    for stop in (*settings.until, engine.eos_text):  # some tokenizers' EOS is not a special token
        if stop:
            decoded = decoded.split(stop)[0]
    return {
        "text": decoded,
        "tokens": text.tokens,
        "logprobs": text.logprobs,
        "margins": text.margins,
        "stop": text.stop,
    }
