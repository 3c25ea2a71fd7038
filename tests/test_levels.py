"""What rows share changes no answer: each level against plain forwards, and the laws of batches."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from evalkit.base import canon
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan import sharing
from evalkit.plan.requests.request import Request, Settings
from evalkit.plan.store import Batch, BatchTarget, Policy, make_batch, make_batches
from evalkit.plan.tokenise import Row, Target, Tokenised
from tests import batches
from tests.batches import token_ids

torch = pytest.importorskip("torch")
engine = pytest.importorskip("evalkit.engine")
attention = pytest.importorskip("evalkit.engine.tree.attention")

TOKENIZERS = {"llama": "llama3", "gpt2": "gpt2"}
SMALL = Policy(
    max_tokens=256, row_tokens=64, max_tree=96, min_trunk=8, chunk=24, max_scored=64, max_slots=4
)
SETTINGS = Settings((), 6)
Load = Callable[..., Any]
Whole = Callable[[str, str], dict[str, str]]


@pytest.fixture(scope="module")
def load(tiny_model: Callable[..., Path]) -> Iterator[Load]:
    """A loaded tiny model by its architecture, dtype and level."""
    made: dict[tuple[str, str, str], Any] = {}
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()

    def loaded(level: str, dtype: str = "float32", architecture: str = "llama") -> Any:
        key = (level, dtype, architecture)
        if key not in made:
            model = models.resolve(
                str(tiny_model(architecture, tokenizer=TOKENIZERS[architecture]))
            )
            numerics = engine.Numerics(dtype=dtype)
            made[key] = engine.load(model, Tokenizer(model), numerics, "cpu", level=level)
        return made[key]

    yield loaded
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def many_trunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a forward pass costs more than it saves, as it does with so few tokens."""
    monkeypatch.setattr(sharing, "PASS", 0)


# Three tasks of one shape each: long shots and short choices; no shots and long endings, two of
# them one the start of the other; prompts to go on from. With them, a nested shared prefix.


def sequences() -> Iterator[tuple[str, int, list[int], int]]:
    """(task, document, tokens, first scored position) of what is scored."""
    shots = token_ids(1, 50)
    for document in range(16):
        half = token_ids(2 + document % 2, 20) if document < 14 else []
        question = shots + half + token_ids(100 + document, 9 + document)
        yield "shots", document, question, len(question) - 1
    for document in range(5):
        context = token_ids(200 + document, 12 + 3 * document)
        ending = token_ids(300 + document, 9)
        for choice in (ending, ending[:4], token_ids(400 + document, 6)):
            yield "endings", document, context + choice, len(context) - 1


def rows(settings: Settings = SETTINGS) -> list[Row]:
    """Everything that is asked, as tokenising hands it to the planner."""
    made = []
    index: dict[tuple[str, int], int] = {}
    for task, document, tokens, start in sequences():
        number = index[task, document] = index.get((task, document), -1) + 1
        request = Request(task, document, number, 0, "loglikelihood", "")
        last = [7, 8] if task == "shots" else [9]
        targets = [Target(replace(request, index=number + n), start, t) for n, t in enumerate(last)]
        made.append(Row(batches.array(tokens), tuple(targets)))
    for document in range(8):
        tokens = token_ids(5, 40) + token_ids(500 + document, 5 + 2 * document % 7)
        request = Request("prompts", document, 0, 0, "generate_until", "", settings=settings)
        made.append(Row(batches.array(tokens), (Target(request, len(tokens), -1),)))
    return made


def plan(level: str, given: Sequence[Row] | None = None) -> list[Batch]:
    """The batches of a level under a policy so small that everything is cut and shared."""
    return list(make_batches(Tokenised(list(given or rows())), SMALL, level=level))


def answer(loaded: Any, batches_: Sequence[Batch]) -> dict[str, str]:
    """Every answer, to the last bit."""
    return {part: canon.dumps(found) for b in batches_ for part, found in loaded.execute(b).items()}


def test_the_small_policy_cuts_and_shares_in_every_way() -> None:
    """Else the laws below would show little."""
    shared = plan("tree")
    assert any(batch.trunk and batch.trunk.parent for batch in shared)
    assert any(len(list(batch.trunk.chunks(batch.chunk))) > 1 for batch in shared if batch.trunk)
    assert any(len(row.starts) > 2 for batch in shared for row in batch.rows)
    assert any(batch.settings and len(batch.targets) > batch.slots for batch in shared)
    assert any(batch.settings and len(row.starts) > 1 for batch in shared for row in batch.rows)
    assert any(batch.trunk for batch in plan("prefix"))
    assert not any(batch.trunk for batch in plan("none"))


@pytest.mark.parametrize("level", ["tree", "prefix", "none"])
@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_every_level_gives_what_plain_forwards_give(
    load: Load, level: str, architecture: str
) -> None:
    loaded = load(level, architecture=architecture)
    found = {part: a for batch in plan(level) for part, a in loaded.execute(batch).items()}
    for row in rows():
        for target in row.targets:
            part, tokens = found[target.request.id], [int(token) for token in row.tokens]
            if target.request.settings is None:
                scored = [*tokens[target.start + 1 :], target.last]
                table = table_of(loaded, tokens)[target.start :]
                values = [float(table[at, token]) for at, token in enumerate(scored)]
                assert part["loglikelihood"] == pytest.approx(sum(values), abs=2e-5)
                assert part["is_greedy"] == (table.argmax(-1).tolist() == scored)
                assert part["num_tokens"] == len(scored)
            else:
                for token in part["tokens"]:
                    assert token == int(table_of(loaded, tokens)[-1].argmax())
                    tokens.append(token)


