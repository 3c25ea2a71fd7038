"""The law of slots: a text's bits are its own, whoever stands beside it and wherever it stands."""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalkit.base import canon
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.batch import Batch
from evalkit.plan.requests.request import Settings
from tests import architectures, batches
from tests.batches import token_ids

torch = pytest.importorskip("torch")
engine = pytest.importorskip("evalkit.engine")

from evalkit.engine.answers import generate  # noqa: E402
from evalkit.engine.probe import apart  # noqa: E402
from evalkit.engine.text import decoding  # noqa: E402
from evalkit.engine.text.decoding import Endings  # noqa: E402
from evalkit.engine.text.processors import Chooser  # noqa: E402
from evalkit.engine.tree import attention, buffers, slots  # noqa: E402

# Grouped queries, soft-capped scores, sliding windows, as many key heads as heads.
NAMES = [
    *("llama", "gemma3"),
    *(pytest.param(name, marks=pytest.mark.oracle) for name in ("gemma2", "gpt2")),
]
SETTINGS = Settings(("e",), 9)
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """A loaded tiny model of an architecture, in a dtype."""
    made: dict[tuple[str, str], Any] = {}
    folders: dict[str, Path] = {}
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()

    def loaded(name: str = "llama", dtype: str = "float32") -> Any:
        if name not in folders:
            folders[name] = architectures.build(name, tmp_path_factory.mktemp(name))
        if (name, dtype) not in made:
            model = models.resolve(str(folders[name]))
            numerics = engine.numerics_for(model, dtype)
            made[name, dtype] = engine.load(model, Tokenizer(model), numerics, "cpu", level="tree")
        return made[name, dtype]

    yield loaded
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


def task(
    name: str, on: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]],
    settings: Settings = SETTINGS,
) -> Batch:  # fmt: skip
    """A task's batch: prompts on a trunk of these links."""
    made = batches.prompts(prompts, settings, on=batches.trunk(*on) if on else None)
    targets = tuple(replace(t, id=t.id.replace("task", name)) for t in made.targets)
    return replace(made, id=f"sha256:{name}", task=name, targets=targets)


def tasks() -> dict[str, Batch]:
    """Tasks of unlike sizes: one text, one on nested trunks, one on none, one that comes to the end
    of a block."""
    return {
        made.task: made
        for made in (
            task("one", [token_ids(1, 41)], [token_ids(2, 6)]),
            task("nested", [token_ids(3, 17), token_ids(4, 24)],
                 [token_ids(5 + n, 4 + n) for n in range(7)]),
            task("bare", [], [token_ids(20 + n, 9) for n in range(5)]),
            task("long", [token_ids(30, 12)], [token_ids(31 + n, 58 + 3 * n) for n in range(3)]),
        )
    }  # fmt: skip


def beside(loaded: Any, given: Sequence[Batch]) -> dict[str, str]:
    """What each batch is answered where all share the slots."""
    found: dict[str, str] = {}
    rest = deque(given[1:])
    loaded.together(
        given[0],
        lambda held: rest.popleft() if rest else None,
        lambda batch, answers: found.update({batch.task: canon.dumps(answers)}),
    )
    return found


def alone(loaded: Any, given: Sequence[Batch]) -> dict[str, str]:
    """What each batch is answered by itself."""
    return {batch.task: canon.dumps(loaded.execute(batch)) for batch in given}


DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@DTYPES
@pytest.mark.parametrize("name", NAMES)
def test_a_task_alone_or_among_others_is_answered_the_same(
    load: Load, name: str, dtype: str
) -> None:
    loaded, given = load(name, dtype), list(tasks().values())
    whole = alone(loaded, given)
    assert len({len(text["tokens"]) for text in canon.loads(whole["nested"]).values()}) > 1
    for seed in range(2):
        random.Random(seed).shuffle(given)
        assert beside(loaded, given) == whole
    assert beside(loaded, given[1:3]) == {each.task: whole[each.task] for each in given[1:3]}


