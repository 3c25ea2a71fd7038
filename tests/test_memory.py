"""What a class of GPUs holds: estimates against real tensors, the policy, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import support
import test_plan
import torch
from support import call

from bench import gpu_memory, tables
from evalkit.base.errors import EvalkitError
from evalkit.engine import Engine, Numerics
from evalkit.engine.hardware import device as devices
from evalkit.engine.tree import attention, tree
from evalkit.inputs.models import architecture
from evalkit.plan import memory, store
from evalkit.plan.batch import Policy, make_trunk
from evalkit.plan.memory import Needs

GB = 10**9
LLAMA_8B = gpu_memory.needs("Llama-3.1-8B")
LEVEL_A = sorted(n for n, one in architectures.ARCHITECTURES.items() if one.level == "tree")
# One of each kind of cache: latent, of few heads and of as many as there are queries, in windows.
FEW = ("cohere2", "deepseek-v3", "gemma3", "gpt-neox", "gpt-oss", "llama")


def made(name: str) -> Any:
    """A random model of an architecture, without a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    one = architectures.ARCHITECTURES[name]
    config = AutoConfig.for_model(one.type, **{"pad_token_id": None} | one.to_config(512))
    causal: Any = AutoModelForCausalLM
    return causal.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.oracle) for n in LEVEL_A]
)
def test_the_bytes_of_a_tokens_keys_and_values_are_those_that_the_engine_keeps(name: str) -> None:
    """Latent attention, grouped queries and windows included; `make oracle` has all that there
    are."""
    model = made(name)
    attention.switch(model, attention.NAME)
    tokenizer: Any = type("None", (), {"hf": type("Hf", (), {"eos_token_id": 0, "eos_token": ""})})
    engine = Engine(model, tokenizer, "cpu", "tree", Numerics("float32"))
    tokens = np.arange(20, 60, dtype=np.uint32)
    with torch.inference_mode():
        kept = tree.prefix(engine, make_trunk(None, tokens), 64)
    held = sum(each.numel() * 4 for pair in kept.layers.values() for each in pair)
    assert (
        architecture.shape_of(model.config.get_text_config()).cache_bytes(4) * len(tokens) == held
    )


@pytest.mark.parametrize("size", memory.CLASSES)
@pytest.mark.parametrize("name", gpu_memory.MODELS)
def test_no_policy_holds_more_than_its_class(name: str, size: int) -> None:
    needs = gpu_memory.needs(name)
    if found := memory.fit(needs, size):
        for gpus in range(found.gpus, memory.MOST_GPUS + 1):
            assert memory.worst(needs, found.policy, gpus) <= memory.SEEN * size * memory.GIB


def test_a_larger_class_is_never_less_and_more_gpus_change_no_policy() -> None:
    for name in gpu_memory.MODELS:
        needs = gpu_memory.needs(name)
        fits = [f for size in memory.CLASSES if (f := memory.fit(needs, size))]
        assert [f.gpus for f in fits] == sorted((f.gpus for f in fits), reverse=True)
        for size, gpus in memory.fitting(needs):
            policies = {memory.require(needs, size, n, "m").policy for n in range(gpus, 9)}
            assert policies == {memory.require(needs, size, None, "m").policy}


def test_what_people_have_fits() -> None:
    fewest = {(n, s): g for n in gpu_memory.MODELS for s, g in memory.fitting(gpu_memory.needs(n))}
    assert fewest["Llama-2-7B", 24] == fewest["Llama-3.1-8B", 24] == 1
    assert fewest["Qwen3-32B", 80] == 1 and fewest["Llama-3.1-70B", 141] == 2
    policy = memory.require(LLAMA_8B, 141, 1, "m").policy
    assert policy.slots(gpu_memory.TEXT) == 256
    assert (policy.max_tokens, policy.max_scored, policy.prefill) == (32768, 8192, 16384)


