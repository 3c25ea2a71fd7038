"""From requests to rows of token ids: the last place where text is seen before the answers.

The rules are lm-eval 0.4.13's `hf` model's, copied exactly: trailing spaces of a context move to
the continuation, the two are split by the length of the encoded context, an empty context becomes
the prefix token, BOS is decided string by string, and what is too long is cut on the left after
context and continuation are joined. A string is tokenised once for all the requests around it
that share it, and many at a time.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evalkit.base.errors import EvalkitError
from evalkit.plan.requests.request import Request

CHUNK = 2048  # requests whose strings are in memory at once
Tokens = npt.NDArray[np.uint32]  # [tokens]; a Python list of ints takes nine times the memory


class Encoder(Protocol):
    """What tokenising needs of a tokenizer (`model.Tokenizer` is one)."""

    max_length: int
    prefix_token_id: int
    bos_token_id: int | None
    adds_bos: bool
    added_eos: int | None  # what it puts behind every text, if anything
    vocabulary: int | None  # how many tokens the model has embeddings of

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        """Token ids of each text."""

    def starts_with_prefix(self, text: str) -> bool:
        """Whether a text to score already starts with the prefix token's own text."""

    def starts_with_bos(self, text: str) -> bool:
        """Whether a prompt already starts with the BOS token's own text."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one row must answer for one request.

    A log-likelihood scores, from the row's outputs at `start` and on, the row's own tokens behind
    `start` and then `last`, which stands behind the row's end. `part` numbers the windows of a
    rolling request. A generation has start = row length.
    """

    request: Request
    start: int
    last: int
    part: int | None = None

    @property
    def local_id(self) -> str:
        """The part's id within its task."""
        suffix = "" if self.part is None else f"#{self.part}"
        return self.request.local_id + suffix


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence to compute, and the targets that it answers."""

    tokens: Tokens
    targets: tuple[Target, ...]

    @property
    def num_scored(self) -> int:
        """Positions whose logits its targets need; none for a prompt to go on from."""
        return len(self.tokens) - min(target.start for target in self.targets)


@dataclass
class Tokenised:
    """A suite's rows, and what happened to its prompts on the way (counts by leaf task)."""

    rows: list[Row]
    truncated: Counter[str] = field(default_factory=Counter)
    missing_bos: int = 0
    double_bos: int = 0
    appended_eos: int = 0
    leaking: Counter[str] = field(default_factory=Counter)  # documents among their own shots
    empty: dict[str, list[str]] = field(default_factory=dict)  # requests with nothing to score


def tokenise(
    requests: Sequence[Request],
    encoder: Encoder,
    advance: Callable[[int], None] = lambda _: None,
) -> Tokenised:
    """Rows of every request; `advance` is told of progress in requests.

    Requests with the same input tokens (the choices of one question with one-token answers) share a
    row, as they share a forward pass in lm-eval.

    Raises EvalkitError naming the document when a continuation merges into its context, does not
    fit the model, or leaves no room to generate.
    """
    made = Tokenised([])
    shared: dict[tuple[object, ...], tuple[Tokens, list[Target]]] = {}
    for first in range(0, len(requests), CHUNK):
        chunk = requests[first : first + CHUNK]
        encoded = _encode_all(chunk, encoder)
        for request in chunk:
            for tokens, target in _row_parts(request, encoder, encoded, made):
                digest = hashlib.sha256(tokens.tobytes()).digest()  # a tenth of the tokens' memory
                key = (request.task, request.kind, request.settings, digest)
                shared.setdefault(key, (tokens, []))[1].append(target)
        advance(len(chunk))
    leaking = {(request.task, request.doc_id) for request in requests if request.leaks}
    made.leaking.update(task for task, _ in leaking)
    for tokens, targets in shared.values():
        if targets[0].request.kind == "generate_until":  # a repeat is an answer of its own
            made.rows.extend(Row(tokens, (target,)) for target in targets)
        else:
            made.rows.append(Row(tokens, tuple(targets)))
        _count_bos(tokens, encoder, made)
        _check_ends(tokens, targets, encoder, made)
    return made


Encoded = dict[tuple[str, bool], Tokens]


def _split(request: Request) -> tuple[str, str]:
    """Context and continuation with the context's trailing spaces moved over."""
    context = request.context.rstrip()
    return context, request.context[len(context) :] + request.continuation


def _texts(request: Request, encoder: Encoder) -> Iterable[tuple[str, bool]]:
    if request.kind == "generate_until":
        yield request.context, not encoder.starts_with_bos(request.context)
    elif request.kind == "loglikelihood_rolling":
        yield request.context, not encoder.starts_with_prefix(request.context)
    elif request.context == "":
        yield request.continuation, False
    else:
        context, continuation = _split(request)
        for text in (context, context + continuation):
            yield text, not encoder.starts_with_prefix(text)


def _encode_all(requests: Sequence[Request], encoder: Encoder) -> Encoded:
    wanted = dict.fromkeys(key for request in requests for key in _texts(request, encoder))
    encoded: Encoded = {}
    for special_tokens in (True, False):
        texts = [text for text, special in wanted if special == special_tokens]
        ids = encoder.encode(texts, special_tokens=special_tokens)
        for text, tokens in zip(texts, ids, strict=True):
            encoded[text, special_tokens] = np.asarray(tokens, dtype=np.uint32)
    return encoded


