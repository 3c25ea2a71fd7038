"""Numerics: how they are decided and set, and the `precise` profile against float32 itself."""

import copy
import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import batches
import pytest
from batches import token_ids

from evalkit.base.errors import EvalkitError
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.requests.request import Settings

torch = pytest.importorskip("torch")
core = pytest.importorskip("evalkit.engine.core")

Make = Callable[..., Path]
SIZES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "bloom": {},  # ALiBi
    "gemma2": {"head_dim": 16},  # soft caps, windows
    "gemma3_text": {"head_dim": 16},  # a scale beside its embeddings
    "mixtral": {},
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16,
    },
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16},  # sinks
    "deepseek_v3": {
        "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1, "kv_lora_rank": 16,
        "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
        "moe_intermediate_size": 32,
    },  # latent attention
    "mamba2": {
        "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "expand": 2,
        "chunk_size": 16,
    },
    "falcon_h1": {
        "mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1,
        "mamba_d_state": 16, "mamba_chunk_size": 16, "head_dim": 16,
    },  # attention and state space
}  # fmt: skip
HALF = ("bfloat16", "float16")


@pytest.fixture(scope="module", autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """What the numerics set globally is put back for the other modules."""
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def load(tiny_model: Make) -> Callable[..., Any]:
    """A loaded tiny model whose weights are stored in bfloat16, by architecture and profile."""
    made: dict[str, Any] = {}

    def loaded(
        architecture: str, dtype: str, profile: str = "native", level: str = "none", **sizes: Any
    ) -> Any:
        key = repr((architecture, dtype, profile, level, sizes))
        if key not in made:
            stored = dtype if profile == "precise" else "bfloat16"
            folder = tiny_model(architecture, dtype=stored, **SIZES[architecture], **sizes)
            model = models.resolve(str(folder))
            numerics = core.numerics_for(model, dtype, profile)
            made[key] = core.load(model, Tokenizer(model), numerics, "cpu", level=level)
        return made[key]

    return loaded


def edited(folder: Path, to: Path, **changes: Any) -> models.Model:
    """A copy of a model with changes in its config."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return models.resolve(str(to))


SCORED = batches.scored(
    [batches.chain(token_ids(seed, length)) for seed, length in enumerate((41, 40, 23, 9, 1))],
    [(0, 40, 12, 77), (1, 39, 0, 5), (2, 22, 20, 6), (3, 8, 8, 7), (3, 8, 8, 9), (4, 0, 0, 30)],
)
GREEDY = batches.prompts([token_ids(seed, 15) for seed in range(3)], Settings((), 12))


# The profile that computes in float32


# Windows, sinks, latent attention, experts, states; `make oracle` has the others.
FEW = ("llama", "gemma3_text", "gpt_oss", "deepseek_v3", "falcon_h1")


@pytest.mark.parametrize(
    "architecture",
    [name if name in FEW else pytest.param(name, marks=pytest.mark.oracle) for name in SIZES],
)
def test_precise_gives_the_answers_of_the_checkpoint_loaded_in_float32(
    load: Callable[..., Any], architecture: str
) -> None:
    """To the last bit, and not those of its native dtype."""
    whole, precise = load(architecture, "float32"), load(architecture, "bfloat16", "precise")
    for batch in (SCORED, GREEDY):
        assert precise.execute(batch) == whole.execute(batch)
        assert load(architecture, "bfloat16").execute(batch) != whole.execute(batch)


@pytest.mark.parametrize("level", ["tree", "prefix"])
def test_precise_holds_on_shared_prefixes_too(load: Callable[..., Any], level: str) -> None:
    trunk = batches.trunk(token_ids(7, 40))
    rows = [batches.chain(token_ids(seed, 12)) for seed in range(4)]
    scored = batches.scored(rows, [(row, 11, 40, 9) for row in range(4)], on=trunk)
    prompts = batches.prompts([token_ids(3, 8), token_ids(4, 8)], Settings((), 9), on=trunk)
    whole = load("llama", "float32", level=level)
    precise = load("llama", "bfloat16", "precise", level=level)
    for batch in (scored, prompts):
        assert precise.execute(batch) == whole.execute(batch)


def test_precise_holds_for_float16_and_for_tied_embeddings(
    load: Callable[..., Any], tiny_model: Make
) -> None:
    precise = load("gemma2", "float16", "precise", tie_word_embeddings=True)
    model = models.resolve(
        str(tiny_model("gemma2", dtype="float16", head_dim=16, tie_word_embeddings=True))
    )
    numerics = core.Numerics("float32", attention=precise.numerics.attention)
    whole = core.load(model, Tokenizer(model), numerics, "cpu", level="none")
    head, table = precise.model.get_output_embeddings(), precise.model.get_input_embeddings()
    assert head._parameters["weight"] is table._parameters["weight"]
    assert precise.execute(SCORED) == whole.execute(SCORED)


@pytest.mark.parametrize("dtype", HALF)
def test_weights_stay_in_memory_as_they_are_stored(load: Callable[..., Any], dtype: str) -> None:
    loaded = load("llama", dtype, "precise")
    loaded.execute(SCORED)
    stored = {parameter.dtype for parameter in loaded.model.parameters()}
    assert stored == {getattr(torch, dtype)}
    assert loaded.model.dtype == loaded.model.config.dtype == torch.float32
    assert loaded.model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32


def test_one_weight_is_upcast_at_a_time_and_of_a_table_only_the_rows(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the embeddings, whose table is the largest tensor of many models, what is looked up."""
    from evalkit.engine.hardware import kernels
    from evalkit.engine.numerics import precise

    monkeypatch.setattr(kernels, "PACKED_BYTES", 0)  # as for a large model
    loaded = load("llama", "bfloat16", "precise", num_hidden_layers=3)
    table = loaded.model.get_input_embeddings()._parameters["weight"].data_ptr()
    read, upcast = precise.read_parameter, []
    alive: set[str] = set()

    def seen(value: Any, whole: bool) -> Any:
        found = read(value, whole)
        if whole and isinstance(value, precise.Stored):
            upcast.append(value.as_subclass(torch.Tensor).data_ptr())
            assert not alive, "the one before is gone"
            alive.add("this")
            weakref.finalize(found, alive.clear)
        return found

    monkeypatch.setattr(precise, "read_parameter", seen)
    loaded.execute(SCORED)
    assert table not in upcast
    assert len(upcast) == len(set(upcast)) == len(list(loaded.model.parameters())) - 1


def test_experts_are_looked_up_before_they_are_upcast(load: Callable[..., Any]) -> None:
    from evalkit.engine.numerics import precise

    stack = load("mixtral", "bfloat16", "precise").model.model.layers[0].mlp.experts.gate_up_proj
    assert isinstance(stack, precise.Stored) and stack.dtype == torch.float32
    (one,) = (stack[1],)
    assert type(one) is torch.Tensor and one.dtype == torch.float32
    assert one.untyped_storage().nbytes() == one.numel() * 4
    assert torch.equal(stack.transpose(1, 2)[0], stack[0].T)
    assert torch.cat([stack, stack]).dtype == torch.float32 == stack.mT.dtype


def test_an_error_in_the_middle_leaves_nothing_behind(load: Callable[..., Any]) -> None:
    loaded = load("llama", "bfloat16", "precise")
    before = loaded.execute(SCORED)
    with pytest.raises(IndexError):
        loaded.execute(batches.scored([batches.chain([10**6, 5])], [(0, 1, 1, 5)]))
    assert loaded.execute(SCORED) == before


def test_a_parent_that_reads_its_childs_weight_sees_float32() -> None:
    """Forward hooks on the child would have shown it bfloat16, and what it cast to that dtype
    would have lost half its digits without a word."""
    from evalkit.engine.numerics import precise

    class Parent(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)

        def forward(self, value: Any) -> Any:
            return self.inner(value.to(self.inner.weight.dtype)) @ self.inner.weight

    parent = Parent()
    value = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    weight = parent.inner.weight.detach().float()
    precise.upcast(parent)
    with torch.inference_mode():
        assert torch.equal(parent(value), torch.nn.functional.linear(value, weight) @ weight)
    assert type(parent.inner).__name__ == "Linear" and isinstance(parent.inner, torch.nn.Linear)


@pytest.mark.parametrize("away", ["disk", "cpu"])
def test_precise_and_accelerates_hooks_live_together(
    tiny_model: Make, tmp_path: Path, away: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that accelerate brings from the disk for each layer, as on a GPU too small."""
    from transformers import AutoModelForCausalLM

    from evalkit.engine.hardware import kernels
    from evalkit.engine.numerics import precise

    model = models.resolve(str(tiny_model("llama", dtype="bfloat16")))
    monkeypatch.setattr(kernels, "use_onednn", lambda _: None)  # not for layers on several devices
    whole = core.load(model, Tokenizer(model), core.Numerics("float32"), "cpu", level="none")
    causal: Any = AutoModelForCausalLM
    places = {
        "model.embed_tokens": "cpu", "model.layers.0": away, "model.layers.1": "cpu",
        "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": away,
    }  # fmt: skip
    with precise.skeleton(torch.bfloat16):
        found = causal.from_pretrained(
            model.folder, dtype=torch.float32, device_map=places, offload_folder=tmp_path,
        )  # fmt: skip
    assert hasattr(found, "_hf_hook") == (away == "disk")
    precise.upcast(found)
    numerics = core.Numerics("bfloat16", "precise")
    engine = core.Engine(found.eval(), whole.tokenizer, "cpu", "none", numerics)
    for _ in range(2):
        assert engine.execute(SCORED) == whole.execute(SCORED)
        assert engine.execute(GREEDY) == whole.execute(GREEDY)


@pytest.mark.parametrize(("dtype", "profile"), [("float32", "native"), ("bfloat16", "precise")])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "as they are"])
def test_onednn_computes_float32s_linear_layers(
    dtype: str, profile: str, packed: bool, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same answers as MKL, but for rounding; not where it is missing."""
    from evalkit.engine.hardware import kernels

    model = models.resolve(str(tiny_model("llama", dtype="bfloat16")))
    if not packed:
        monkeypatch.setattr(kernels, "PACKED_BYTES", 0)

    def loaded(*numerics: str) -> Any:
        return core.load(model, Tokenizer(model), core.Numerics(*numerics), "cpu", level="none")

    ours, full = loaded(dtype, profile), loaded("float32", "native")
    linear = [m for m in ours.model.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 2 * 7 + 1 and all(isinstance(m, kernels.Linear) for m in linear)
    assert all(isinstance(m, kernels.Packed) == packed for m in linear)
    assert ours.execute(SCORED) == full.execute(SCORED)
    assert ours.execute(GREEDY) == full.execute(GREEDY)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    plain = loaded(dtype, profile)
    assert not any(isinstance(module, kernels.Linear) for module in plain.model.modules())
    for one, other in zip(
        ours.execute(SCORED).values(), plain.execute(SCORED).values(), strict=True
    ):
        assert one["loglikelihood"] == pytest.approx(other["loglikelihood"], abs=1e-4)
        assert one["is_greedy"] == other["is_greedy"]


def test_a_packed_layer_follows_its_weight_and_can_be_copied() -> None:
    from evalkit.engine.hardware import kernels

    layer = torch.nn.Linear(6, 4)
    given = torch.arange(18.0).view(3, 6)
    kernels.use_onednn(layer)
    assert isinstance(layer, kernels.Packed)
    with torch.no_grad():
        before = layer(given)
        other = copy.deepcopy(layer)
        layer.weight *= 2
        assert torch.allclose(layer(given) - layer.bias, 2 * (before - layer.bias))
        assert torch.equal(other(given), before)


def test_bfloat16s_linear_layers_stay_as_they_are(tiny_model: Make) -> None:
    from evalkit.engine.hardware import kernels

    model = models.resolve(str(tiny_model("llama", dtype="bfloat16")))
    loaded = core.load(model, Tokenizer(model), core.Numerics("bfloat16"), "cpu", level="none")
    assert not any(isinstance(module, kernels.Linear) for module in loaded.model.modules())


# Which numerics


def test_the_weights_own_dtype_is_taken_unless_another_is_asked_for(tiny_model: Make) -> None:
    model = models.resolve(str(tiny_model("llama", dtype="bfloat16")))
    assert core.numerics_for(model, None) == core.Numerics("bfloat16", "native", "sdpa")
    found = core.numerics_for(model, "float32", "precise").to_json()
    assert found == {
        "dtype": "float32", "profile": "precise", "attention": "sdpa", "tf32": False,
        "deterministic": True, "threads": 1,
    }  # fmt: skip


def test_a_model_without_sdpa_has_eager_attention_in_its_numerics(tiny_model: Make) -> None:
    model = models.resolve(str(tiny_model("gpt_oss", dtype="bfloat16", **SIZES["gpt_oss"])))
    assert core.numerics_for(model, None).attention == "eager"


@pytest.mark.parametrize(
    ("dtype", "profile", "words"),
    [("int8", "native", "unknown dtype 'int8'"), (None, "exact", "choose from native, precise")],
)
def test_what_there_is_not_is_refused(
    tiny_model: Make, dtype: str | None, profile: str, words: str
) -> None:
    with pytest.raises(EvalkitError) as caught:
        core.numerics_for(models.resolve(str(tiny_model())), dtype, profile)
    assert words in str(caught.value)


def test_precise_is_refused_for_quantised_weights(tiny_model: Make, tmp_path: Path) -> None:
    model = edited(tiny_model(), tmp_path / "q", quantization_config={"quant_method": "fp8"})
    with pytest.raises(EvalkitError, match=r"is quantised \(fp8\)"):
        core.numerics_for(model, None, "precise")


def test_a_config_that_makes_no_model_is_one_line(tiny_model: Make, tmp_path: Path) -> None:
    for number, change in enumerate(({"num_attention_heads": 0}, {"hidden_size": "wide"})):
        model = edited(tiny_model(), tmp_path / str(number), **change)
        with pytest.raises(EvalkitError, match="transformers can't load") as caught:
            core.numerics_for(model, None)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stated", "method", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq", 4),
        ({"quant_method": "awq", "w_bit": 4}, "awq", 4),
        ({"load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes", 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", 4),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 8),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4", 4),
        ({"quant_method": "quanto", "weights": "int2"}, "quanto", 2),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3}}}, "hqq", 3),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {
            "weights": {"num_bits": 4, "type": "int"}, "input_activations": {"num_bits": 8}}}},
         "compressed-tensors", 4),
        ({"quant_method": "bitnet"}, "bitnet", None),
    ],
)  # fmt: skip
def test_how_a_checkpoint_is_quantised(
    tiny_model: Make, tmp_path: Path, stated: dict[str, Any], method: str, bits: int | None
) -> None:
    model = edited(tiny_model(), tmp_path / "quantised", quantization_config=stated)
    quantized = core.quantization(model)
    assert quantized is not None and (quantized.method, quantized.bits) == (method, bits)


