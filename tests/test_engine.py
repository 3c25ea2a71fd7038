"""The engine against transformers itself: scores, generations, and what a batch may not change."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.requests.request import Settings
from evalkit.plan.store import Batch
from evalkit.plan.types import Kind
from tests import batches
from tests.batches import token_ids as row

torch = pytest.importorskip("torch")
engine = pytest.importorskip("evalkit.engine")
attention = pytest.importorskip("evalkit.engine.tree.attention")

ARCHITECTURES = {"llama": "llama3", "gpt2": "gpt2"}
LEVELS = ("tree", "prefix", "none")
SETTINGS = Settings((), 12)
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def load(tiny_model: Callable[..., Path]) -> Iterator[Load]:
    """A loaded tiny model by its architecture, dtype and level."""
    made: dict[str, Any] = {}
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()

    def loaded(architecture: str = "llama", dtype: str = "float32", level: str = "tree") -> Any:
        key = f"{architecture} {dtype} {level}"
        if key not in made:
            folder = tiny_model(architecture, tokenizer=ARCHITECTURES[architecture])
            model = models.resolve(str(folder))
            numerics = engine.Numerics(dtype=dtype)
            made[key] = engine.load(model, Tokenizer(model), numerics, "cpu", level=level)
        return made[key]

    yield loaded
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


def batch(
    rows: list[list[int]], targets: list[tuple[int, int, int]], kind: Kind = "loglikelihood"
) -> Batch:
    """A batch of chains with targets (row, start, last), named in order."""
    placed = [(row, len(rows[row]) - 1, start, last) for row, start, last in targets]
    return batches.scored([batches.chain(tokens) for tokens in rows], placed, kind=kind)


def prompts(rows: list[list[int]], settings: Settings = SETTINGS) -> Batch:
    """A batch of prompts to go on from."""
    return batches.prompts(rows, settings)


def logprobs(loaded: Any, tokens: list[int]) -> Any:
    """transformers' own forward of one row, alone: log-probabilities [tokens, vocabulary]."""
    with torch.inference_mode(), attention.plain(loaded):
        logits = loaded.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)


def answers(loaded: Any, given: Batch) -> list[dict[str, Any]]:
    """A batch's answers in the order of its targets."""
    found = loaded.execute(given)
    assert list(found) == [target.id for target in given.targets]
    return list(found.values())


