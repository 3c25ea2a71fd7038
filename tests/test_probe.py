"""The probe: it finds each architecture's level, and no planted fault passes it."""

import copy
import json
import random
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
from architectures import ARCHITECTURES

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs.models import model as models
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer

torch = pytest.importorskip("torch")
engine = pytest.importorskip("evalkit.engine")

from evalkit.engine import passes  # noqa: E402
from evalkit.engine.answers import scoring  # noqa: E402
from evalkit.engine.numerics import numerics  # noqa: E402
from evalkit.engine.probe import probe, shrink, trials  # noqa: E402
from evalkit.engine.tree import buffers, slots, tail, tree  # noqa: E402

VOCABULARY = 1200
# Flagships' configs, as far as their sizes are concerned.
LLAMA_405B = {
    "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248, "vocab_size": 128256,
    "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "bos_token_id": 128000, "eos_token_id": [128001, 128009],
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "n_routed_experts": 256, "n_group": 8, "topk_group": 4,
    "num_experts_per_tok": 8, "first_k_dense_replace": 3, "vocab_size": 129280,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
GEMMA3_27B = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504,
        "num_attention_heads": 32, "num_key_value_heads": 16, "num_hidden_layers": 62,
        "head_dim": 128, "sliding_window": 1024, "vocab_size": 262208,
    },
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 896,
                      "intermediate_size": 4304, "num_attention_heads": 16,
                      "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False},
    "image_token_index": 262144, "mm_tokens_per_image": 256,
}  # fmt: skip
NEMOTRON_H = {
    "model_type": "nemotron_h", "hidden_size": 4096, "intermediate_size": 21504,
    "num_hidden_layers": 52, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
    "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128,
    "chunk_size": 128, "vocab_size": 131072,
}  # fmt: skip
QWEN2_SLIDING = {
    "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "vocab_size": 152064,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "max_window_layers": 70, "sliding_window": 32768, "use_sliding_window": True,
}  # fmt: skip
FLAGSHIPS = {  # config, layers that stay, level
    "llama-405b": (LLAMA_405B, 2, "tree"),
    "deepseek-v3": (DEEPSEEK_V3, 4, "tree"),
    "gemma3-27b": (GEMMA3_27B, 3, "tree"),
    "nemotron-h": (NEMOTRON_H, 3, "prefix"),
    "qwen2-sliding": (QWEN2_SLIDING, 3, "tree"),
}
FEW = (
    "llama",
    "gemma3",
    "gpt-oss",
    "deepseek-v3",
    "bloom",
    "falcon-h1",
    "mamba",
    "recurrent-gemma",
)
Made = Callable[..., Any]