@pytest.mark.parametrize(("gib", "size"), [
    (14.6, 16), (15.7, 16), (22.0, 24), (23.6, 24), (31.7, 32), (39.4, 40), (47.4, 48), (79.1, 80),
    (139.8, 141), (178.0, 180), (7.8, 8), (93.6, 96), (11.8, 12), (5.9, None),
])  # fmt: skip
def test_a_gpu_is_of_the_largest_class_that_it_has_the_memory_of(
    gib: float, size: int | None
) -> None:
    """What drivers say of T4 and V100 to B200, and of cards for games."""
    assert memory.class_of(int(gib * memory.GIB)) == size


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    needs = gpu_memory.needs("Llama-3.1-70B")
    with pytest.raises(EvalkitError, match=r"does not fit into one GPU of 80 GB: 141\.1 GB") as it:
        memory.require(needs, 80, 1, "x/70B")
    assert "3 of 80 GB, 2 of 96 GB, one of 180 GB (--device auto" in str(it.value)
    huge = Needs(needs.shape, 5000 * GB, 2)
    with pytest.raises(EvalkitError, match="nothing up to 8 GPUs"):
        memory.require(huge, 141, None, "x/5T")


def test_the_table_in_the_docs_is_what_the_command_makes() -> None:
    assert gpu_memory.text() in gpu_memory.PAGE.read_text("utf-8")
    assert "bench-gpu-memory" in gpu_memory.PAGE.read_text("utf-8") and tables.write


def test_the_command_line_offers_every_class() -> None:
    from evalkit.cli import running

    assert tuple(map(str, memory.CLASSES)) == running.MEMORY


# Plans


def test_a_cpus_policy_says_nothing_of_gpus_so_its_ids_are_what_they_were() -> None:
    assert set(Policy().to_json()).isdisjoint({"prefill", "max_trunk", "memory"})
    policy = memory.require(LLAMA_8B, 24, 1, "m").policy
    assert Policy(**policy.to_json()) == policy and policy.to_json()["memory"] == 24


@pytest.fixture
def command(tmp_path: Path, tiny_model: Callable[..., Path]) -> Callable[..., Any]:
    """Runs a command on a tiny model and one task with worked examples."""
    suite = support.suite(tmp_path, "mine", ["demo_cot"])

    def run(name: str, *options: str) -> Any:
        given = ("--model", tiny_model(), "--suite", suite, "--limit", "3")
        return call(name, *given, "--out", tmp_path / "results", *options)

    return run


def test_a_plan_is_for_a_class_and_runs_and_verifies_anywhere(command: Callable[..., Any]) -> None:
    """A tiny model on the CPU by the policy of a GPU; its texts are the CPU's own."""
    ran = command("eval", "--memory", "24", "--level", "tree").done()
    plan, record = support.read(ran.folder, "plan.json"), support.read(ran.folder)
    assert plan["policy"]["memory"] == record["engine"]["policy"]["memory"] == 24
    assert plan["policy"]["max_slots"] == 256
    assert call("verify", ran.folder).done().out.splitlines()[-1].startswith("CONSISTENT")
    other = command("eval", "--level", "tree").done()
    assert other.folder != ran.folder
    assert support.read(other.folder)["answers"] == record["answers"], "in float32"
    assert support.read(other.folder)["ids"]["plan"] != record["ids"]["plan"]


def test_another_class_is_named_as_what_differs(command: Callable[..., Any]) -> None:
    command("plan", "--memory", "24").done()
    command("plan", "--memory", "80").refused(2, "differs in engine.policy")


def test_a_gpu_that_is_here_gives_the_class(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "memories", lambda _: [79 << 30, 139 << 30])
    ran = command("plan").done()
    assert support.read(ran.folder, "run.json")["inputs"]["engine"]["policy"]["memory"] == 80


def test_no_trunk_is_longer_than_its_policy_says() -> None:
    rows = test_plan.rows_of(test_plan.documents(600, 40, 90, 4), 5)
    assert any(b.trunk for b in store.make_batches(rows, Policy(), level="tree"))
    short = replace(Policy(), max_trunk=30, memory=24)
    for level in store.LEVELS:
        for batch in store.make_batches(rows, short, level=level):
            assert batch.trunk is None or batch.trunk.length <= 30


def test_texts_that_are_too_long_are_refused_by_the_plan() -> None:
    policy = memory.require(LLAMA_8B, 24, 1, "m").policy
    room = memory.Room(Needs(LLAMA_8B.shape, 21 * GB, 2), policy, 1)
    entry = {"task": "t", "rows": 1, "width": 9000, "trunk": None, "settings": None, "targets": []}
    with pytest.raises(EvalkitError, match=r"a batch of t needs .* rows of 9,000 tokens behind 0"):
        memory.check({"trunks": [], "settings": [], "batches": [entry]}, room)
