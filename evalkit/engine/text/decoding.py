"""One prompt's text as it grows: choosing the next token, seeing that it stops, the answer.

A text stops at an end-of-text token, when a stop string shows in its decoded tail, or at its
longest. It is what lm-eval's `hf` model would give: special tokens skipped, cut at the first stop
string. Greedy, or sampled from a generator seeded by the request's own id, so that who shares the
batch can't change a draw.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from evalkit.engine.text import processors, thoughts
from evalkit.engine.text.processors import Chooser
from evalkit.engine.text.thoughts import TAIL_TOKENS, Thought
from evalkit.engine.tree.tree import path_end
from evalkit.inputs.chat import texts
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.batch import Batch
from evalkit.plan.requests.request import Settings

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

UNFINISHED = "\ufffd"  # what a piece of a character is decoded to
# Decoders whose steps only append. `Strip` takes characters off a text's start.
APPENDING = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip"}


@dataclass
class Text:
    """One prompt and what has been generated behind it."""

    id: str
    chooser: Chooser
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    stop: str = ""
    thought: Thought | None = None


def texts_of(engine: "Engine", batch: Batch) -> list[Text]:
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
        chooser = processors.chooser(engine, settings, before + own)
        thought = thoughts.of(engine.tokenizer, settings, before + own)
        generator = _generator(target.id, settings)
        texts.append(Text(target.id, chooser, generator, thought=thought))
    return texts


def _generator(request: str, settings: Settings) -> torch.Generator | None:
    if not settings.do_sample:
        return None
    seed = hashlib.sha256(f"{settings.seed}/{request}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)


def advance(
    engine: "Engine", texts: Sequence[Text | None], logits: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """Choose each text's next token from its logits [texts, vocabulary] and see if it stops; None
    stands where there is no text. Returns the tokens [texts] where the logits are.

    What a model's generation config does to its logits is done first, so a log-probability is that
    of the distribution that was chosen from. Of equally probable tokens the first is chosen.
    """
    logits = logits.float()
    if any(text is not None and text.chooser.has_processors for text in texts):
        logits = torch.stack(
            [
                row if text is None else text.chooser.processed(text.tokens, row)
                for text, row in zip(texts, logits, strict=True)
            ]
        )
    most = logits.argmax(dim=-1, keepdim=True)
    logprob = torch.log_softmax(logits, dim=-1).gather(1, most)
    table = torch.cat([most.float(), logits.topk(2).values, logprob], dim=1)  # ids below 2^24
    chosen: list[int] = []
    for row, (first, best, second, logprob_of_best) in enumerate(to_host(table)):
        token, value, text = int(first), best, texts[row]
        if text is not None and text.generator is not None:
            token = _sample(text.chooser, logits[row].cpu(), text.generator)
            value = float(logits[row, token])
        chosen.append(token)
        if text is not None:
            text.tokens.append(token)
            text.logprobs.append(value - best + logprob_of_best)
            text.margins.append(value - (second if token == int(first) else best))
    see_stops(engine, [text for text in texts if text is not None], settings)
    return torch.tensor(chosen, device=most.device) if settings.do_sample else most[:, 0]


def to_host(table: torch.Tensor) -> list[list[float]]:
    """A step's results, in the one copy from the device that a step makes."""
    found: list[list[float]] = table.tolist()
    return found


def _sample(chooser: Chooser, logits: torch.Tensor, generator: torch.Generator) -> int:
    """Draw from processed logits [vocabulary] in float32 on the CPU."""
    chances = chooser.warped(logits).softmax(-1)
    if chances.isnan().any():  # a broken model: its log-probabilities say so, the batch goes on
        return int(logits.argmax())
    return int(torch.multinomial(chances, 1, generator=generator))


def see_stops(engine: "Engine", texts: list[Text], settings: Settings) -> None:
    """Note of each text whether its last token ends it, and why."""
    if settings.think_end:
        for text in texts:
            assert text.thought is not None, "it thinks by its settings"
            why = thoughts.see(engine.tokenizer, text.thought, text.tokens, settings)
            text.stop = "eos" if text.tokens[-1] in engine.eos_ids else why
        return
    longest = max((len(stop.encode()) for stop in settings.until), default=0)
    asked = [text for text in texts if longest and engine.endings.may_end(text.tokens, settings)]
    tails = [text.tokens[-(longest + TAIL_TOKENS) :] for text in asked]
    decoded = engine.tokenizer.decode(tails, skip_special_tokens=False) if tails else []
    found = {id(text): tail for text, tail in zip(asked, decoded, strict=True)}
    for text in texts:
        tail = found.get(id(text), "")
        if text.tokens[-1] in engine.eos_ids:
            text.stop = "eos"
        elif any(stop and stop in tail for stop in settings.until):
            text.stop = "stop_string"
        elif len(text.tokens) == settings.max_gen_toks:
            text.stop = "length"


class Endings:
    """Which tokens may complete a stop string: only where one came, a text's tail is decoded.

    A decoder that only ever appends to what it has given shows a stop string first when the token
    comes that holds its last character. What a token adds is asked of the tokenizer once, by
    decoding it behind itself. Where that does not say it (pieces of a character, decoders that do
    more than append), the tail is looked at as if there were no such rule.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cleans = bool(getattr(tokenizer.hf, "clean_up_tokenization_spaces", False))
        self._appends = _appends(getattr(tokenizer.hf, "backend_tokenizer", None))
        self._added: dict[int, str | None] = {}

    def may_end(self, tokens: list[int], settings: Settings) -> bool:
        """Whether the last of a text's tokens may have completed a stop string."""
        added = self._of(tokens[-1])
        if added is None or any(stop and stop[-1] in added for stop in settings.until):
            return True
        return self._cleans and self._may_join(tokens[-4:-1])

    def _may_join(self, before: list[int]) -> bool:
        """Whether what transformers cleans up (`do n` + `'t`, `a '` + `s`) may take away a space
        that stands before the last token."""
        added = [self._of(token) for token in before]
        tail = "".join(filter(None, added))[-3:]
        return None in added or "'" in tail or tail.endswith(" n")

    def _of(self, token: int) -> str | None:
        if not self._appends:
            return None
        if token not in self._added:
            one, two = self._tokenizer.decode([[token], [token] * 2], skip_special_tokens=False)
            known = two.startswith(one) and UNFINISHED not in two
            self._added[token] = two[len(one) :] if known else None
        return self._added[token]


def _appends(backend: Any) -> bool:
    """Whether a tokenizer's decoder only appends."""
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    return decoder is not None and all(map(_appending, decoder.get("decoders", [decoder])))


def _appending(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return len(step["pattern"].get("String", "")) == 1 == len(step["content"])
    return step["type"] in APPENDING and not step.get("stop")


def answer(engine: "Engine", text: Text, settings: Settings) -> dict[str, Any]:
    """A stopped text as the journal holds it."""
    raw = thoughts.raw(engine.tokenizer, text.tokens, settings)
    raw = texts.cut(raw, [engine.eos_text])  # some tokenizers' EOS is not a special token
    thinks = text.thought is not None and text.thought.begun
    answer = texts.scored_part(raw, settings.to_json(), thinks=thinks)
    found: dict[str, Any] = {
        "text": answer,
        "tokens": text.tokens,
        "logprobs": text.logprobs,
        "margins": text.margins,
        "stop": text.stop,
    }
    if raw != answer:
        found["raw"] = raw
    if text.thought is not None:
        found["thought"] = text.thought.to_json(len(text.tokens))
    return found
