"""The first minute on a GPU (`make gpu-check`): what is here, whether it is right, how fast it is.

Each line is shown as soon as it is known: what the device is; the peak of its matrix products; how
far the attention kernel is from plain products; what a step's writes cost in three ways; one step's
wall time, the GPU's share of it, its launches and waits; one scoring pass; the same batch twice;
memory. On a CPU the lines that only a GPU has say so by zeros.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bench import lengths, passes, rates
from bench.shapes import Shape
from evalkit.base.machine import steering
from evalkit.engine.hardware import device, kernels
from evalkit.engine.numerics.numerics import DTYPES
from evalkit.engine.probe import probe
from evalkit.engine.tree import attention
from evalkit.engine.tree.attention import Scores
from evalkit.inputs.models import architecture
from evalkit.plan import store
from evalkit.plan.batch import Policy
from evalkit.plan.memory import Needs

if TYPE_CHECKING:
    from bench.gpu import Session

HEADS = ((64, 64), (128, 128), (192, 128))
STEPS = 16  # that a step's time is a mean of
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx",
            "cudaGraphLaunch")  # fmt: skip


def is_here() -> bool:
    """Whether torch sees an NVIDIA GPU."""
    return torch.cuda.is_available() and getattr(torch.version, "hip", None) is None


def needs(shape: Shape) -> Needs:
    """What the shape needs of memory."""
    from transformers import LlamaConfig

    numbers = passes.parameters(shape.config)
    count = numbers["layer_parameters"] + 2 * numbers["head_parameters"]
    size = DTYPES[shape.dtype].itemsize
    return Needs(architecture.shape_of(LlamaConfig(**shape.config)), count * size, size)


def run(session: "Session") -> None:
    """All of it, a line each."""
    shape = session.scale.shape
    found = device.hardware(shape.device)
    session.tell("device", **found, torch=torch.__version__, cleared=steering.told(),
                 transformers=_version("transformers"))  # fmt: skip
    peak = rates.matmul_peak(shape)
    session.tell("matmul", peak_flops=max(peak.values()), by_shape=peak)
    for name, dtype in DTYPES.items():
        for sizes in HEADS:
            session.tell("attention", dtype=name, sizes=list(sizes),
                         **_attention(shape.device, dtype, *sizes))  # fmt: skip
    session.tell("writes", **_writes(shape))
    for slots in session.scale.slots:
        session.tell("step", slots=slots, **_step(session, slots))
    session.tell("pass", **_pass(session, max(peak.values())))
    started = time.perf_counter()
    probe.check(session.engine)  # raises where bits move
    session.tell("repeats", equal=True, seconds=time.perf_counter() - started)
    session.tell("memory", **_memory(shape.device))


def _version(name: str) -> str:
    import transformers

    return str({"transformers": transformers.__version__}[name])


def _attention(where: str, dtype: torch.dtype, key: int, value: int) -> dict[str, Any]:
    """The largest error of the path that is taken against plain products in float32, over masks,
    and of plain products in the dtype itself."""
    source = torch.Generator(where).manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=source, device=where, dtype=dtype)

    query, keys, values = draw(2, 8, 48, key), draw(2, 2, 48, key), draw(2, 2, 48, value)
    seen = torch.rand(2, 1, 48, 48, generator=source, device=where) < 0.5
    seen |= torch.eye(48, dtype=torch.bool, device=where)
    scores, worst, plain = Scores(key**-0.5, None, None, None), 0.0, 0.0
    for mask, causal in ((None, False), (attention.hide(seen, dtype), False), (None, True)):
        exact = [each.float() for each in (query, keys, values)]
        low = mask if mask is None else attention.hide(seen, torch.float32)
        if causal:
            low = attention.hide(torch.ones_like(seen).tril(), torch.float32)
        truth, _ = attention._plain(*exact, scores, low, False)
        found, _ = attention.attend(query, keys, values, scores, mask, causal=causal)
        other, _ = attention._plain(query, keys, values, scores, low, False)
        worst = max(worst, float((found.float() - truth).abs().max()))
        plain = max(plain, float((other.float() - truth).abs().max()))
    path = kernels.on(torch.device(where), dtype, key, value)
    return {"path": str(path), "error": worst, "plain_error": plain}


def _writes(shape: Shape, slots: int = 256, bucket: int = 320) -> dict[str, Any]:
    """Milliseconds that one layer's write of a step takes, in three ways that give the same bits
    under deterministic algorithms."""
    heads = shape.config["num_key_value_heads"]
    size = shape.config["hidden_size"] // shape.config["num_attention_heads"]
    kinds: dict[str, Any] = {"device": shape.device, "dtype": DTYPES[shape.dtype]}
    slots = slots if shape.device != "cpu" else 4
    buffer, new = torch.zeros(slots, heads, bucket, size, **kinds), torch.ones(slots, heads, size)
    new = new.to(**kinds)
    at, rows = torch.arange(slots, device=shape.device) % bucket, torch.arange(slots)
    rows = rows.to(shape.device)
    index = at.view(-1, 1, 1, 1).expand(slots, heads, 1, size)

    def put() -> None:
        buffer[rows, :, at] = new

    ways: dict[str, Callable[[], Any]] = {
        "index_put": put,
        "scatter": lambda: buffer.scatter_(2, index, new.unsqueeze(2)),
        "one column": lambda: buffer[:, :, 7].copy_(new),
    }
    return {name: 1000 * _seconds(way, shape.device) for name, way in ways.items()}


def _seconds(work: Callable[[], Any], where: str, times: int = 20) -> float:
    work()
    rates.wait(where)
    started = time.perf_counter()
    for _ in range(times):
        work()
    rates.wait(where)
    return (time.perf_counter() - started) / times


def _step(session: "Session", slots: int) -> dict[str, Any]:
    """One decoding step of so many texts: a batch of `STEPS` + 1 new tokens less one of 1."""
    shape = session.scale.shape
    (leaf,) = (one for one in lengths.read() if one.name.endswith("word_sorting"))
    made = lengths.tokenised(
        [replace(leaf, documents=slots)], shape.config["vocab_size"], STEPS + 1
    )
    policy = Policy(max_slots=slots, max_cache=2**22, waves=1)
    (batch,) = store.make_batches(made, policy, level="tree")
    assert batch.settings is not None, "it generates"
    one = replace(batch, settings=replace(batch.settings, max_gen_toks=1))
    for each in (one, batch):  # the trunk is kept, kernels are loaded
        session.engine.execute(each)
    short, long = (_timed(session, each) for each in (one, batch))
    return {name: (long[name] - short[name]) / STEPS for name in long}


def _timed(session: "Session", batch: Any) -> dict[str, float]:
    where = session.scale.shape.device
    rates.wait(where)
    started = time.perf_counter()
    session.engine.execute(batch)
    rates.wait(where)
    wall = time.perf_counter() - started
    counted = _counted(lambda: session.engine.execute(batch), where)
    return {"seconds": wall, **counted}


def _counted(work: Callable[[], Any], where: str) -> dict[str, float]:
    """Seconds in which a GPU computes, kernels launched, and waits for it."""
    if where == "cpu":
        return {"gpu_seconds": 0.0, "launches": 0.0, "waits": 0.0}
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiler:
        work()
        rates.wait(where)
    events: Any = profiler.key_averages()
    return {
        "gpu_seconds": sum(event.self_device_time_total for event in events) * 1e-6,
        "launches": float(sum(e.count for e in events if e.key in LAUNCHES)),
        "waits": float(sum(e.count for e in events if e.key in WAITS)),
    }


def _pass(session: "Session", peak: float) -> dict[str, Any]:
    """One HellaSwag batch: the share of the peak, and of the time that the GPU is idle."""
    shape = session.scale.shape
    chosen = [leaf for leaf in lengths.read() if leaf.name == "hellaswag"]
    batch = session.batches(chosen, session.scale.documents)[0]
    session.engine.execute(batch)
    made: list[passes.Pass] = []
    with passes.watch(session.engine.model, made):
        taken = _timed(session, batch)
    flops = passes.flops(made, shape.config) / 2  # both times were watched
    idle = 1 - taken["gpu_seconds"] / taken["seconds"] if taken["gpu_seconds"] else 0.0
    return {"tokens": len(batch.rows) * batch.width, "seconds": taken["seconds"], "idle": idle,
            "share_of_peak": flops / taken["seconds"] / peak}  # fmt: skip


def _memory(where: str) -> dict[str, int]:
    if where == "cpu":
        return {"peak_bytes": 0, "reserved_bytes": 0}
    reserved = torch.cuda.max_memory_reserved()
    return {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": reserved}
