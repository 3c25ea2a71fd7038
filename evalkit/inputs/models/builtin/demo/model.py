"""Builds the demo's model: a random Llama of two layers with a tokenizer of its own.

The same seed and the same torch give the same bytes, so the demo's run id is the same for everyone
who has the locked packages. It stands outside the line from suite to record, which is why it may
import torch and transformers, inside its functions only.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from evalkit.base import canon, kept

TASKS = Path(__file__).parent / "tasks"
VOCABULARY = 1024
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
# Llama 3's: contractions, words with one leading sign, numbers of up to 3 digits, signs, blanks.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build(folder: Path, seed: int = 0) -> Path:
    """Make the model in `folder` and return it; files that are already right stay untouched. Each
    file is complete before it gets its name, so another process may be reading the folder, which
    may be read-only where it is right."""
    if not folder.is_dir():
        kept.make_folder(folder)
    beside = folder.parent if os.access(folder.parent, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=beside, prefix=".demo-") as made:
        _save(Path(made), seed)
        for path in sorted(Path(made).iterdir()):
            old = folder / path.name
            if not old.is_file() or old.read_bytes() != path.read_bytes():
                canon.write_atomic(old, path.read_bytes())
    return folder


def _save(folder: Path, seed: int) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.1,  # wide enough that no two tokens are nearly tied
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not ours to spend
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = "float32"
    # Not model.save_pretrained, which draws a progress bar for one small file.
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    for part in (config, model.generation_config, tokenizer):
        part.save_pretrained(folder)


def _texts() -> list[str]:
    """What the tokenizer learns from: the words of the demo's own files, in a fixed order."""
    files = sorted([*TASKS.rglob("*yaml"), *TASKS.rglob("*.jsonl")])
    texts = [path.read_text("utf-8") for path in files]
    return [line for text in texts for line in re.sub(r'[{}\[\]"]', " ", text).splitlines()]


def _tokenizer() -> Any:
    """Byte-level BPE in the manner of Llama 3: a BOS before every text, no padding token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(_texts(), trainer)
    raw.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=raw, bos_token=BOS, eos_token=EOS, model_max_length=2048)