def of_config(folder: Path, config: dict[str, Any]) -> Model:
    """A model of which there is nothing but a config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return Model(folder.name, None, folder, {})


def named(name: str, folder: Path) -> Model:
    """One of the tiny architectures, its config only."""
    from transformers import AutoConfig

    wanted = ARCHITECTURES[name]
    special = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model(wanted.type, **(special | wanted.to_config(VOCABULARY)))
    return of_config(folder / name, json.loads(config.to_json_string(use_diff=False)))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No level is remembered from another test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "evalkit" / "levels.json"


@pytest.fixture
def load(tiny_model: Callable[..., Path]) -> Made:
    """A loaded tiny model at a level."""

    def loaded(level: str = "tree", dtype: str = "float32", **settings: Any) -> Any:
        model = models.resolve(str(tiny_model("llama", max_length=256)))
        wanted = numerics.Numerics(dtype=dtype, **settings)
        return engine.load(model, Tokenizer(model), wanted, "cpu", level=level)

    return loaded


# Levels


@pytest.mark.parametrize("name", FEW)
def test_an_architecture_has_its_level(name: str, tmp_path: Path) -> None:
    """Of each kind; `make oracle-all` has all of them."""
    model = named(name, tmp_path)
    if not ARCHITECTURES[name].level:
        with pytest.raises(EvalkitError, match="can't run"):
            probe.resolve(model)
    else:
        assert probe.resolve(model) == ARCHITECTURES[name].level


@pytest.mark.parametrize(
    "name",
    [n if n == "llama-405b" else pytest.param(n, marks=pytest.mark.oracle) for n in FLAGSHIPS],
)
def test_a_flagships_instance_is_small_and_has_all_its_kinds_of_layers(
    name: str, tmp_path: Path
) -> None:
    config, layers, level = FLAGSHIPS[name]
    model = of_config(tmp_path / name, config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.random.fork_rng(devices=[]):
        made = shrink.instance(model)
    assert made is not None
    text = made.config.get_text_config()
    assert text.num_hidden_layers == layers
    assert text.vocab_size <= 512
    assert sum(weight.numel() for weight in made.parameters()) < 25e6
    assert (getattr(text, "sliding_window", None) or 20) <= 20
    assert probe.resolve(model) == level
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB


def test_an_architecture_of_which_no_instance_can_be_made_shares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrink, "MAX_PARAMETERS", 10)
    assert probe.resolve(named("llama", tmp_path)) == "none"


def test_a_models_own_code_is_probed_where_it_is_trusted(tmp_path: Path) -> None:
    config = {
        "model_type": "own", "architectures": ["OwnModel"], "hidden_size": 64, "vocab_size": 300,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }  # fmt: skip
    model = replace(of_config(tmp_path / "own_code", config), trust_remote_code=True)
    (model.folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    assert probe.resolve(model) == "tree"


def test_a_config_that_makes_no_model_is_told(tmp_path: Path) -> None:
    model = of_config(tmp_path / "odd", {"model_type": "llama", "num_attention_heads": "many"})
    with pytest.raises(EvalkitError, match="transformers can't load 'odd'"):
        probe.resolve(model)


# What is remembered, and what is left as it was


def test_a_level_is_remembered_until_something_changes(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = named("llama", tmp_path)
    assert probe.resolve(model) == "tree"
    monkeypatch.setattr(shrink, "instance", lambda model: None)  # would be level none
    assert probe.resolve(model) == "tree"
    own_cache.write_text('{"torn')
    assert probe.resolve(model) == "none", "a torn cache costs time only"
    assert list(canon.read_json(own_cache).values()) == ["none"]
    config = model.config | {"rms_norm_eps": 1e-5}
    assert numerics.origin(of_config(tmp_path / "other", config)) != numerics.origin(model)


def test_finding_a_level_leaves_no_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = named("mixtral", tmp_path)
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    capfd.readouterr()
    probe.resolve(model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert capfd.readouterr() == ("", "")


# Planted faults


def plant(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, change: Any) -> None:
    """Replace a function of the engine by what `change` makes of it."""
    monkeypatch.setattr(module, name, change(getattr(module, name)))


def mask_off_by_one(original: Any) -> Any:
    """Each token sees the one that stands behind it in its row, too."""

    def visible(row: Any, width: int) -> Any:
        seen = original(row, width)
        seen[np.arange(width - 1), np.arange(1, width)] = True
        return seen

    return visible


def position_off_by_one(original: Any) -> Any:
    """Every branch but a row's first stands one place too far."""

    def depths(row: Any) -> Any:
        found = original(row)
        for start in row.starts[1:]:
            found[start:] += 1
        return found

    return depths


def trunk_token_short(original: Any) -> Any:
    """Of each chunk of a trunk the last token is lost, the one before it is there twice."""

    def grown(self: Any, taken: Any, tokens: int) -> Any:
        found = original(self, taken, tokens)
        for key, value in found.layers.values():
            key[:, :, -1], value[:, :, -1] = key[:, :, -2], value[:, :, -2]
        return found

    return grown


def stale_slot(original: Any) -> Any:
    """A slot that is filled again keeps the last token of what stood in it."""

    def put(self: Any, slot: int, key: Any, value: Any) -> None:
        stale = self.key[slot, :, key.shape[1] - 1].clone()
        original(self, slot, key, value)
        if stale.any():
            self.key[slot, :, key.shape[1] - 1] = stale

    return put


