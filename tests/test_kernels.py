"""Kernels by tables, not by trial: attention's path, cumulative sums, and the same bits twice."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import support
import torch
from support import call

from evalkit.base.errors import EvalkitError
from evalkit.engine import core
from evalkit.engine.hardware import kernels, weights
from evalkit.engine.hardware.kernels import EFFICIENT, PLAIN
from evalkit.engine.probe import probe, repeat
from evalkit.engine.tree import attention
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
P100, V100, T4, A100, L4, H200, B200, RTX50 = (
    (6, 0), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "capability", "sizes", "kernel", "why"),
    [
        *((BF16, gpu, (128, 128), EFFICIENT, "") for gpu in (A100, L4, H200, B200, RTX50)),
        *((BF16, gpu, (64, 64), PLAIN, "no kernel for bfloat16 at") for gpu in (P100, V100, T4)),
        *((FP16, gpu, (64, 64), EFFICIENT, "") for gpu in (P100, V100, T4, A100, H200)),
        *((FP32, gpu, (64, 64), EFFICIENT, "") for gpu in (P100, V100, T4, A100, H200)),
        (BF16, H200, (80, 80), EFFICIENT, ""),
        (BF16, H200, (192, 128), EFFICIENT, ""),
        (BF16, H200, (20, 20), PLAIN, "no multiples of 8"),
        (FP16, T4, (20, 20), PLAIN, "no multiples of 8"),
        (FP16, P100, (20, 20), EFFICIENT, ""),
        (FP32, H200, (20, 20), EFFICIENT, ""),
        (FP32, H200, (18, 18), PLAIN, "no multiples of 4"),
        (FP32, T4, (18, 18), EFFICIENT, ""),
        (BF16, H200, (64, 128), PLAIN, "wider than keys"),
        (BF16, (13, 0), (128, 128), PLAIN, "no kernel for bfloat16 at compute capability 13.0"),
        (torch.float64, H200, (128, 128), PLAIN, "no kernel for float64"),
    ],
)
def test_the_path_of_attention_follows_from_dtype_capability_and_head_size(
    dtype: torch.dtype, capability: tuple[int, int], sizes: tuple[int, int], kernel: str, why: str
) -> None:
    found = kernels.path(dtype, capability, *sizes)
    assert found.kernel == kernel and why in found.why and bool(found.why) == bool(why)


def test_attention_takes_the_path_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that are given another device's path: what a T4 computes in bf16 is plain."""
    taken = []
    monkeypatch.setattr(attention, "_KERNELS", {EFFICIENT: lambda *given: taken.append(given)})
    query = torch.randn(1, 2, 3, 8, dtype=BF16)
    scores = attention.Scores(1.0, None, None, None)
    for capability, number in ((H200, 1), (T4, 1)):
        path = kernels.path(BF16, capability, 8, 8)
        monkeypatch.setattr(kernels, "on", lambda *_, path=path: path)
        attention.attend(query, query, query, scores)
        assert len(taken) == number


def test_the_record_names_the_path_and_how_repeats_were_known(tmp_path: Path) -> None:
    ran = call("eval", *support.DEMO, "--out", tmp_path, "--limit", "1", "--level", "tree").done()
    (segment,) = support.read(ran.folder)["segments"]
    assert segment["kernels"] == ["attention flash for CPUs"]
    assert segment["repeats"] == segment["level"]
    ran = call("eval", *support.DEMO, "--out", tmp_path, "--limit", "1", "--level", "none").done()
    assert support.read(ran.folder)["segments"][0]["kernels"] == ["attention transformers' sdpa"]


def test_a_fallback_is_named_with_its_reason() -> None:
    config = SimpleNamespace(hidden_size=64, num_attention_heads=1, num_hidden_layers=1)
    config.get_text_config = lambda: config
    model = SimpleNamespace(config=config, dtype=BF16)
    numerics = SimpleNamespace(profile="native")
    engine: Any = SimpleNamespace(level="tree", model=model, numerics=numerics)
    engine.device = torch.device("cuda:0")
    assert kernels.describe_attention(engine) == EFFICIENT
    config.attn_logit_softcapping = 50.0
    assert kernels.describe_attention(engine) == "plain: scores are capped"


