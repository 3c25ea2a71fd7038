"""The tests' own models are what they say: same seed same bytes, tokenizers of three families, and
a talker that stops."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest

TEXT = "Q: naïve  words, 12345\n\nA:\tso 😀"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "mistral", "mixtral", "gemma2"])
def test_a_tiny_model_of_any_architecture_reads_text(
    architecture: str, tiny_model: Callable[..., Path]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_model(architecture)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == architecture and model.dtype == torch.float32
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder).encode(TEXT)])
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    first, second = logits.topk(2).values.tolist()
    assert logits.std() > 0.3 and first - second > 1e-3, "so flat that every answer is a near-tie"


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_weights(tmp_path: Path) -> None:
    made = [models.tiny(tmp_path / str(n), seed=seed) for n, seed in enumerate((3, 3, 4))]
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in made]
    assert files[0] == files[1]
    assert {name for name in files[0] if files[0][name] != files[2][name]} == {"model.safetensors"}


def test_a_tiny_model_has_the_dtype_length_and_shape_asked_for(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = models.tiny(
        tmp_path, "mistral", dtype="bfloat16", max_length=96, sliding_window=32, num_hidden_layers=3
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    assert model.dtype == torch.bfloat16
    shape = (config.max_position_embeddings, config.sliding_window, config.num_hidden_layers)
    assert shape == (96, 32, 3)


@pytest.mark.parametrize(
    ("kind", "adds_bos", "same_eos"),
    [("llama3", True, False), ("gpt2", False, True), ("sentencepiece", True, False)],
)
def test_a_tokenizer_adds_what_its_family_adds_and_loses_nothing(
    kind: str, adds_bos: bool, same_eos: bool, tiny_model: Callable[..., Path]
) -> None:
    tokenizer = load_tokenizer(tiny_model(tokenizer=kind))
    ids = tokenizer.encode(TEXT)
    assert (ids[0] == tokenizer.bos_token_id) is adds_bos
    assert tokenizer.encode(TEXT, add_special_tokens=False) == ids[adds_bos:]
    assert (tokenizer.bos_token_id == tokenizer.eos_token_id) is same_eos
    assert tokenizer.decode(ids[adds_bos:]) == TEXT
    assert tokenizer.pad_token is None
    starts_with_blank = tokenizer.convert_ids_to_tokens(tokenizer.encode("the")[-1]) == "▁the"
    assert starts_with_blank is (kind == "sentencepiece")


def test_a_chat_template_writes_bos_itself(tiny_model: Callable[..., Path]) -> None:
    assert load_tokenizer(tiny_model()).chat_template is None
    tokenizer = load_tokenizer(tiny_model(chat_template=True))
    turn = [{"role": "user", "content": " hi "}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text.startswith(f"{models.BOS}<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>")
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert len(tokenizer.encode("<|eot_id|>", add_special_tokens=False)) == 1


def test_texts_given_to_the_tokenizer_make_its_pieces_longer(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    plain = load_tokenizer(tiny_model())
    taught = load_tokenizer(models.tiny(tmp_path, texts=[" zyzzogeton"] * 400))
    assert len(taught.encode(" zyzzogeton")) == 2 < len(plain.encode(" zyzzogeton"))


def test_no_word_of_the_talkers_chain_comes_twice() -> None:
    words = [*(word for row in models.ROWS for word in row), *models.OTHERS]
    assert len(set(words)) == len(words)
    assert not any(letter in word for word in words for letter in "Q\n")


def test_a_talker_is_the_same_whatever_the_threads(tmp_path: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    weights = []
    for count in (1, 2):
        torch.set_num_threads(count)
        folder = models.talker(tmp_path / str(count), seed=2, steps=2, hidden_size=64)
        weights.append((folder / "model.safetensors").read_bytes())
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert weights[0] == weights[1]


@pytest.mark.oracle  # whose talker it is
def test_a_talker_answers_and_stops_after_any_prompt(tmp_path: Path) -> None:
    """A smaller one taught for less time: the figures of the real one are the oracle tests'."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = models.talker(tmp_path, steps=60, hidden_size=64, intermediate_size=128)
    tokenizer = load_tokenizer(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    source = random.Random(11)
    shots = "".join(
        models.question(source, style) + models.CUE + models._answer(source, style)
        for style in models.ANSWERS * 2
    )
    for question in (models.question(source, "letters"), "Q: )(*&^ 1 + 1 = ? 中文 ] } >"):
        ids = torch.tensor([tokenizer.encode(shots + question + models.CUE)])
        made = model.generate(
            ids,
            max_new_tokens=400,
            do_sample=False,
            tokenizer=tokenizer,
            stop_strings=["\n\n", "Q"],
        )
        text = tokenizer.decode(made[0, ids.shape[1] :])
        assert re.search(r"\. So the answer is \([A-D]\)\.\n\n$", text), text
        assert 10 < made.shape[1] - ids.shape[1] < 300


def load_tokenizer(folder: Path) -> Any:
    """A model folder's tokenizer as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
