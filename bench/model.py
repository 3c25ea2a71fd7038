"""The model that is measured: a random Llama of 56 million parameters, with prompts of real length.

A benchmark of prefix sharing is only as good as its token counts, so the tokenizer is a real one: a
byte-level BPE of 32,000 tokens with Llama 3's words, trained on the benchmarks' own documents. Both
are made once, from a seed, and kept.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import data
from bench.passes import parameters
from evalkit.base import canon
from evalkit.inputs.suite import SuiteTask

VOCABULARY = 32_000
MAX_LENGTH = 4096  # bbh's longest prompts and their 1,024 new tokens fit
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "max_position_embeddings": MAX_LENGTH,
}
CONFIG = {**SHAPE, "vocab_size": VOCABULARY}
SEED = 0


def folder() -> Path:
    """The model's folder; made where it is not there yet. Needs `data.served`."""
    place = data.cache() / "llama-56m"
    if not (place / "config.json").is_file():
        making = place.with_name(f".{place.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        tokenizer = trained()
        tokenizer.save_pretrained(making)
        random_llama(tokenizer, SHAPE).save_pretrained(making)
        making.rename(place)
    return place


def talker() -> Path:
    """A small model's folder: trained once, for seconds, to answer and stop."""
    from tests import models as made

    folder = data.cache() / "talker"
    if not (folder / "config.json").is_file():
        making = folder.with_name(".talker.making")
        shutil.rmtree(making, ignore_errors=True)
        made.talker(making)
        making.rename(folder)
    return folder


def described() -> dict[str, Any]:
    """The model in numbers: parameters in all, and of its matrices (see `parameters`), bytes of a
    token's keys and values, and the tokenizer's sha256."""
    found = parameters(CONFIG)
    hidden, layers = SHAPE["hidden_size"], SHAPE["num_hidden_layers"]
    wide = SHAPE["num_key_value_heads"] * (hidden // SHAPE["num_attention_heads"])
    matrices = found["layer_parameters"] + 2 * found["head_parameters"]
    return {
        "parameters": matrices + (2 * layers + 1) * hidden,
        **found,
        "key_bytes": 2 * layers * wide * 4,
        "tokenizer": canon.sha256_file(folder() / "tokenizer.json"),
    }


def random_llama(tokenizer: Any, shape: dict[str, Any]) -> Any:
    """A Llama of that shape with transformers' initial weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        made: Any = LlamaForCausalLM(config)
    return made.eval()


def trained() -> Any:
    """The tokenizer, trained on `core`'s documents."""
    from tests import models

    texts = list(_texts())
    return models.train_tokenizer("llama3", texts, vocabulary=VOCABULARY, max_length=MAX_LENGTH)


def _texts() -> Iterator[str]:
    """Every text of `core`'s documents, and one whole prompt of each task, for its shots."""
    members = ("mmlu", "hellaswag", "arc_challenge", "bbh")
    loaded = data.load(data.suite([SuiteTask(name) for name in members], limit=1))
    for leaf in loaded.leaves.values():
        for document in leaf.task.eval_docs:
            yield from _strings(document)
    yield from {request.context for request in data.requests(loaded)}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