# Cumulative sums


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_a_product_with_a_triangle_is_the_cumulative_sum(dim: int) -> None:
    values = torch.randn(5, 64, 33, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(kernels.triangle_product(values, dim), values.cumsum(dim), atol=1e-4)


def test_models_that_sum_floats_cumulatively_are_those_of_the_list() -> None:
    """By transformers' own code: what sums a mask, a count or an id sums integers."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    root = Path(transformers.__file__).parent / "models"
    found = set()
    for path in root.glob("*/modeling_*.py"):
        text = path.read_text("utf-8")
        sums_floats = re.search(r"\b(g|decay|vecF_logsig)\.cumsum\(|cumsum\(A, dim", text)
        if sums_floats and any(name.startswith(path.parent.name) for name in CAUSAL):
            found.add(path.parent.name)
    assert found == set(kernels.CUMSUM_TYPES)


def test_sums_are_replaced_for_such_models_on_a_gpu_only() -> None:
    def config(kind: str) -> Any:
        made = SimpleNamespace(model_type=kind)
        made.get_text_config = lambda: made
        return made

    assert kernels.needs_cumsum(config("mamba2"), "cuda:0") and kernels.needs_cumsum(
        config("qwen3_5_text"), "auto"
    )
    assert not kernels.needs_cumsum(config("mamba2"), "cpu") and not kernels.needs_cumsum(
        config("llama"), "cuda"
    )
    whole = torch.arange(6)
    assert torch.equal(kernels.cumsum(whole, 0), whole.cumsum(0))
    with torch.device("meta"):  # any device but a CPU
        low = kernels.cumsum(torch.zeros(2, 7, dtype=BF16), -1)
    assert low.dtype is BF16 and low.shape == (2, 7)


# Quantised checkpoints


def quantised(method: str | None) -> Any:
    """A model of which only the config is read."""
    config = {"quantization_config": {"quant_method": method}} if method else {}
    return SimpleNamespace(reference="x/y", config=config)


def test_what_a_quantised_checkpoint_lacks_is_named_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(EvalkitError, match="compressed_tensors, which is not") as found:
        weights.require_packages(quantised("compressed-tensors"), "cpu")
    assert "QUANT=1" in str(found.value)
    with pytest.raises(EvalkitError, match="optimum and gptqmodel, which is not") as found:
        weights.require_packages(quantised("gptq"), "cuda:0")
    assert "QUANT=1" not in str(found.value) and "that it was made from" in str(found.value)
    weights.require_packages(quantised(None), "cpu")
    weights.require_packages(quantised("mxfp4"), "cuda:0")  # dequantised: the record says so


def test_fp8_needs_its_kernels_only_where_it_is_computed_as_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    for capability, lacking in ((A100, []), (L4, ["kernels"]), (H200, ["kernels"])):
        monkeypatch.setattr(kernels, "capability", lambda _, found=capability: found)
        for device in ("cuda:0", "auto"):
            assert weights.missing_packages("fp8", device) == lacking
    assert weights.missing_packages("fp8", "cpu") == []


def test_every_way_to_quantise_that_is_looked_for_is_one_of_transformers() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    known = {str(name).removesuffix("_4bit").removesuffix("_8bit") for name in KNOWN}
    assert {*weights.NEEDED, *weights.ON_GPUS} <= known


# The same batch twice


@pytest.fixture(params=["tree", "prefix", "none"])
def engine(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> core.Engine:
    model = models.resolve(str(tiny_model()))
    numerics = core.Numerics("bfloat16")
    return core.load(model, Tokenizer(model), numerics, "cpu", level=request.param)


def test_the_same_batch_twice_gives_the_same_bits(engine: core.Engine) -> None:
    probe.check_repeats(engine)


def test_a_device_that_forgets_its_bits_is_refused(
    engine: core.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: one value in a thousand moves by its last bit, the second time."""
    disturb, moved = repeat.disturb_allocator, []
    layer = engine.model.model.layers[0].mlp

    def move(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        output.view(-1)[::1000] *= 1 + 2**-7
        return output

    def disturbed(device: torch.device) -> Any:
        moved.append(layer.register_forward_hook(move))
        return disturb(device)

    monkeypatch.setattr(repeat, "disturb_allocator", disturbed)
    with pytest.raises(EvalkitError, match=r"does not give the same bits here: [0-9]+ of [0-9]+"):
        probe.check_repeats(engine)
    moved[0].remove()


def test_answers_of_the_check_show_every_bit() -> None:
    one = {"loglikelihood": -1.0}
    other = {"loglikelihood": -1.0 - 2**-52}
    shown = [repeat.canon.dumps(repeat.canon.finite(each)) for each in (one, other)]
    assert shown[0] != shown[1]
