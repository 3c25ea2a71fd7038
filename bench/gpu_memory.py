"""What fits into GPUs, by the plan's own arithmetic: a table for docs/gpu.md.

    python -m bench.gpu_memory        # writes it; nothing is loaded and nothing computed

Worst cases: a GPU's bytes while the largest pass that a policy allows runs, with every slot and the
longest trunk in use. They are computed, not measured.
"""

from typing import Any

from bench import ROOT, tables
from evalkit.inputs.models import architecture
from evalkit.plan import memory
from evalkit.plan.memory import Needs

PAGE = ROOT / "docs" / "gpu.md"
TEXT = 1280  # tokens of a text of bbh behind its trunk, as long as it may grow
COUNTS = (1, 2, 4, 8)
SIZES = (16, 24, 40, 80, 141)  # of the classes, those that are shown
# Of each model's config.json what decides memory, and its parameters.
LLAMA: dict[str, Any] = {"model_type": "llama", "num_key_value_heads": 8}
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-2-7B": (
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
         "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000},
        6_738_415_616,
    ),
    "Llama-3.1-8B": (
        {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "vocab_size": 128256},
        8_030_261_248,
    ),
    "Qwen3-32B": (
        {"model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "head_dim": 128,
         "num_hidden_layers": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
         "vocab_size": 151936},
        32_762_123_264,
    ),
    "Llama-3.1-70B": (
        {**LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
         "num_attention_heads": 64, "vocab_size": 128256},
        70_553_706_496,
    ),
}  # fmt: skip
HEAD = ["model, bf16", "class, GB", "fewest GPUs", "tokens of a pass", f"slots of {TEXT:,} tokens",
        "longest trunk", *(f"GB on {count}" for count in COUNTS)]  # fmt: skip


def needs(name: str) -> Needs:
    """What one of the models needs in bf16."""
    from transformers import AutoConfig

    config, parameters = MODELS[name]
    kind = config["model_type"]
    made = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
    return Needs(architecture.shape_of(made), 2 * parameters, 2)


def text() -> str:
    """The table, and a line on each model."""
    rows, lines = [], []
    for name in MODELS:
        wanted = needs(name)
        lines.append(f"{name} {wanted.cache / 1e3:,.0f} kB")
        rows += [_row(name, wanted, size) for size in SIZES]
    kept = f"Keys and values of a token in bf16: {', '.join(lines)}."
    return f"{tables.table(HEAD, rows)}\n\n{kept}"


def _row(name: str, wanted: Needs, size: int) -> list[str]:
    found = memory.fit(wanted, size)
    if found is None:
        return [name, str(size), f"more than {memory.MOST_GPUS}", *[""] * (len(HEAD) - 3)]
    policy = found.policy
    held = [
        f"{memory.worst(wanted, policy, count) / 1e9:.0f}" if count >= found.gpus else "no"
        for count in COUNTS
    ]
    return [
        name, str(size), str(found.gpus), f"{policy.max_tokens:,}", str(policy.slots(TEXT)),
        f"{policy.max_trunk:,}", *held,
    ]  # fmt: skip


if __name__ == "__main__":
    tables.write("bench-gpu-memory", text(), PAGE)
    print(text())