def window_off_by_one(original: Any) -> Any:
    """A sliding window is one token too wide."""

    def attend(self: Any, layer: int, query: Any, key: Any, value: Any, scores: Any) -> Any:
        if scores.window:
            scores = replace(scores, window=scores.window + 1)
        return original(self, layer, query, key, value, scores)

    return attend


def scored_too_early(original: Any) -> Any:
    """Every path is one place further back."""

    def path_end(row: Any, end: int, tokens: int) -> list[int]:
        found = original(row, end, tokens)
        return [max(0, found[0] - 1), *found[:-1]]

    return path_end


def tail_too_early(original: Any) -> Any:
    """The last attention is taken to be the last but one."""

    def find(model: Any) -> Any:
        found = original(model)
        return replace(found, attentions=found.attentions - 1)

    return find


FEWER = (1,)  # of the seeds that are tried again: with all of them a fault shows no less, later
FAULTS = [
    (tree, "visible", mask_off_by_one, "llama"),
    (tree, "depths", position_off_by_one, "llama"),
    (tree.Prefix, "grown", trunk_token_short, "llama"),
    (buffers.Indexed, "put", stale_slot, "llama"),
    (tree.Tree, "attend", window_off_by_one, "gemma3"),
    (slots.Slots, "attend", window_off_by_one, "gemma3"),
    (scoring, "path_end", scored_too_early, "llama"),
    (tail, "find", tail_too_early, "llama"),
]