def test_a_checkpoint_that_is_not_quantised_has_no_quantisation(tiny_model: Make) -> None:
    assert core.quantization(models.resolve(str(tiny_model()))) is None


# torch's switches


SWITCHES = """
import os, warnings
warnings.simplefilter("error")
import torch
torch.backends.cudnn.benchmark = True
torch.set_num_threads(2)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.set_float32_matmul_precision("medium")
from evalkit.engine.numerics import numerics
for tf32 in (True, False):
    numerics.fix_numerics(numerics.Numerics("bfloat16", tf32=tf32))
    with warnings.catch_warnings():  # reading the older interface may warn, ours must not
        warnings.simplefilter("ignore")
        assert torch.backends.cuda.matmul.allow_tf32 is tf32
        assert torch.backends.cudnn.allow_tf32 is tf32
backends = torch.backends
assert {part.fp32_precision for part in (
    backends, backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn,
    backends.mkldnn.matmul, backends.mkldnn.conv)} == {"ieee"}
matmul = backends.cuda.matmul
assert not matmul.allow_bf16_reduced_precision_reduction
assert not matmul.allow_fp16_reduced_precision_reduction
assert not matmul.allow_fp16_accumulation
assert not backends.cudnn.benchmark and backends.cudnn.deterministic
assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
print("done")
"""