@DTYPES
def test_noise_in_all_other_slots_changes_nothing(load: Load, dtype: str) -> None:
    loaded, one = load("llama", dtype), tasks()["one"]
    (expected,) = alone(loaded, [one]).values()
    for seed in range(4):
        drawn = [token_ids(100 * seed + n, 3 + seed) for n in range(3 + 5 * seed)]
        noise = task("noise", [token_ids(90 + seed, 30)], drawn)
        for order in ([noise, one], [one, noise]):
            assert beside(loaded, order)["one"] == expected


@DTYPES
def test_few_slots_that_are_filled_again_change_nothing(load: Load, dtype: str) -> None:
    loaded = load("llama", dtype)
    given = [replace(each, slots=5) for each in tasks().values()]
    assert beside(loaded, given) == alone(loaded, list(tasks().values()))


@DTYPES
def test_unlike_settings_and_slots_change_nothing(load: Load, dtype: str) -> None:
    """Stop strings, limits, sampling, thinking and penalties are a text's own, and so is how many
    texts its batch allows at once."""
    loaded, given = load("llama", dtype), list(tasks().values())
    unlike = (
        replace(SETTINGS, max_gen_toks=3),
        replace(SETTINGS, until=("a", "of"), max_gen_toks=14),
        replace(SETTINGS, do_sample=True, temperature=0.7, seed=3),
        replace(SETTINGS, think_end="e", max_think_toks=4, repetition_penalty=1.3),
    )
    changed = [
        replace(each, settings=settings, slots=slots)
        for each, settings, slots in zip(given, unlike, (64, 6, 9, 2), strict=True)
    ]
    whole = alone(loaded, changed)
    for seed in range(3):
        random.Random(seed).shuffle(changed)
        assert beside(loaded, changed) == whole