def table_of(loaded: Any, tokens: list[int]) -> Any:
    """transformers' own forward of one row, alone: log-probabilities [tokens, vocabulary]."""
    with torch.inference_mode(), attention.plain(loaded):
        logits = loaded.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)


# Laws: equal answers to the last bit.

LAWS = pytest.mark.parametrize(
    ("level", "dtype"),
    [(level, d) for level in ("tree", "prefix", "none") for d in ("float32", "bfloat16")],
)


@pytest.fixture(scope="module")
def whole(load: Load) -> Whole:
    """The answers of the plan as it is, by level and dtype; computed once."""
    return cache(lambda level, dtype: answer(load(level, dtype), plan(level)))


@LAWS
def test_the_order_of_requests_changes_nothing(
    load: Load, whole: Whole, level: str, dtype: str
) -> None:
    loaded, mixed = load(level, dtype), rows()
    random.Random(1).shuffle(mixed)
    assert answer(loaded, plan(level, mixed)) == whole(level, dtype)


@LAWS
def test_the_order_of_batches_and_who_executes_them_change_nothing(
    load: Load, whole: Whole, level: str, dtype: str
) -> None:
    """Each part starts with nothing kept, as another process does."""
    loaded, given = load(level, dtype), plan(level)
    mixed = list(given)
    random.Random(2).shuffle(mixed)
    assert answer(loaded, mixed) == whole(level, dtype)
    parts: dict[str, str] = {}
    for number in range(3):
        loaded.kept = None
        parts |= answer(loaded, given[number::3][::-1])
    assert parts == whole(level, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("level", ["tree", "prefix"])  # level none has no trunks
def test_a_trunk_kept_or_computed_again_changes_nothing(
    load: Load, whole: Whole, level: str, dtype: str
) -> None:
    loaded, given = load(level, dtype), plan(level)
    again: dict[str, str] = {}
    for batch in given:
        loaded.kept = None
        again |= answer(loaded, [batch])
    assert again == whole(level, dtype)


@LAWS
def test_a_task_alone_or_among_others_has_the_same_answers(
    load: Load, whole: Whole, level: str, dtype: str
) -> None:
    loaded = load(level, dtype)
    alone: dict[str, str] = {}
    for task in ("prompts", "endings", "shots"):
        own = [row for row in rows() if row.targets[0].request.task == task]
        alone |= answer(loaded, plan(level, own))
    assert alone == whole(level, dtype)


@pytest.mark.parametrize("level", ["tree", "prefix", "none"])
def test_sampled_texts_obey_the_laws_too(load: Load, level: str) -> None:
    loaded = load(level)
    given = plan(level, rows(replace(SETTINGS, do_sample=True, temperature=1.0)))
    assert answer(loaded, given[::-1]) == answer(loaded, given)


def test_prompts_that_share_a_row_go_on_as_each_does_alone(load: Load) -> None:
    """What two prompts share once more, behind the trunk, is computed once."""
    loaded, shots = load("tree"), token_ids(1, 30)
    common = token_ids(2, 9)
    given = [common + token_ids(3, 4), common + token_ids(4, 12), token_ids(5, 6)]
    row, ends = batches.forest(given)
    trunk = batches.trunk(shots)
    targets = tuple(
        BatchTarget(0, end, 30 + len(tokens), -1, f"task/{number}/0/0")
        for number, (tokens, end) in enumerate(zip(given, ends, strict=True))
    )
    together = make_batch("task", "generate_until", SETTINGS, trunk, [row], targets, SMALL)
    found = loaded.execute(together)
    for number, tokens in enumerate(given):
        (alone,) = loaded.execute(batches.prompts([shots + tokens], SETTINGS)).values()
        assert found[f"task/{number}/0/0"]["tokens"] == alone["tokens"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rotary_embedding_that_has_seen_a_long_text_forgets_it(
    tmp_path: Path, dtype: str
) -> None:
    """transformers' dynamic RoPE keeps the angles of the longest text so far."""
    from tests import models as making

    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    making.tiny(tmp_path / "m", max_length=32, rope_parameters=rope)
    model = models.resolve(str(tmp_path / "m"))
    loaded = engine.load(model, Tokenizer(model), engine.Numerics(dtype), "cpu", level="tree")
    given = [
        batches.scored([batches.chain(token_ids(length, length))], [(0, length - 1, 3, 7)])
        for length in (40, 60)
    ]
    alone = [answer(loaded, [batch]) for batch in given]
    assert [answer(loaded, [batch]) for batch in reversed(given)] == alone[::-1]


def test_a_refilled_slot_holds_nothing_of_the_text_before_it(load: Load) -> None:
    """The long prompt's tokens still lie in the slot's buffer behind the short one's."""
    loaded = load("tree")
    long, short = token_ids(1, 60), [token_ids(2 + n, 4) for n in range(3)]
    settings = Settings((), 9)
    together = loaded.execute(batches.prompts([long, *short], settings, slots=1))
    for number, tokens in enumerate([long, *short]):
        (alone,) = loaded.execute(batches.prompts([tokens], settings)).values()
        assert together[f"task/{number}/0/0"]["tokens"] == alone["tokens"]