@pytest.mark.oracle
def test_every_switch_is_set_whatever_it_was_without_a_warning() -> None:
    """In a process of its own, with the environment against it: it imports torch, for three
    seconds, which is why the oracle has it."""
    against = {
        "CUBLAS_WORKSPACE_CONFIG": ":16:8", "OMP_NUM_THREADS": "2",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", SWITCHES], capture_output=True, text=True, env=os.environ | against,
        cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    assert ran.returncode == 0 and ran.stdout == "done\n", ran.stderr
    assert ran.stderr == ""


def test_log_probabilities_over_a_large_vocabulary_lean_to_no_side() -> None:
    """torch's float32 `log_softmax` on a CPU gives up to 1e-5 too much at each token of a peaked
    distribution over 49,152: over a text, more than everything else that float32 rounds."""
    from evalkit.engine.answers import scoring

    source = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(200, 49_152, generator=source)
    labels = torch.randint(49_152, (200,), generator=source)
    exact = logits.double().log_softmax(-1).gather(1, labels[:, None])[:, 0]
    found = [value for value, _ in scoring.logprobs(logits, list(enumerate(labels.tolist())))]
    error = torch.tensor(found, dtype=torch.float64) - exact
    assert error.abs().max() < 5e-6
    assert error.mean().abs() < 5e-7