# Scoring


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_score_is_the_sum_of_transformers_own_log_probabilities(
    load: Load, architecture: str
) -> None:
    loaded = load(architecture)
    rows = [row(seed, length) for seed, length in enumerate((31, 30, 17, 9, 2, 1))]
    targets = [(index, len(item) // 2, 100 + index) for index, item in enumerate(rows)]
    found = answers(loaded, batch(rows, targets))
    for (index, start, last), answer in zip(targets, found, strict=True):
        table, scored = logprobs(loaded, rows[index]), [*rows[index][start + 1 :], last]
        values = [float(table[start + at, token]) for at, token in enumerate(scored)]
        assert answer["loglikelihood"] == pytest.approx(sum(values), abs=1e-5)
        assert answer["num_tokens"] == len(scored)
        best = table[start:].argmax(dim=-1).tolist()
        assert answer["is_greedy"] == (best == scored)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_most_probable_continuation_is_greedy(load: Load, architecture: str) -> None:
    loaded, tokens = load(architecture), row(1, 8)
    for _ in range(3):
        tokens.append(int(logprobs(loaded, tokens)[-1].argmax()))
    whole, last = tokens[:-1], tokens[-1]
    found = answers(loaded, batch([whole], [(0, 7, last), (0, 7, (last + 1) % 1000)]))
    assert [answer["is_greedy"] for answer in found] == [True, False]


def test_one_letter_answers_that_share_a_row_are_scored_apart(load: Load) -> None:
    tokens = row(2, 20)
    found = answers(load(), batch([tokens], [(0, 19, label) for label in (65, 66, 67, 65)]))
    table = logprobs(load(), tokens)[-1]
    expected = [float(table[label]) for label in (65, 66, 67, 65)]
    assert [answer["loglikelihood"] for answer in found] == pytest.approx(expected, abs=1e-5)


def test_a_rolling_answer_has_no_greedy_flag(load: Load) -> None:
    (answer,) = answers(load(), batch([row(3, 9)], [(0, 0, 50)], "loglikelihood_rolling"))
    assert set(answer) == {"loglikelihood", "num_tokens"} and answer["num_tokens"] == 9


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_runs_on_scored_positions_only(load: Load, architecture: str) -> None:
    loaded, seen = load(architecture), []
    rows = [row(seed, 40) for seed in range(3)]
    handle = loaded.model.get_output_embeddings().register_forward_hook(
        lambda _, args, output: seen.append((tuple(args[0].shape), tuple(output.shape)))
    )
    try:
        answers(loaded, batch(rows, [(0, 39, 5), (0, 39, 6), (1, 37, 7), (2, 38, 8)]))
    finally:
        handle.remove()
    vocabulary = loaded.model.config.vocab_size
    assert seen == [((1, 6, 64), (1, 6, vocabulary))]  # 1 + 3 + 2 positions of 120


def test_the_head_is_as_it_was_after_an_error(load: Load) -> None:
    loaded = load()
    head = loaded.model.get_output_embeddings()
    with pytest.raises(IndexError):
        loaded.execute(batch([[10**6, 5]], [(0, 1, 5)]))
    assert not head._forward_pre_hooks
    answers(loaded, batch([row(0, 4)], [(0, 3, 5)]))


def test_long_scores_are_summed_over_chunks(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.engine.answers import scoring

    given = batch([row(4, 60), row(5, 50)], [(0, 3, 9), (1, 7, 9)])
    whole = answers(load(), given)
    monkeypatch.setattr(scoring, "LOGITS_CHUNK", 7)
    assert answers(load(), given) == whole


def test_weights_in_bfloat16_are_summed_in_float32(load: Load) -> None:
    loaded, tokens = load("llama", "bfloat16", "none"), row(6, 30)
    (answer,) = answers(loaded, batch([tokens], [(0, 0, 77)]))
    table, scored = logprobs(loaded, tokens), [*tokens[1:], 77]
    values = [float(table[at, token]) for at, token in enumerate(scored)]
    assert answer["loglikelihood"] == pytest.approx(sum(values), abs=1e-3)
    assert loaded.model.dtype == torch.bfloat16


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_a_batch_is_a_pure_function(load: Load, order: tuple[int, ...]) -> None:
    """Nothing that ran before it changes a bit of a batch's answers."""
    given = [
        batch([row(1, 12), row(2, 7)], [(0, 5, 3), (1, 2, 4)]),
        prompts([row(3, 9), row(4, 4)]),
        prompts([row(5, 6)], replace(SETTINGS, do_sample=True, temperature=1.0)),
        batch([row(6, 8)], [(0, 0, 3)], "loglikelihood_rolling"),
    ]
    alone = [canon.dumps(load().execute(item)) for item in given]
    torch.manual_seed(sum(order))
    assert {index: canon.dumps(load().execute(given[index])) for index in order} == dict(
        enumerate(alone)
    )


# Generation


def generated(loaded: Any, tokens: list[int], length: int) -> list[int]:
    """transformers' own greedy generation of one prompt, alone and unpadded."""
    with torch.inference_mode(), attention.plain(loaded):
        found = loaded.model.generate(
            torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            do_sample=False, max_new_tokens=length, pad_token_id=0,
        )  # fmt: skip
    return [int(token) for token in found[0, len(tokens) :]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_generation_is_transformers_own_whatever_the_padding(
    load: Load, architecture: str
) -> None:
    loaded, rows = load(architecture), [row(seed, 3 + 7 * seed) for seed in range(5)][::-1]
    found = answers(loaded, prompts(rows))
    assert [answer["tokens"] for answer in found] == [generated(loaded, r, 12) for r in rows]
    alone = [answers(loaded, prompts([r]))[0]["tokens"] for r in rows]
    assert [answer["tokens"] for answer in found] == alone


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_token_has_its_log_probability_and_margin(load: Load, architecture: str) -> None:
    loaded, rows = load(architecture), [row(8, 20), row(9, 5)]
    for tokens, answer in zip(rows, answers(loaded, prompts(rows)), strict=True):
        new = answer["tokens"]
        assert len(new) == len(answer["logprobs"]) == len(answer["margins"]) == 12
        table = logprobs(loaded, tokens + new)[len(tokens) - 1 : -1]
        top = table.topk(2, dim=-1).values
        values = [float(table[at, token]) for at, token in enumerate(new)]
        assert answer["logprobs"] == pytest.approx(values, abs=1e-4)
        assert answer["margins"] == pytest.approx((top[:, 0] - top[:, 1]).tolist(), abs=1e-4)
        assert min(answer["margins"]) >= 0


def test_a_row_that_reaches_its_longest_says_so(load: Load) -> None:
    (answer,) = answers(load(), prompts([row(1, 5)]))
    assert answer["stop"] == "length" and len(answer["tokens"]) == 12
    (text,) = load().tokenizer.decode([answer["tokens"]], skip_special_tokens=True)
    assert answer["text"] == text


def test_a_row_stops_at_an_end_of_text_and_leaves_the_others_alone(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, rows = load(), [row(1, 15), row(2, 9), row(3, 4)]
    free = answers(loaded, prompts(rows))
    others = {*free[0]["tokens"], *free[2]["tokens"]}
    end = next(token for token in free[1]["tokens"][2:-1] if token not in others)
    first = free[1]["tokens"].index(end)
    monkeypatch.setattr(loaded, "eos_ids", frozenset({end}))
    found = answers(loaded, prompts(rows))
    for other in (0, 2):  # its last bits may differ: from here on fewer rows go in step
        assert found[other]["tokens"] == free[other]["tokens"]
        assert found[other]["logprobs"] == pytest.approx(free[other]["logprobs"], abs=1e-4)
    assert found[1]["stop"] == "eos" and found[1]["tokens"] == free[1]["tokens"][: first + 1]
    assert found[1]["logprobs"] == free[1]["logprobs"][: first + 1]


def test_the_ends_of_text_are_the_tokenizers_and_the_generation_configs(load: Load) -> None:
    from evalkit.engine import core

    loaded = load()
    config = loaded.model.generation_config
    own = loaded.tokenizer.hf.eos_token_id
    for stated, expected in ((None, {own}), (7, {own, 7}), ([7, 9], {own, 7, 9})):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(config, "eos_token_id", stated)
            assert core.eos_ids(loaded.model, loaded.tokenizer) == expected


def test_a_row_stops_at_a_stop_string_and_its_text_ends_before_it(load: Load) -> None:
    loaded, rows = load(), [row(1, 15), row(2, 9)]
    free = answers(loaded, prompts(rows))
    (stop,) = loaded.tokenizer.decode([free[0]["tokens"][5:7]], skip_special_tokens=True)
    assert len(stop) > 1 and stop not in free[1]["text"]
    found = answers(loaded, prompts(rows, replace(SETTINGS, until=("never seen", stop))))
    assert found[0]["stop"] == "stop_string"
    assert found[0]["text"] == free[0]["text"].split(stop)[0]
    assert found[0]["tokens"] == free[0]["tokens"][: len(found[0]["tokens"])]
    assert len(found[0]["tokens"]) <= 7
    assert found[1]["tokens"] == free[1]["tokens"] and found[1]["stop"] == "length"


def test_a_stop_string_may_begin_in_one_token_and_end_in_another(load: Load) -> None:
    loaded = load()
    (free,) = answers(loaded, prompts([row(1, 15)]))
    pieces = [loaded.tokenizer.decode([[t]], skip_special_tokens=True)[0] for t in free["tokens"]]
    at = next(i for i in range(2, 10) if len(pieces[i]) > 1 and len(pieces[i + 1]) > 1)
    stop = pieces[at][-1] + pieces[at + 1][0]
    (found,) = answers(loaded, prompts([row(1, 15)], replace(SETTINGS, until=(stop,))))
    assert found["stop"] == "stop_string" and found["text"] == free["text"].split(stop)[0]


def test_a_long_stop_string_of_many_byte_letters_is_seen(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its letters take up to four tokens each: a tail counted in letters never held it whole."""
    loaded = load()
    stop = "🦀" * 6
    forced = loaded.tokenizer.encode([stop + " and more"], special_tokens=False)[0]
    assert len(forced) > 20
    forward = loaded.model.forward
    step = iter(forced)

    def scripted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits[:, -1] = 0
        output.logits[:, -1, next(step)] = 50
        return output

    monkeypatch.setattr(loaded.model, "forward", scripted)
    settings = Settings((stop,), len(forced))
    (answer,) = answers(loaded, prompts([row(1, 5)], settings))
    assert answer["stop"] == "stop_string" and answer["text"] == ""


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, do_sample=True, temperature=1.0),
        replace(SETTINGS, do_sample=True, temperature=0.7, top_p=0.9, top_k=50),
    ],
    ids=["plain", "top-p and top-k"],
)
def test_a_sampled_answer_does_not_depend_on_who_shares_the_batch(
    load: Load, settings: Settings
) -> None:
    rows = [row(seed, 4 + 5 * seed) for seed in range(4)][::-1]
    together = prompts(rows, settings)
    found = load().execute(together)
    for index, target in enumerate(together.targets):
        own = together.rows[index]
        alone = replace(
            together, rows=(own,), width=len(own.tokens), targets=(replace(target, row=0),)
        )
        assert load().execute(alone)[target.id]["tokens"] == found[target.id]["tokens"]


def test_a_sampled_answer_depends_on_its_request_and_the_suites_seed(load: Load) -> None:
    settings = replace(SETTINGS, do_sample=True, temperature=1.0)
    twice = answers(load(), prompts([row(1, 8), row(1, 8)], settings))
    assert twice[0]["tokens"] != twice[1]["tokens"]
    other = answers(load(), prompts([row(1, 8)], replace(settings, seed=1)))
    assert other[0]["tokens"] != twice[0]["tokens"]


def test_a_model_that_answers_nan_is_answered_for_when_sampled_too(load: Load) -> None:
    head = load().model.get_output_embeddings().weight
    before = head[5].clone()
    try:
        with torch.no_grad():
            head[5] = float("nan")
        for settings in (SETTINGS, replace(SETTINGS, do_sample=True, temperature=1.0)):
            (answer,) = answers(load(), prompts([row(1, 5)], settings))
            assert len(answer["tokens"]) == 12 and canon.finite(answer["logprobs"])[0] == "nan"
    finally:
        with torch.no_grad():
            head[5] = before


def test_a_score_that_is_not_a_number_is_told_as_one(load: Load) -> None:
    head = load().model.get_output_embeddings().weight
    before = head[5].clone()
    try:
        with torch.no_grad():
            head[5] = float("nan")
        (answer,) = answers(load(), batch([row(1, 5)], [(0, 1, 3)]))
        assert math.isnan(answer["loglikelihood"]) and answer["is_greedy"] is False
    finally:
        with torch.no_grad():
            head[5] = before


def test_sampling_draws_as_often_as_the_probabilities_say(load: Load) -> None:
    from evalkit.engine.text import decoding, processors

    logits = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5])
    settings = Settings((), 1, True, temperature=0.8, top_p=0.9, top_k=4)
    source = torch.Generator().manual_seed(0)
    chooser = processors.chooser(load(), settings, [1])
    draws = [decoding.sample(chooser, logits.clone(), source) for _ in range(4000)]
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = logits[None]
    for warper in (TemperatureLogitsWarper(0.8), TopKLogitsWarper(4), TopPLogitsWarper(0.9)):
        scores = warper(None, scores)
    expected = scores.softmax(-1)[0].tolist()
    for token, share in enumerate(expected):
        error = math.sqrt(share * (1 - share) / len(draws))
        assert abs(draws.count(token) / len(draws) - share) <= 4 * error


# Failing


def test_running_out_of_memory_is_one_line_that_names_the_batch(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(load().model, "forward", full)
    with pytest.raises(EvalkitError, match="memory in a batch of 1 rows x 5 tokens") as caught:
        load().execute(batch([row(1, 5)], [(0, 1, 3)]))
    assert caught.value.code == Exit.MISSING


def test_loading_fixes_the_global_switches(load: Load) -> None:
    load()
    assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    assert not torch.backends.cudnn.benchmark and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("more", [0, 1])
def test_values_that_lie_across_are_attended_as_others(masked: bool, more: int) -> None:
    from evalkit.engine.tree import attention

    source = torch.Generator().manual_seed(0)
    tokens = attention.FEW + more
    query, key, value = (
        torch.randn(2, 3, *shape, generator=source) for shape in ((tokens, 16), (40, 16), (40, 8))
    )
    mask = None
    if masked:
        seen = torch.rand(2, 1, tokens, 40, generator=source) < 0.5
        mask = attention.hide(seen, torch.float32)
    scores = attention.Scores(0.25, None, None, None)
    lying = value.mT.contiguous().mT
    found = attention.attend(query, key, lying, scores, mask, across=True)
    kernel = attention.attend(query, key, value, scores, mask)
    for one, other in zip(found, kernel, strict=True):
        assert not torch.equal(one, other), "by another way"
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_slots_keep_their_content_and_how_it_lies() -> None:
    from evalkit.engine.tree.buffers import BUCKET, Indexed
    from evalkit.engine.tree.slots import Slots, Stem
    from evalkit.engine.tree.tree import NOTHING

    key, value = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 6)
    slots, stem = Slots(torch.device("cpu"), 3), Stem(NOTHING, 100)
    for slot in range(3):
        slots.fill(slot, stem, {0: (key, value)}, slot, torch.tensor([0, 2, 4]))
    slots.keep([0, 2], 4)
    slots.lengths[0] = BUCKET  # the next token needs a second bucket
    slots.inputs(torch.tensor([1, 1, 0, 0]))
    held = slots._layers[0]
    assert isinstance(held, Indexed)
    assert held.key.is_contiguous() and held.value.mT.is_contiguous()
    for buffer, own in zip((held.key, held.value), (key, value), strict=True):
        assert buffer.shape[:3] == (4, 2, 2 * BUCKET)
        assert torch.equal(buffer[:2, :, :3], own[[0, 2]][:, :, [0, 2, 4]])
        assert not buffer[:, :, 3:].any(), "what is not seen yet is no NaN"
        assert not buffer[2:].any(), "nor what stands in no text's slot"
