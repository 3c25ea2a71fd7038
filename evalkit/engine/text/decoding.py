"""The text of one prompt while it is generated: its next token, its end, its answer.

A text stops at an end-of-text token, at a stop string in its decoded tail, or at its longest
length. The answer is what lm-eval's `hf` model would return: without special tokens, and cut at the
first stop string. Tokens are greedy, or drawn from a generator that is seeded by the request's id,
so that other rows of the batch can't change a draw.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NotRequired, Protocol, TypedDict

import torch

from evalkit.engine.text import processors, thoughts
from evalkit.engine.text.processors import Chooser
from evalkit.engine.text.thoughts import TAIL_TOKENS, Thought
from evalkit.engine.tree.tree import path_end
from evalkit.inputs.chat import texts
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.types import Generation
from evalkit.plan.batch import Batch
from evalkit.plan.requests.request import Settings

if TYPE_CHECKING:
    from evalkit.engine.core import Engine

UNFINISHED = "\ufffd"  # a piece of a character is decoded to it
# Steps of decoders that only append. `Strip` removes characters from the start of a text.
APPENDING = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip"}


@dataclass
class Text:
    """The tokens that are generated after one prompt, with its task's settings."""

    id: str
    settings: Settings
    chooser: Chooser
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    stop: str = ""
    thought: Thought | None = None
    reach: int = field(init=False)  # tokens at its end that may hold a stop string; 0: none is set

    def __post_init__(self) -> None:
        longest = max((len(stop.encode()) for stop in self.settings.until), default=0)
        self.reach = longest + TAIL_TOKENS if longest else 0


def texts_of(engine: "Engine", batch: Batch) -> list[Text]:
    """Return an empty text for each target of a batch, in their order."""
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
        texts.append(Text(target.id, settings, chooser, generator, thought=thought))
    return texts


def _generator(request: str, settings: Settings) -> torch.Generator | None:
    if not settings.do_sample:
        return None
    seed = hashlib.sha256(f"{settings.seed}/{request}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)


def advance(engine: "Engine", texts: Sequence[Text | None], logits: torch.Tensor) -> torch.Tensor:
    """Choose each text's next token from its logits [texts, vocabulary], and check whether the text
    stops. A row without a text is None. Return the tokens [texts] on the device of the logits.

    The processors of the model's generation config come first, so a log-probability belongs to the
    distribution that the token was chosen from. Of equally probable tokens the first is chosen.
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
            token = sample(text.chooser, logits[row].cpu(), text.generator)
            value = float(logits[row, token])
        chosen.append(token)
        if text is not None:
            text.tokens.append(token)
            text.logprobs.append(value - best + logprob_of_best)
            text.margins.append(value - (second if token == int(first) else best))
    here = [text for text in texts if text is not None]
    see_stops(engine, here)
    is_drawn = any(text.generator is not None for text in here)
    return torch.tensor(chosen, device=most.device) if is_drawn else most[:, 0]


def to_host(table: torch.Tensor) -> list[list[float]]:
    """Copy a step's results from the device, once a step."""
    rows: list[list[float]] = table.tolist()
    return rows


def sample(chooser: Chooser, logits: torch.Tensor, generator: torch.Generator) -> int:
    """Draw a token from processed logits [vocabulary], in float32 on the CPU."""
    chances = chooser.warped(logits).softmax(-1)
    if chances.isnan().any():  # a broken model, which its log-probabilities show
        return int(logits.argmax())
    return int(torch.multinomial(chances, 1, generator=generator))


def see_stops(engine: "Engine", texts: Sequence[Text]) -> None:
    """Set the `stop` of each text that its last token ends."""
    for text, tail in zip(texts, _tails(engine, texts), strict=True):
        why = ""
        if text.thought is not None:
            why = thoughts.see(engine.tokenizer, text.thought, text.tokens, text.settings)
        elif any(stop and stop in tail for stop in text.settings.until):
            why = "stop_string"
        elif len(text.tokens) == text.settings.max_gen_toks:
            why = "length"
        text.stop = "eos" if text.tokens[-1] in engine.eos_ids else why


def _tails(engine: "Engine", texts: Sequence[Text]) -> list[str]:
    """Decode the end of each text that may have completed a stop string, in one call. Return an
    empty string for the others; a text that thinks looks for itself."""
    ending = [
        text.thought is None and bool(text.reach)
        and engine.endings.may_end(text.tokens, text.settings)
        for text in texts
    ]  # fmt: skip
    last = [text.tokens[-text.reach :] for text, ends in zip(texts, ending, strict=True) if ends]
    decoded = iter(engine.tokenizer.decode(last, skip_special_tokens=False) if last else [])
    return [next(decoded) if ends else "" for ends in ending]


class Endings:
    """The tokens that may complete a stop string. A text's tail is decoded only after such a token.

    If a decoder only appends, a stop string appears first with the token that holds its last
    character. The text that a token adds is computed once, by decoding the token after itself.
    Where this does not show it (pieces of a character, decoders that do more than append), the tail
    is always decoded.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cleans = bool(getattr(tokenizer.hf, "clean_up_tokenization_spaces", False))
        self._appends = _appends(getattr(tokenizer.hf, "backend_tokenizer", None))
        self._added: dict[int, str | None] = {}

    def may_end(self, tokens: list[int], settings: Settings) -> bool:
        """Return whether the last of a text's tokens may have completed a stop string."""
        added = self._of(tokens[-1])
        if added is None or any(stop and stop[-1] in added for stop in settings.until):
            return True
        return self._cleans and self._may_join(tokens[-4:-1])

    def _may_join(self, before: list[int]) -> bool:
        """Return whether transformers' clean-up (`do n` + `'t`, `a '` + `s`) may remove a space
        before the last token."""
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


class DecoderStep(TypedDict):
    """A step of a decoder in tokenizer.json, or a sequence of steps (`decoders`)."""

    type: str
    pattern: NotRequired[dict[str, str]]
    content: NotRequired[str]
    stop: NotRequired[int]
    decoders: NotRequired[list["DecoderStep"]]


class Backend(Protocol):
    """The part of `tokenizers.Tokenizer` that is used here."""

    def to_str(self) -> str:
        """Return the content of tokenizer.json."""


def _appends(backend: Backend | None) -> bool:
    """Return whether a tokenizer's decoder only appends."""
    decoder: DecoderStep | None = None
    if backend is not None:
        decoder = json.loads(backend.to_str())["decoder"]
    return decoder is not None and all(map(_appending, decoder.get("decoders", [decoder])))


def _appending(step: DecoderStep) -> bool:
    if step["type"] == "Replace":
        return len(step["pattern"].get("String", "")) == 1 == len(step["content"])
    return step["type"] in APPENDING and not step.get("stop")


def answer(engine: "Engine", text: Text) -> Generation:
    """Return a stopped text as the journal holds it."""
    settings = text.settings
    raw = thoughts.raw(engine.tokenizer, text.tokens, settings)
    raw = texts.cut(raw, [engine.eos_text])  # some tokenizers' EOS is not a special token
    thinks = text.thought is not None and text.thought.begun
    scored = texts.scored_part(raw, settings.to_json(), thinks=thinks)
    answer: Generation = {
        "text": scored,
        "tokens": text.tokens,
        "logprobs": [*text.logprobs],
        "margins": [*text.margins],
        "stop": text.stop,
    }
    if raw != scored:
        answer["raw"] = raw
    if text.thought is not None:
        answer["thought"] = text.thought.to_json(len(text.tokens))
    return answer
