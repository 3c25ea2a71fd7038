"""Loading: devices, adapters, quantised checkpoints, memory that runs out, what is refused."""

import functools
import json
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import batches
import pytest
from batches import token_ids

from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.batch import Batch
from evalkit.plan.requests.request import Settings

torch = pytest.importorskip("torch")
core = pytest.importorskip("evalkit.engine.core")

pytestmark = [  # of peft and what it calls, where a test calls it
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]
Make = Callable[..., Path]
SCORED = batches.scored(
    [batches.chain(token_ids(seed, length)) for seed, length in enumerate((41, 40, 23, 9, 1))],
    [(0, 40, 12, 77), (1, 39, 0, 5), (2, 22, 20, 6), (3, 8, 8, 7), (3, 8, 8, 9), (4, 0, 0, 30)],
)


@pytest.fixture(scope="module", autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """What the numerics set globally is put back for the other modules."""
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


def load(folder: Path, dtype: str | None = None, profile: str = "native", **options: Any) -> Any:
    """The engine of a folder's model, on the CPU and without sharing."""
    model = models.resolve(str(folder))
    numerics = core.numerics_for(model, dtype, profile)
    return core.load(model, Tokenizer(model), numerics, "cpu", **({"level": "none"} | options))


def edit(folder: Path, **changes: Any) -> None:
    """Change a model's config."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refused(folder: Path, *words: str, **options: Any) -> EvalkitError:
    """The error that loading raises: one line with these words."""
    with pytest.raises(EvalkitError) as caught:
        load(folder, **options)
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line
    return caught.value


# What is loaded


def test_an_engine_says_how_it_computes(tiny_model: Make) -> None:
    loaded = load(tiny_model(dtype="bfloat16"), level="tree")
    assert loaded.level == "tree" and loaded.device == torch.device("cpu") and loaded.kept is None
    assert loaded.numerics == core.Numerics("bfloat16") and loaded.last_split == 0
    assert loaded.model.dtype == torch.bfloat16 and not loaded.model.training


def test_weights_that_the_files_lack_are_not_drawn_at_random(
    tiny_model: Make, tmp_path: Path
) -> None:
    """transformers warns and goes on, and lm-eval scores what comes out."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model(), tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "lack 1 of its weights: model.layers.1.mlp.up_proj.weight")


def test_weights_of_another_shape_are_named(tiny_model: Make, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model(), tmp_path / "shaped")
    edit(folder, intermediate_size=96)
    refused(folder, "mlp.down_proj.weight as [64, 128], its config wants [64, 96]")


# Devices


def test_auto_spreads_over_gpus_and_never_into_the_hosts_memory(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers is asked for; it is then given a CPU, because there is no GPU here."""
    from transformers import AutoModelForCausalLM

    causal: Any = AutoModelForCausalLM
    original, asked = causal.from_pretrained, {}

    def seen(*given: Any, **options: Any) -> Any:
        asked.update(options)
        return original(*given, **(options | {"device_map": None, "max_memory": None}))

    monkeypatch.setattr(causal, "from_pretrained", seen)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (1000 * (index + 1), 5000))
    model = models.resolve(str(tiny_model()))
    loaded = core.load(model, Tokenizer(model), core.Numerics("float32"), "auto", level="none")
    assert asked["device_map"] == "auto" and asked["max_memory"] == {0: 900, 1: 1800}
    assert loaded.device == torch.device("cpu"), "where the embeddings lie"


# Adapters


@pytest.fixture(scope="module")
def adapter(tiny_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the tiny Llama that changes its answers."""
    return made_adapter(tiny_model(), tmp_path_factory.mktemp("adapter"))


def made_adapter(base: Path, folder: Path, **config: Any) -> Path:
    """A random adapter of the model in `base`, saved as peft does."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    causal: Any = AutoModelForCausalLM
    chosen = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = peft.LoraConfig(**(chosen | config), task_type="CAUSAL_LM")
        options.init_lora_weights = False
        peft.get_peft_model(causal.from_pretrained(base), options).save_pretrained(folder)
    return folder


def test_an_adapter_is_loaded_beside_the_weights_as_peft_does(
    tiny_model: Make, adapter: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    causal: Any = AutoModelForCausalLM
    reference: Any = PeftModel.from_pretrained(causal.from_pretrained(tiny_model()), str(adapter))
    tokens = token_ids(1, 30)
    with torch.inference_mode():
        logits = reference.eval()(input_ids=torch.tensor([tokens])).logits[0]
    table = torch.log_softmax(logits.float(), dim=-1)
    expected = sum(float(table[at, token]) for at, token in enumerate([*tokens[1:], 9]))
    batch = batches.scored([batches.chain(tokens)], [(0, 29, 0, 9)])
    for level in ("tree", "prefix", "none"):
        (found,) = load(tiny_model(), adapter=adapter, level=level).execute(batch).values()
        assert found["loglikelihood"] == pytest.approx(expected, abs=1e-4)
        (plain,) = load(tiny_model(), level=level).execute(batch).values()
        assert abs(plain["loglikelihood"] - expected) > 0.1


def test_an_adapter_in_the_precise_profile_is_that_of_float32(
    tiny_model: Make, tmp_path: Path
) -> None:
    base = tiny_model(dtype="bfloat16")
    folder = made_adapter(base, tmp_path / "half")
    whole = load(base, "float32", adapter=folder)
    precise = load(base, None, "precise", adapter=folder)
    assert precise.execute(SCORED) == whole.execute(SCORED)
    assert torch.bfloat16 in {parameter.dtype for parameter in precise.model.parameters()}


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["embed_tokens", "o_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
        {"target_modules": "all-linear", "use_rslora": True},
    ],
    ids=["embeddings", "a whole head", "dora", "every layer"],
)
def test_adapters_of_other_shapes_are_loaded_without_asking_the_hub(
    tiny_model: Make, tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_adapter(tiny_model(), tmp_path / "adapter", **config)
    stated = json.loads((folder / "adapter_config.json").read_text())
    stated["base_model_name_or_path"] = "someone/a-model-on-the-hub"
    (folder / "adapter_config.json").write_text(json.dumps(stated))

    def connect(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    loaded, plain = load(tiny_model(), adapter=folder), load(tiny_model())
    assert loaded.execute(SCORED) != plain.execute(SCORED)


def test_an_adapters_files_are_digested_as_a_models_are(adapter: Path) -> None:
    found = models.resolve_adapter(adapter)
    assert list(found) == ["adapter_config.json", "adapter_model.safetensors"]
    for name, entry in found.items():
        assert entry["size"] == (adapter / name).stat().st_size
        assert re.fullmatch("[0-9a-f]{64}", entry["sha256"])


def test_what_is_no_lora_adapter_is_refused(
    tiny_model: Make, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(EvalkitError, match=r"has no adapter_config\.json") as caught:
        models.resolve_adapter(tiny_model())
    assert caught.value.code == Exit.MISSING
    pickled = shutil.copytree(adapter, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(EvalkitError, match=r"has no adapter_model\.safetensors"):
        models.resolve_adapter(pickled)
    other = shutil.copytree(adapter, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(EvalkitError, match="type is IA3, not LORA"):
        models.resolve_adapter(other)


def test_an_adapter_of_another_model_is_refused(tiny_model: Make, adapter: Path) -> None:
    """peft applies what fits and passes over the rest."""
    deeper, wider = tiny_model(num_hidden_layers=1), tiny_model(hidden_size=128)
    refused(deeper, "the adapter is not of this model", "layers.1", adapter=adapter)
    refused(wider, "peft can't load the adapter", "size mismatch", adapter=adapter)
    refused(tiny_model("gpt2"), "peft can't load the adapter", "not found", adapter=adapter)


def test_a_model_with_an_adapter_in_its_folder_is_refused(
    tiny_model: Make, adapter: Path, tmp_path: Path
) -> None:
    """transformers would load it without a word, and its files stood in no identity."""
    folder = shutil.copytree(tiny_model(), tmp_path / "both")
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    refused(folder, "has an adapter in its folder", "--adapter")


def test_without_peft_the_extra_is_named(
    tiny_model: Make, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    error = refused(tiny_model(), "need the package peft", "evalkit-lm[lora]", adapter=adapter)
    assert error.code == Exit.MISSING


def hf(model: Path, dtype: str = "float32", **options: Any) -> Any:
    """lm-eval's `hf` model."""
    from lm_eval.models.huggingface import HFLM

    arguments = {"device": "cpu", "batch_size": 4} | options
    return HFLM(pretrained=str(model), dtype=dtype, **arguments)


def lm_eval_scores(model: Any, rows: list[list[int]], cut: int) -> list[float]:
    """lm-eval's log-likelihoods of what stands behind the first `cut` tokens of each row."""
    asked = [(("", str(at)), tokens[:cut], tokens[cut:]) for at, tokens in enumerate(rows)]
    found = model._loglikelihood_tokens(asked, disable_tqdm=True)
    return [float(value) for value, _ in found]


def our_scores(loaded: Any, rows: list[list[int]], cut: int) -> list[float]:
    """Ours, in batches of 8."""
    found = []
    for start in range(0, len(rows), 8):
        part = rows[start : start + 8]
        targets = [(at, len(row) - 2, cut - 1, row[-1]) for at, row in enumerate(part)]
        batch = batches.scored([batches.chain(row[:-1]) for row in part], targets)
        found += [answer["loglikelihood"] for answer in loaded.execute(batch).values()]
    return found


@pytest.mark.oracle
def test_an_adapter_gives_the_scores_of_lm_evals_hf_model(tiny_model: Make, adapter: Path) -> None:
    rows = [token_ids(seed, 12 + seed % 30) for seed in range(60)]
    theirs = lm_eval_scores(hf(tiny_model(), peft=str(adapter)), rows, 8)
    ours = our_scores(load(tiny_model(), adapter=adapter), rows, 8)
    assert ours == pytest.approx(theirs, abs=1e-4)


# Quantised checkpoints


@pytest.fixture(scope="module")
def fp8(tiny_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose layers are stored in float8, a scale for each matrix."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("fp8") / "model"
    shutil.copytree(tiny_model(dtype="bfloat16"), folder)
    stored = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        stored[name] = weight
        if "proj" in name:
            scale = weight.float().abs().max() / 448
            stored[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale.reshape(1, 1)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    return folder


def described(folder: Path, engine: Any) -> list[str]:
    """What the record says of how an engine computes with quantised weights."""
    from evalkit.engine.hardware import weights

    return weights.describe_quantized(models.resolve(str(folder)), engine.model)


def test_a_quantised_checkpoint_is_loaded_where_transformers_can(
    tiny_model: Make, fp8: Path
) -> None:
    """Without a GPU transformers makes bfloat16 of float8."""
    loaded, original = load(fp8), load(tiny_model(dtype="bfloat16"))
    assert loaded.numerics.dtype == "bfloat16"
    assert described(fp8, loaded) == ["weights fp8, dequantised to bfloat16"]
    assert described(tiny_model(dtype="bfloat16"), original) == []
    found, expected = loaded.execute(SCORED), original.execute(SCORED)
    assert found != expected
    for name, answer in found.items():
        near = pytest.approx(expected[name]["loglikelihood"], rel=0.05)
        assert answer["loglikelihood"] == near


def test_a_quantised_checkpoint_without_its_package_is_one_line(
    tiny_model: Make, tmp_path: Path
) -> None:
    for method, extra in (("awq", {"bits": 4}), ("gptq", {"bits": 4}), ("hqq", {}), ("quanto", {})):
        folder = shutil.copytree(tiny_model(), tmp_path / method)
        edit(folder, quantization_config={"quant_method": method, **extra})
        refused(folder, f"is quantised ({method}), and computing with it needs", "install")


def test_an_unknown_quantisation_is_not_passed_over(tiny_model: Make, tmp_path: Path) -> None:
    """transformers warns and takes the packed numbers for weights."""
    folder = shutil.copytree(tiny_model(), tmp_path / "unknown")
    edit(folder, quantization_config={"quant_method": "ours"})
    refused(folder, "is quantised by 'ours', unknown to transformers")


def test_kernels_that_are_missing_only_when_a_model_runs_are_told_when_it_is_loaded(
    fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    def forward(*_: Any, **__: Any) -> None:
        raise ImportError("finegrained-fp8 kernel unavailable\nand more")

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    refused(fp8, "transformers can't load", "finegrained-fp8 kernel unavailable (")


def test_a_dtype_that_a_quantised_checkpoint_does_not_compute_in_is_refused(
    fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.quantizers.base import HfQuantizer

    monkeypatch.setattr(HfQuantizer, "update_dtype", lambda *_: torch.bfloat16)
    refused(fp8, "computes in bfloat16, not in float16", "--dtype bfloat16", dtype="float16")


# Memory


class Full:
    """A model that runs out of memory in a batch of more than `rows` rows, and in its first
    `fails` forwards."""

    def __init__(self, loaded: Any, monkeypatch: pytest.MonkeyPatch, rows: int, fails: int = 0):
        self.rows, self.fails, self.sizes, self.freed = rows, fails, list[list[int]](), 0
        self.error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried 2.00 GiB")
        self._forward, self._free = loaded.model.forward, loaded.free_memory
        # its signature is looked at
        forward = functools.wraps(loaded.model.forward)(lambda *a, **b: self.forward(*a, **b))
        monkeypatch.setattr(loaded.model, "forward", forward)
        monkeypatch.setattr(loaded, "free_memory", self.free)

    def forward(self, *args: Any, **inputs: Any) -> Any:
        self.sizes.append(list(inputs["input_ids"].shape))
        if self.sizes[-1][0] > self.rows or len(self.sizes) <= self.fails:
            raise self.error
        return self._forward(*args, **inputs)

    def free(self) -> None:
        self.freed += 1
        self._free()


@pytest.fixture
def engine(tiny_model: Make) -> Any:
    """A fresh engine of level none."""
    return load(tiny_model())


def test_a_batch_is_repeated_once_its_caches_are_freed(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.execute(SCORED)
    full = Full(engine, monkeypatch, rows=9, fails=1)
    engine.kept = "a trunk"
    assert engine.execute(SCORED) == expected
    assert full.freed == 1 and engine.kept is None and engine.last_split == 0


@pytest.mark.parametrize(
    ("rows", "depth", "sizes"),
    [(3, 1, [5, 5, 2, 3]), (2, 2, [5, 5, 2, 3, 3, 1, 2]), (1, 3, [5, 5, 2, 2, 1, 1, 3, 3, 1, 2, 2,
     1, 1])],
)  # fmt: skip
def test_a_batch_that_does_not_fit_is_cut_in_halves_of_the_same_width(
    engine: Any, monkeypatch: pytest.MonkeyPatch, rows: int, depth: int, sizes: list[int]
) -> None:
    """Whether a row's neighbours move its last bits is the processor's affair: on some the halves'
    answers are the whole's, on all they are those of the same halves once more."""
    expected = engine.execute(SCORED)
    full = Full(engine, monkeypatch, rows=rows)
    found = engine.execute(SCORED)
    assert list(found) == list(expected) and engine.last_split == depth
    assert full.sizes == [[size, SCORED.width] for size in sizes]
    for part, answer in expected.items():
        near = pytest.approx(answer["loglikelihood"], abs=1e-5)
        assert found[part] == answer | {"loglikelihood": near}
    assert engine.execute(SCORED) == found
    monkeypatch.undo()
    engine.execute(SCORED)
    assert engine.last_split == 0


@pytest.mark.parametrize("level", ["tree", "prefix", "none"])
def test_prompts_on_a_trunk_are_cut_too(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    loaded = load(tiny_model(), level=level)
    trunk = None if level == "none" else batches.trunk(token_ids(9, 20))
    given = batches.prompts([token_ids(seed, 8) for seed in range(5)], Settings((), 6), on=trunk)
    expected = loaded.execute(given)
    rows, splits = (4, 1) if level == "tree" else (2, 2)  # a step in slots has four rows at least
    Full(loaded, monkeypatch, rows=rows)
    found = loaded.execute(given)
    assert loaded.last_split == splits
    tokens = {name: answer["tokens"] for name, answer in found.items()}
    assert tokens == {name: answer["tokens"] for name, answer in expected.items()}


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_other_words_for_a_full_memory_are_known(
    engine: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    full = Full(engine, monkeypatch, rows=4)
    full.error = error
    engine.execute(SCORED)
    assert engine.last_split == 1


def test_the_cpus_allocator_says_what_we_look_for() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert core.is_out_of_memory(caught.value)


def test_another_error_is_not_taken_for_a_full_memory(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Full(engine, monkeypatch, rows=0)
    full.error = RuntimeError("expected scalar type Float but found BFloat16")
    with pytest.raises(RuntimeError, match="expected scalar type"):
        engine.execute(SCORED)
    assert full.freed == 0 and len(full.sizes) == 1


def test_a_row_that_does_not_fit_alone_is_told_in_a_line(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Full(engine, monkeypatch, rows=0)
    with pytest.raises(EvalkitError, match="out of memory in a batch of 5 rows x 41") as caught:
        engine.execute(SCORED)
    assert caught.value.code == Exit.MISSING and "what is done is kept" in str(caught.value)


def test_halves_have_every_row_and_target_once() -> None:
    def leaves(batch: Batch) -> list[Batch]:
        if len(batch.rows) == 1:
            return [batch]
        return [leaf for half in core.halves(batch) for leaf in leaves(half)]

    pieces = leaves(SCORED)
    assert [id(piece.rows[0]) for piece in pieces] == [id(row) for row in SCORED.rows]
    back = [replace(t, row=at) for at, piece in enumerate(pieces) for t in piece.targets]
    assert back == list(SCORED.targets)
    assert {(piece.id, piece.width, piece.chunk, piece.slots) for piece in pieces} == {
        (SCORED.id, SCORED.width, SCORED.chunk, SCORED.slots)
    }


# Half precision


@pytest.mark.oracle
def test_bfloat16_is_as_near_to_float32_as_lm_evals(tiny_model: Make) -> None:
    """Mean absolute error of log-likelihoods on the same weights; lm-eval's with softmax in
    float32."""
    folder = tiny_model(dtype="bfloat16", num_hidden_layers=4, hidden_size=128)
    rows = [token_ids(seed, 20 + seed % 60) for seed in range(400)]
    exact = our_scores(load(folder, "float32"), rows, 12)
    theirs = lm_eval_scores(hf(folder, "bfloat16", softmax_dtype="float32"), rows, 12)
    for level in "AC":
        ours = our_scores(load(folder, level=level), rows, 12)
        error = [sum(abs(a - b) for a, b in zip(side, exact, strict=True)) / len(exact)
                 for side in (ours, theirs)]  # fmt: skip
        print(f"level {level}: ours {error[0]:.4f}, lm-eval's {error[1]:.4f}")
        assert error[0] <= error[1]