def _row_parts(
    request: Request, encoder: Encoder, encoded: Encoded, made: Tokenised
) -> Iterable[tuple[Tokens, Target]]:
    texts = list(_texts(request, encoder))
    if request.kind == "generate_until":
        yield _prompt(request, encoded[texts[0]], encoder, made)
    elif request.kind == "loglikelihood_rolling":
        tokens = encoded[texts[0]]
        if not len(tokens):  # lm-eval's sum over no windows
            made.empty.setdefault(request.task, []).append(request.local_id)
        windows = rolling_windows(tokens, encoder.prefix_token_id, encoder.max_length)
        for part, (context, scored) in enumerate(windows):
            yield _scored(request, context, scored, part, encoder, made)
    elif request.context == "":
        tokens = encoded[texts[0]]
        prefix = encoder.prefix_token_id
        given = tokens[0] == prefix
        first = np.asarray([prefix], dtype=np.uint32)
        context, scored = (first, tokens[1:] if given else tokens)
        yield _scored(request, context, scored, None, encoder, made)
    else:
        context, whole = encoded[texts[0]], encoded[texts[1]]
        yield _scored(request, context, whole[len(context) :], None, encoder, made)


def _prompt(
    request: Request, tokens: Tokens, encoder: Encoder, made: Tokenised
) -> tuple[Tokens, Target]:
    assert request.settings is not None, "a generation has settings"
    most = max(request.settings.max_gen_toks, request.reserved)
    room = encoder.max_length - most
    if room <= 0:
        raise EvalkitError(
            f"task '{request.task}' generates up to {most} tokens but the"
            f" model's context is {encoder.max_length}",
            fix="choose a model with a longer context, or set gen_kwargs.max_gen_toks in the suite",
        )
    if not len(tokens):
        raise EvalkitError(
            f"request {request.id}: its prompt is empty and the tokenizer adds no BOS, so there is"
            " nothing to go on from",
            fix="lm-eval's text for it depends on the padding of its batch; give the task a prompt",
        )
    if len(tokens) > room:
        made.truncated[request.task] += 1
    row = tokens[-room:]
    return row, Target(request, len(row), -1)


def _scored(
    request: Request,
    context: Tokens,
    scored: Tokens,
    part: int | None,
    encoder: Encoder,
    made: Tokenised,
) -> tuple[Tokens, Target]:
    if not len(scored) or not len(context):
        reason = (
            "the tokenizer merges its continuation into the context, so nothing is left to score"
            if len(context)
            else "its context is blank and the tokenizer adds no BOS, so there is nothing before it"
        )
        raise EvalkitError(
            f"request {request.id}: {reason}",
            fix="lm-eval can't score this document with this tokenizer either",
        )
    if len(scored) > encoder.max_length:
        raise EvalkitError(
            f"request {request.id} scores {len(scored)} tokens but the model's context is"
            f" {encoder.max_length}"
        )
    whole = np.concatenate([context, scored])
    if len(whole) > encoder.max_length + 1 and part is None:
        made.truncated[request.task] += 1
    row = whole[-(encoder.max_length + 1) :][:-1]
    # the row's last len(scored) outputs are scored: that of position `start` scores the first token
    return row, Target(request, len(row) - len(scored), int(scored[-1]), part)


def rolling_windows(
    tokens: Tokens, prefix_token_id: int, max_length: int
) -> Iterable[tuple[Tokens, Tokens]]:
    """(context, scored) of each window: lm-eval's disjoint rolling windows with one token of
    context. Every token is scored exactly once; a later window is filled up on the left."""
    first = min(max_length, len(tokens))
    if not first:
        return
    yield np.asarray([prefix_token_id], dtype=np.uint32), tokens[:first]
    done = first
    while done < len(tokens):
        end = done + min(len(tokens) - done, max_length)
        start = max(end - max_length - 1, 0)
        yield tokens[start:done], tokens[done:end]
        done = end


def _check_ends(tokens: Tokens, targets: list[Target], encoder: Encoder, made: Tokenised) -> None:
    """EvalkitError for a token without an embedding; EOS behind a text is counted."""
    ends = {int(tokens[-1]), *(target.last for target in targets)}
    most = max(int(tokens.max()), *ends)
    if encoder.vocabulary is not None and most >= encoder.vocabulary:
        raise EvalkitError(
            f"request {targets[0].request.id} holds token {most}, and the model has embeddings"
            f" of {encoder.vocabulary:,}",
            fix="its text spells an added token that the model was not resized for",
        )
    made.appended_eos += encoder.added_eos is not None and encoder.added_eos in ends


def _count_bos(tokens: Tokens, encoder: Encoder, made: Tokenised) -> None:
    bos = encoder.bos_token_id
    if bos is None or not encoder.adds_bos:
        return
    made.missing_bos += bool(tokens[0] != bos)
    made.double_bos += tokens[:2].tolist() == [bos, bos]