def test_there_are_never_more_texts_than_a_batch_allows(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as fit the policy's cache, were all as long as the longest; what a long text took is
    given up before more texts come."""
    cache, step, seen = 640, generate.Pool.step, list[int]()

    def watched(self: Any) -> bool:
        texts, begun = sum(map(bool, self._running)), [p for p in self._parts if p.has_begun]
        assert texts <= min((part.batch.slots for part in begun), default=0)
        rows = len(self._running)
        most = max(slots.ROWS * 384, cache * 4 // 3 + rows * buffers.BUCKET)  # in whole buckets
        assert all(rows * held.key.shape[2] <= most for held in self._slots._layers.values())
        seen.append(texts)
        return step(self)

    loaded = load()
    long = task("long", [], [token_ids(1, 300), token_ids(2, 300)])
    short = task("short", [], [token_ids(3 + n, 11) for n in range(40)])
    given = [replace(long, slots=cache // 309), replace(short, slots=cache // 20)]
    expected = alone(loaded, given)
    monkeypatch.setattr(generate.Pool, "step", watched)
    assert beside(loaded, given) == beside(loaded, given[::-1]) == expected
    assert max(seen) == 32 and 2 in seen


@DTYPES
@pytest.mark.parametrize("spare", [0, 64, 1 << 20])
def test_however_slots_are_divided_the_texts_are_the_same(
    load: Load, dtype: str, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, given = load("llama", dtype), [*tasks().values(), task("far", [], [token_ids(8, 700)])]
    expected = alone(loaded, given)
    monkeypatch.setattr(buffers, "SPARE", spare)
    assert beside(loaded, given) == expected


def test_a_span_holds_each_of_its_slots_and_little_else() -> None:
    for seed in range(50):
        draw = random.Random(seed)
        lengths = [draw.choice((0, 60, 63, 64, 900, 4000)) for _ in range(draw.randint(1, 40))]
        found, first = buffers.spans(lengths), 0
        for end, used in found:
            own = [
                -(-(length + 1) // buffers.BUCKET) * buffers.BUCKET for length in lengths[first:end]
            ]
            assert used == max(own) and used * len(own) - sum(own) <= buffers.SPARE
            first = end
        assert first == len(lengths)
    assert buffers.spans([900] * 64) == [(64, 960)], "equal texts are computed together"


def test_hidden_keys_have_no_weight_and_a_value_that_is_not_a_number_stays_one() -> None:
    query, scores = torch.ones(1, 1, 1, 4), attention.Scores(1.0, None, None, None)
    key = torch.tensor([0.0, -10, -21, -22, -30, 0])[:, None].expand(6, 4)[None, None]
    value = torch.eye(6)[None, None]
    mask = torch.zeros(1, 1, 1, 6)
    mask[..., -1] = attention.HIDDEN
    output, total = attention.attend(query, key, value, scores, mask, across=True)
    expected = (4 * key[0, 0, :5, 0]).double().softmax(0)
    torch.testing.assert_close(output[0, 0, 0, :5].double(), expected, rtol=1e-6, atol=1e-37)
    assert output[0, 0, 0, 5] == 0 and total.item() == pytest.approx(0, abs=1e-6)
    key = key.clone()
    key[..., 1, :] = float("nan")
    assert attention.attend(query, key, value, scores, mask, across=True)[0].isnan().all()


@DTYPES
def test_a_text_that_is_not_a_number_leaves_its_slot_clean(
    load: Load, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load("llama", dtype)
    bad = task("bad", [], [[21, 22, 23, 24, 25, 26, 27, 28]])
    good = replace(task("good", [], [token_ids(7, 3)]), slots=1)
    (expected,) = alone(loaded, [good]).values()
    table = loaded.model.get_input_embeddings().weight
    before = table[28].clone()
    try:
        table.data[28] = float("nan")
        assert beside(loaded, [replace(bad, slots=1), good])["good"] == expected
    finally:
        table.data[28] = before


def test_batches_that_do_not_fit_side_by_side_are_answered_one_by_one(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered before memory ran out is not answered again."""
    loaded, given = load(), list(tasks().values())
    expected = alone(loaded, given)
    fill, told = generate.Pool.fill, []

    def short(self: Any, more: Any) -> None:
        fill(self, more)
        if len(self._parts) + len(told) > 1 and sum(map(bool, self._running)) > 10:
            raise torch.OutOfMemoryError("a small device")

    monkeypatch.setattr(generate.Pool, "fill", short)
    rest = deque(given[1:])
    loaded.together(
        given[0],
        lambda held: rest.popleft() if rest else None,
        lambda batch, answers: told.append((batch.task, canon.dumps(answers))),
    )
    assert len(told) + len(rest) == len(given) and dict(told).items() <= expected.items()
    assert len(dict(told)) == len(told) > 1


# Planted violations: the laws above see them, and so does what is looked at before slots are shared


def leaks(original: Any) -> Any:
    """A little of what stands in all slots goes into each."""

    def attend(self: Any, *given: Any) -> Any:
        output = original(self, *given)
        return output + 1e-6 * output.mean(dim=0, keepdim=True)

    return attend


def test_a_planted_leak_is_seen(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, given = load(), list(tasks().values())
    assert apart.is_so(loaded, 64)
    monkeypatch.setattr(slots.Slots, "attend", leaks(slots.Slots.attend))
    assert beside(loaded, given) != alone(loaded, given)
    assert not apart.is_so(loaded, 64)


def test_steps_of_too_few_rows_are_seen(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has other kernels for them."""
    loaded, given = load("gpt2"), list(tasks().values())
    for module in (slots, generate):
        monkeypatch.setattr(module, "ROWS", 1)
    assert beside(loaded, given) != alone(loaded, given)
    assert not apart.is_so(loaded, 64)


def test_what_is_left_behind_whole_vectors_is_seen(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, given = load(), list(tasks().values())
    monkeypatch.setattr(attention, "evenly", lambda function, *values: function(*values))
    assert beside(loaded, given) != alone(loaded, given)


@DTYPES
@pytest.mark.parametrize("name", NAMES)
def test_real_slots_hold(load: Load, name: str, dtype: str) -> None:
    assert apart.is_so(load(name, dtype), 64) and apart.is_so(load(name, dtype), 5)


def test_experts_share_no_slots(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(apart, "is_so", lambda *_: True)
    assert not apart.holds(load("mixtral"), 64, "key")
    assert apart.holds(load("llama"), 64, "key")
    monkeypatch.setattr(apart, "is_so", lambda *_: False)
    assert apart.holds(load("llama"), 64, "key"), "what was found is kept"
    assert not apart.holds(load("llama"), 64, "other key")


# A GPU's buffers


def test_blocks_hold_what_one_tensor_holds(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that grow over the end of a block, some from a prompt as long as one."""
    loaded = load()
    prompts = [token_ids(2 + n, 50 + 7 * n) for n in range(6)]
    given = [task("grown", [token_ids(1, 20)], prompts, Settings((), 20))]
    (expected,) = map(loaded.execute, given)
    monkeypatch.setattr(buffers, "of", lambda device: buffers.Blocks())
    (found,) = map(loaded.execute, given)
    for one, other in zip(found.values(), expected.values(), strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)


@DTYPES
def test_the_law_holds_with_blocks_too(
    load: Load, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, given = load("llama", dtype), list(tasks().values())
    monkeypatch.setattr(buffers, "of", lambda device: buffers.Blocks())
    assert beside(loaded, given[::-1]) == alone(loaded, given)


# Choosing and stopping


def test_of_equally_probable_tokens_the_first_is_chosen(load: Load) -> None:
    """As transformers does; `topk` would give another one in bfloat16."""
    logits = torch.zeros(3, 1000, dtype=torch.bfloat16)
    logits[:, 17::50] = 2.0
    texts = [decoding.Text(str(n), SETTINGS, Chooser([1], None, None), None) for n in range(3)]
    chosen = decoding.advance(load(), texts, logits)
    assert chosen.tolist() == [17, 17, 17]
    assert [text.tokens for text in texts] == [[17]] * 3
    assert [text.margins for text in texts] == [[0.0]] * 3


@pytest.mark.parametrize("cleans", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_stop_strings_are_found_as_by_decoding_every_tail(
    load: Load, name: str, cleans: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, drawn = load(name), random.Random(0)
    monkeypatch.setattr(loaded.tokenizer.hf, "clean_up_tokenization_spaces", cleans)
    quick, plain = Endings(loaded.tokenizer), Endings(loaded.tokenizer)
    monkeypatch.setattr(plain, "_appends", False)
    size = len(loaded.tokenizer.hf)
    marks = [token for token in range(size) if set("' .,n\n") & set(text_of(loaded, [token]))]
    looked = 0
    for _ in range(150):
        tokens = [drawn.choice(marks) if drawn.random() < 0.5 else drawn.randrange(size)
                  for _ in range(12)]  # fmt: skip
        whole = text_of(loaded, tokens)
        at = drawn.randrange(len(whole))
        settings = Settings((whole[at : at + drawn.randrange(1, 4)], "\n\n", "don"), 1000)
        for count in range(1, len(tokens) + 1):
            found = []
            for endings in (quick, plain):
                monkeypatch.setattr(loaded, "endings", endings)
                text = decoding.Text("", settings, Chooser([], None, None), None, tokens[:count])
                decoding.see_stops(loaded, [text])
                found.append(text.stop)
            assert found[0] == found[1]
            looked += quick.may_end(tokens[:count], settings)
            if found[0]:
                break
    assert 0 < looked < 150 * 12


def text_of(loaded: Any, tokens: list[int]) -> str:
    """Tokens as text."""
    (text,) = loaded.tokenizer.decode([tokens], skip_special_tokens=False)
    return str(text)