@pytest.mark.parametrize(
    ("module", "function", "fault", "name"),
    FAULTS,
    ids=[f"{fault.__name__}-{module.__name__}" for module, _, fault, _ in FAULTS],
)
def test_a_planted_fault_is_not_planned_with(
    module: Any, function: str, fault: Any, name: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = named(name, tmp_path)
    plant(monkeypatch, module, function, fault)
    try:
        level = probe.resolve(model)
    except EvalkitError:  # it is in what all levels use
        level = ""
    assert level != "tree"


@pytest.mark.parametrize(
    ("module", "function", "fault", "dtype"),
    [(*fault[:3], "float32") for fault in FAULTS if fault[3] == "llama"]
    + [(*fault[:3], "bfloat16") for fault in FAULTS[:1]],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_worker_does_not_start_with_a_planted_fault(
    module: Any, function: str, fault: Any, dtype: str, load: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(dtype=dtype)  # which passes: see below
    monkeypatch.setattr(probe, "AGAIN", FEWER)
    plant(monkeypatch, module, function, fault)
    with pytest.raises(EvalkitError) as caught:
        probe.check(loaded)
    assert caught.value.code is Exit.FAILED
    assert loaded.level == "tree", "it never switches by itself"


@pytest.mark.parametrize("level", ["prefix", "none"])
def test_a_wrong_position_behind_a_cache_is_seen_at_the_lower_levels(
    level: str, load: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(level)
    original = passes.run

    def run(engine: Any, places: Any, input_ids: Any, state: Any) -> Any:
        if state is not None and state.length:
            state = replace(state, length=state.length + 1)
        return original(engine, places, input_ids, state)

    monkeypatch.setattr(passes, "run", run)
    with pytest.raises(EvalkitError, match=f"at level {level} are not its own") as caught:
        probe.check(loaded)
    assert "lm-eval:hf" in caught.value.fix


# The check on real weights


@pytest.mark.parametrize(
    ("level", "settings"),
    [
        ("tree", {}), ("prefix", {}), ("none", {}), ("tree", {"dtype": "bfloat16"}),
        ("prefix", {"dtype": "bfloat16"}), ("tree", {"dtype": "bfloat16", "profile": "precise"}),
    ],
)  # fmt: skip
def test_right_answers_pass_and_nothing_of_the_engine_changes(
    level: str, settings: dict[str, Any], load: Made
) -> None:
    loaded = load(level, **settings)
    before = {name: value for name, value in vars(loaded).items() if name != "model"}
    kinds = [module.__class__ for module in loaded.model.modules()]
    attention = loaded.model.config._attn_implementation
    probe.check(loaded)
    assert {name: vars(loaded)[name] for name in before} == before
    assert [module.__class__ for module in loaded.model.modules()] == kinds
    assert loaded.model.config._attn_implementation == attention


def test_a_fault_of_level_a_alone_names_the_level_to_plan_with(
    load: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load()
    plant(monkeypatch, tree, "visible", mask_off_by_one)
    with pytest.raises(EvalkitError, match="at level tree are not its own") as caught:
        probe.check(loaded)
    assert caught.value.fix == "plan with --level prefix"


def test_a_broken_models_nan_is_no_fault_of_the_engine(load: Made) -> None:
    loaded = load()
    loaded.model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        loaded.model.lm_head.weight[5] = float("nan")
    probe.check(loaded)
    assert probe.distance(float("nan"), float("nan")) == 0.0
    assert probe.distance(1.0, float("nan")) == probe.distance(float("nan"), 1.0) == float("inf")


def test_a_quantised_models_answers_are_held_against_its_own_paddings(
    load: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load()
    loaded.model.config.quantization_config = {"quant_method": "own"}
    try:
        probe.check(loaded)
        monkeypatch.setattr(probe, "AGAIN", FEWER)
        plant(monkeypatch, tree, "visible", mask_off_by_one)
        with pytest.raises(EvalkitError):
            probe.check(loaded)
    finally:
        del loaded.model.config.quantization_config


def test_the_trials_reach_every_corner(load: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots are refilled, closed up and grown; branches branch; texts stop apart."""
    seen: set[str] = set()
    put, grow, keep = buffers.Indexed.put, buffers.Indexed.grow, slots.Slots.keep

    def noting_put(self: Any, slot: int, *given: Any) -> None:
        seen.update({"filled again"} if self.key[slot].any() else ())
        put(self, slot, *given)

    def noting_grow(self: Any, tokens: int) -> None:
        before = self.key.shape[2]
        grow(self, tokens)
        seen.update({"grown"} if before < self.key.shape[2] else ())

    def noting_keep(self: Any, kept: list[int], number: int) -> None:
        seen.update({"closed up"} if number < len(self.lengths) else ())
        keep(self, kept, number)

    monkeypatch.setattr(buffers.Indexed, "put", noting_put)
    monkeypatch.setattr(buffers.Indexed, "grow", noting_grow)
    monkeypatch.setattr(slots.Slots, "keep", noting_keep)
    loaded = load()
    probe.check(loaded)
    assert seen == {"filled again", "grown", "closed up"}
    material = trials.Material(np.arange(100, dtype=np.uint32))
    (row, *_) = trials.scoring("tree", *material.documents[0]).rows
    assert max(row.parents) > row.starts[1], "a branch on a branch"


# The tiny models


@pytest.mark.parametrize(
    "name",
    [n if n in FEW else pytest.param(n, marks=pytest.mark.oracle) for n in ARCHITECTURES],
)
def test_a_token_wrongly_seen_or_placed_shows(name: str, tmp_path: Path) -> None:
    """In the tiny models: otherwise comparing them with lm-eval, which the oracle does with all of
    them, would say little."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(named(name, tmp_path).folder)
    causal: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = causal.from_config(config, dtype=torch.float32).eval()
        architectures.enliven(model)
        tokens = torch.randint(20, 1000, (60,))
    other, moved = tokens.clone(), tokens.clone()
    other[50] = 7
    moved[52], moved[53] = tokens[53], tokens[52]
    with torch.inference_mode():
        tables = [
            torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0, 55:], dim=-1)
            for ids in (tokens, other, moved)
        ]
    assert (tables[0] - tables[1]).abs().mean() > 1e-2
    assert (tables[0] - tables[2]).abs().mean() > 1e-3
