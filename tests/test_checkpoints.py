"""Checkpoints that are not what their files say of themselves: what transformers passes over is
refused by name, or counted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalkit.base.errors import EvalkitError
from evalkit.inputs.models import checkpoint
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.inputs.suite import Suite, SuiteTask
from evalkit.plan.requests import asking
from evalkit.plan.requests.request import Request, Settings
from evalkit.plan.tokenise import tokenise

torch = pytest.importorskip("torch")
engine = pytest.importorskip("evalkit.engine")
weights = pytest.importorskip("evalkit.engine.hardware.weights")

SUITE = Suite("own", Path("own.yaml"), (SuiteTask("own"),))
Weights = dict[str, Any]
Copy = Callable[..., Path]


@pytest.fixture
def copied(tiny_model: Callable[..., Path], tmp_path: Path) -> Copy:
    """A copy of a random model whose weights, config or tokenizer were changed."""

    def made(
        change: Callable[[Weights], Weights] | None = None, file: str = "config.json", **keys: Any
    ) -> Path:
        from safetensors.torch import load_file, save_file

        folder = shutil.copytree(tiny_model("llama", tokenizer="llama3"), tmp_path / "model")
        if change:
            path = folder / "model.safetensors"
            save_file(change(load_file(path)), path, {"format": "pt"})
        stated = json.loads((folder / file).read_text()) | keys
        kept = {key: value for key, value in stated.items() if value is not ...}
        (folder / file).write_text(json.dumps(kept))
        return folder

    return made


def load(folder: Path, dtype: str = "float32") -> Any:
    """Its weights, as a worker loads them."""
    model = models.resolve(str(folder))
    return weights.load(model, engine.Numerics(dtype=dtype), "cpu", None)


def with_biases(found: Weights) -> Weights:
    """A checkpoint of a model whose attention has biases, as Qwen2's has."""
    more = {name.replace("weight", "bias"): torch.randn(found[name].shape[0])
            for name in found if "q_proj" in name}  # fmt: skip
    return found | more


def with_scales(found: Weights) -> Weights:
    """Weights in eight bits, each with the scale that makes numbers of them."""
    made = {}
    for name, weight in found.items():
        if "q_proj" in name:
            scale = weight.abs().max() / 448
            made[name] = (weight / scale).to(torch.float8_e4m3fn)
            made[f"{name}_scale_inv"] = scale.reshape(1, 1)
        else:
            made[name] = weight
    return made


@pytest.mark.parametrize(
    ("change", "word"),
    [(with_biases, "q_proj.bias"), (with_scales, "q_proj.weight_scale_inv")],
)
def test_weights_that_nothing_reads_are_refused(
    change: Callable[[Weights], Weights], word: str, copied: Copy
) -> None:
    with pytest.raises(EvalkitError, match=rf"2 weights in the files of .*{word}"):
        load(copied(change))


