"""Behind the last attention only what counts is computed, and the answers are the same."""

from collections.abc import Callable
from typing import Any

import architectures
import pytest

from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.requests.request import Settings
from evalkit.plan.store import Batch
from tests import batches
from tests.batches import token_ids

torch = pytest.importorskip("torch")
engine = pytest.importorskip("evalkit.engine")

from evalkit.engine.tree import tail  # noqa: E402

# of each: what in its last layer is narrowed
FEW = {
    "llama": {"self_attn.o_proj", "mlp"},
    "gemma3": {"self_attn.o_proj", "mlp"},  # windows
    "gpt2": {"attn.c_proj", "mlp"},
    "gpt-neox": {"attention.dense", "mlp"},  # attention and block side by side
    "deepseek-v3": {"self_attn.o_proj", "mlp"},  # experts, values narrower than keys
    "gpt-oss": {"self_attn.o_proj"},  # its experts give more than a tensor
    "opt": {"self_attn.out_proj"},  # its block takes no rows
}
Load = Callable[[str], Any]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """An engine with a tiny model of an architecture, at level tree."""

    def loaded(name: str) -> Any:
        folder = tmp_path_factory.mktemp(name)
        found = models.resolve(str(architectures.build(name, folder)))
        numerics = engine.numerics_for(found, "float32")
        return engine.load(found, Tokenizer(found), numerics, "cpu", level="tree")

    return loaded


def given(counted: int) -> Batch:
    """Two rows of two documents each on a trunk; `counted` places of each document are scored."""
    trunk = batches.trunk(token_ids(1, 23), token_ids(2, 12))
    rows, targets = [], []
    for row in range(2):
        shared = token_ids(10 + row, 18)
        row_made, ends = batches.forest([shared + token_ids(20 + n, 16 + n) for n in range(2)])
        for n, end in enumerate(ends):
            length = trunk.length + len(shared) + 16 + n
            targets.append((row, end, length - counted, 100 + n))
        rows.append(row_made)
    return batches.scored(rows, targets, on=trunk)


@pytest.mark.parametrize("name", FEW)
def test_few_places_have_the_answers_of_all(
    name: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(name)
    asked = (given(2), batches.prompts([token_ids(n, 9 + n) for n in range(3)], Settings((), 5)))
    names = {module: name for name, module in loaded.model.named_modules()}
    found = {".".join(names[module].split(".")[-2:]) for module in loaded.tail.modules}
    assert {part for part in FEW[name] if any(one.endswith(part) for one in found)} == FEW[name]
    narrow = [loaded.execute(batch) for batch in asked]
    monkeypatch.setattr(tail.Counted, "pays", False)
    loaded.kept = None
    whole = [loaded.execute(batch) for batch in asked]
    for one, other in zip(narrow[0].values(), whole[0].values(), strict=True):
        assert one["loglikelihood"] == pytest.approx(other["loglikelihood"], abs=1e-4)
        assert one["is_greedy"] == other["is_greedy"]
    for one, other in zip(narrow[1].values(), whole[1].values(), strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)


def test_only_what_counts_goes_through_the_last_block(load: Load) -> None:
    loaded = load("llama")
    inner, last = [layer.mlp.down_proj for layer in loaded.model.model.layers]
    seen: dict[str, list[int]] = {"inner": [], "last": []}
    for kind, module in (("inner", inner), ("last", last)):
        module.register_forward_pre_hook(
            lambda _, args, kind=kind: seen[kind].append(args[0].numel() // args[0].shape[-1])
        )
    few, many = given(2), given(16)
    loaded.execute(few)
    width, chunks = few.width, [12, 11, 12]  # two trunks, in chunks of at most 16
    assert seen == {"inner": [2, *chunks, 2 * width], "last": [2, 1, 1, 1, 8]}  # 2: what finds it
    loaded.execute(many)  # more than half of the places
    assert (seen["inner"][5:], seen["last"][5:]) == ([2 * width], [2 * width])


def test_a_module_that_is_called_before_too_is_narrowed_behind_only(load: Load) -> None:
    loaded = load("llama")
    first, last = loaded.model.model.layers
    expected = loaded.execute(given(16))  # nothing is narrowed
    first.mlp = last.mlp
    shared = loaded.execute(given(16))
    assert shared != expected, "another model"
    few, whole = loaded.execute(given(1)), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail.Counted, "pays", False)
        whole = loaded.execute(given(1))
    for one, other in zip(few.values(), whole.values(), strict=True):
        assert one["loglikelihood"] == pytest.approx(other["loglikelihood"], abs=1e-4)