def test_what_transformers_loaded_is_held_against_the_files(
    copied: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied()
    base = weights.load_base

    def other(*given: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(weights, "check_values", lambda *_: None)
            loaded = base(*given)
        with torch.no_grad():
            loaded.model.layers[1].mlp.up_proj.weight[-1, -1] += 1
        weights.check_values(given[0], loaded)
        return loaded

    monkeypatch.setattr(weights, "load_base", other)
    with pytest.raises(EvalkitError, match=r"did not load model.layers.1.mlp.up_proj.weight"):
        load(folder)


def test_a_weight_that_is_no_number_is_still_the_files(copied: Copy) -> None:
    def broken(found: Weights) -> Weights:
        found["model.norm.weight"][0] = float("nan")
        return found

    load(copied(broken))


def test_an_lm_head_that_tied_embeddings_would_hide_is_not_lost(copied: Copy) -> None:
    """transformers may tie what the config says is tied, whatever the file holds."""
    folder = copied(tie_word_embeddings=True)
    try:
        loaded = load(folder)
    except EvalkitError as error:
        assert "did not load" in str(error)  # one of the two, by version
    else:
        head, embedding = loaded.lm_head.weight, loaded.model.embed_tokens.weight
        assert not torch.equal(head, embedding)


def test_a_config_without_a_dtype_takes_the_weights_own(copied: Copy) -> None:
    """float32 would be another model's rounding, and twice the memory."""
    folder = copied(lambda found: {n: w.to(torch.bfloat16) for n, w in found.items()}, dtype=...)
    model = models.resolve(str(folder))
    assert "dtype" not in model.config
    assert checkpoint.dtype(model) == "bfloat16"
    assert engine.numerics_for(model, None).dtype == "bfloat16"


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused_before_planning(
    copied: Copy,
) -> None:
    """The run crashed at the first such token."""

    def smaller(found: Weights) -> Weights:
        return {
            name: weight[:600].clone() if len(weight) > 1000 else weight
            for name, weight in found.items()
        }

    model = models.resolve(str(copied(smaller, vocab_size=600)))
    with pytest.raises(EvalkitError, match=r"lie beyond the model's 600 embeddings, token 600"):
        asking.of(SUITE, model, Tokenizer(model))


def test_an_added_token_without_an_embedding_is_refused_where_a_text_spells_it(
    copied: Copy,
) -> None:
    from transformers import AutoTokenizer

    folder = copied()
    own: Any = AutoTokenizer.from_pretrained(folder)
    own.add_special_tokens({"additional_special_tokens": ["<pad!>"]})
    own.save_pretrained(folder)
    model = models.resolve(str(folder))
    tokenizer = Tokenizer(model)
    asking.of(SUITE, model, tokenizer)

    def asks(text: str) -> list[Request]:
        return [Request("own", 3, 0, 0, "generate_until", text, settings=Settings((), 4))]

    tokenise(asks("the man"), tokenizer)
    with pytest.raises(EvalkitError, match=r"own/3/0/0 holds token 1\d\d\d"):
        tokenise(asks("the <pad!>"), tokenizer)


def test_a_tokenizer_that_ends_every_text_is_counted(copied: Copy) -> None:
    def item(token: str, ids: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": ids}}

    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    text = {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [item(bos, 0), text, item(eos, 0)],
        "pair": [item(bos, 0), text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [n], "tokens": [name]} for n, name in enumerate((bos, eos))
        },
    }
    folder = copied(file="tokenizer.json", post_processor=processor)
    tokenizer = Tokenizer(models.resolve(str(folder)))
    assert tokenizer.added_eos == 1
    asked = [
        Request("own", 0, 0, 0, "generate_until", "the man", settings=Settings((), 4)),
        Request("own", 1, 0, 0, "loglikelihood", "the man", " went home"),
    ]
    assert tokenise(asked, tokenizer).appended_eos == 2


def test_special_tokens_that_are_not_the_configs_are_told(copied: Copy) -> None:
    found = Tokenizer(models.resolve(str(copied(eos_token_id=[5, 6]))))
    assert found.unlike == {"eos_token": {"tokenizer": 1, "config": [5, 6]}}


def test_a_tokenizer_that_is_read_otherwise_than_its_file_says_is_told(copied: Copy) -> None:
    """transformers' classes for some families put rules of their own in the file's place."""
    folder = copied()
    assert Tokenizer(models.resolve(str(folder))).unlike_file() is None
    found = Tokenizer(models.resolve(str(folder)))
    from tokenizers import pre_tokenizers

    found.hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert found.unlike_file() is not None


def test_an_adapters_folder_given_as_a_model_says_what_it_is(tmp_path: Path) -> None:
    told = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(EvalkitError) as caught:
        models.resolve(str(tmp_path))
    assert "is no model but a LORA adapter of 'org/base'" in str(caught.value)
    assert f"--model org/base --adapter {tmp_path}" in str(caught.value)


@pytest.mark.parametrize("config", [True, False])
def test_a_folder_of_a_broken_gguf_file_says_what_it_is(config: bool, tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    if config:
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(EvalkitError, match="GGUF"):
        models.resolve(str(tmp_path))
