"""Generation on a GPU, rehearsed without one: fake CUDA tensors, which know shapes and devices but
hold no numbers, go through trunks, prefills, slots and steps of every architecture of level tree.

What a step may cost is held here: no write by index (which sorts, where algorithms are
deterministic), no copy between host and device but one, so many kernels a layer. Whatever runs on
fake tensors, and can be traced whole, has no number that decides what is done next.
"""

import ctypes
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import ARCHITECTURES

torch = pytest.importorskip("torch")
pytest.importorskip("evalkit.engine")

from torch._subclasses.fake_tensor import (  # noqa: E402
    DataDependentOutputException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from evalkit.engine.answers import generate  # noqa: E402
from evalkit.engine.core import Engine  # noqa: E402
from evalkit.engine.probe import narrow, trials  # noqa: E402
from evalkit.engine.text import decoding  # noqa: E402
from evalkit.engine.tree import attention, tail  # noqa: E402
from evalkit.plan.batch import Policy  # noqa: E402
from evalkit.plan.requests.request import Settings  # noqa: E402

SOURCE = Path(__file__).with_name("guard.cpp")
LEVEL_A = [name for name, wanted in ARCHITECTURES.items() if wanted.level == "tree"]
FEW = {"llama", "deepseek-v3"}  # the others are oracle's
ASKS = {"llama-dynamic"}  # for the largest position, in every forward pass
STEPS, NUM_SLOTS = 3, 12
KERNELS = 52  # a layer and step of a llama's in bfloat16 whose texts stand on one trunk
# Operations that launch nothing: another look at the same memory, or memory without content.
VIEWS = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "device", "empty",
    "empty_like", "is_same_size", "numel", "size", "stride", "_assert_tensor_metadata",
    "empty_strided", "expand", "lift_fresh", "new_empty", "permute", "reshape", "select", "slice",
    "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> torch.device:
    """A fake GPU."""
    from torch.utils import cpp_extension

    if torch.version.cuda is not None:
        pytest.skip("this torch has a guard of its own, which asks for a driver")
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("there is no g++ to compile the guard with")
    library = tmp_path_factory.mktemp("guard") / "guard.so"
    include = [f"-I{path}" for path in cpp_extension.include_paths()]
    where = Path(torch.__file__).parent / "lib"
    command = [compiler, "-shared", "-fPIC", "-std=c++20", "-O0", str(SOURCE), "-o", str(library)]
    made = subprocess.run([*command, *include, f"-L{where}", "-lc10"], capture_output=True)
    if made.returncode:
        pytest.skip(f"the guard can't be compiled: {made.stderr.decode()[-300:]}")
    ctypes.CDLL(str(library))
    return torch.device("cuda:0")


class Watched(TorchDispatchMode):
    """Sees each operation: `kernels` counts those that launch something, `moved` lists those that
    have to do with more than one device, `asked` those that bring a number to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.moved: list[str] = []
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [one for one in _leaves([args, kwargs, made]) if isinstance(one, torch.Tensor)]
        if len({one.device.type for one in tensors if one.dim() or name == "_to_copy"}) > 1:
            self.moved.append(name)
        if name in ("_local_scalar_dense", "nonzero", "item"):
            self.asked.append(name)
        if name not in VIEWS:
            self.kernels[name] += 1
        return made


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


@contextmanager
def fake(name: str, device: torch.device, **changed: Any) -> Iterator[Any]:
    """An engine with a fake model of that architecture in bfloat16, in the mode that knows fake
    tensors."""
    import transformers

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for module in (torch.nn.Linear, torch.nn.Embedding):
            patch.setattr(module, "reset_parameters", lambda _: None)
        patch.setattr(transformers.PreTrainedModel, "init_weights", lambda _: None)
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        special = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
        wanted = special | ARCHITECTURES[name].to_config(512) | changed
        config = transformers.AutoConfig.for_model(ARCHITECTURES[name].type, **wanted)
        causal: Any = transformers.AutoModelForCausalLM
        with FakeTensorMode(allow_non_fake_inputs=True):
            with torch.device(device):
                model = causal.from_config(config, dtype=torch.bfloat16).eval()
            attention.switch(model, attention.NAME)
            engine: Any = Engine.__new__(Engine)
            engine.model, engine.device, engine.level, engine.kept = model, device, "tree", None
            engine.generation, engine.eos_ids, engine.tokenizer = None, frozenset(), None
            engine.tail = tail.find(model)
            yield engine


def batches(several: bool) -> list[Any]:
    """A generating batch on nested trunks; or besides, one on no trunk, with a prompt that comes to
    the end of a block."""
    material = trials.Material(np.arange(20, 500, dtype=np.uint32))
    policy, settings = Policy(max_slots=NUM_SLOTS), Settings((), STEPS + 1)
    made = [trials.writing("tree", *given, policy, settings) for given in material.uneven]
    return made if several else made[:1]


def rehearse(engine: Any, several: bool = True) -> list[Watched]:
    """Generate, and what each step was seen to do. Texts go on with token 5."""
    seen: list[Watched] = []
    copies = Counter[int]()
    step = generate.Pool.step

    def watched(pool: Any) -> bool:
        with Watched() as mode:
            seen.append(mode)
            return step(pool)

    def to_host(table: Any) -> list[list[float]]:
        copies[len(seen)] += 1
        return [[5.0, 1.0, 0.0, -1.0] for _ in table]

    first, *rest = batches(several)
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate.Pool, "step", watched)
        patch.setattr(decoding, "to_host", to_host)
        patch.setattr(decoding, "answer", lambda engine, text: text)
        generate.together(
            engine, first, lambda held: rest.pop() if rest else None,
            lambda batch, texts: found.update({batch.id: texts}),
        )  # fmt: skip
    assert all(len(text.tokens) == STEPS + 1 for texts in found.values() for text in texts.values())
    assert len(found) == 1 + several and len(seen) == STEPS + 1, "the last one sees that it is over"
    assert all(copies[number] == 1 for number in range(1, STEPS + 1)), "one copy to the host a step"
    return seen[:STEPS]


@pytest.mark.parametrize(
    "name",
    [name if name in FEW else pytest.param(name, marks=pytest.mark.oracle) for name in LEVEL_A],
)
def test_every_architecture_decodes_on_a_gpu(name: str, gpu: torch.device) -> None:
    if name in ASKS:
        with pytest.raises(DataDependentOutputException), fake(name, gpu) as engine:
            rehearse(engine)
        return
    with fake(name, gpu) as engine:
        first, *others = rehearse(engine)
        own = narrow.has_experts(engine.model.config)  # transformers sorts tokens by their experts
        for step in (first, *others):
            assert own or not [n for n in step.kernels if "index_put" in n or "sort" in n]
            assert not step.asked
        assert not any(step.moved for step in others), "texts neither came nor went"


def test_a_layer_of_a_step_has_few_kernels(gpu: torch.device) -> None:
    """Each is launched by the host, which takes longer than the GPU does for most of them."""
    found = []
    for layers in (1, 2):
        with fake("llama", gpu, num_hidden_layers=layers) as engine:
            found.append(rehearse(engine, several=False)[-1].kernels)
    more = {name: found[1][name] - found[0][name] for name in found[1]}
    assert sum(more.values()) <= KERNELS, more


def test_a_step_is_traced_whole(gpu: torch.device) -> None:
    """What can be traced can be captured: nothing in it is decided by a number on the device."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with fake("llama", gpu) as engine, pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "to_host", lambda table: [[5.0, 1.0, 0.0, -1.0] for _ in table])
        pool = generate.Pool(engine, batches(False)[0])
        pool.fill(lambda held: None)
        assert pool.step() and pool.tokens is not None
        traced = make_fx(lambda tokens: pool.forward(tokens))(pool.tokens)
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    assert any("efficient_attention" in name for name in called)
    assert not [name for name in called if "_local_scalar" in name or name.startswith("aten.item")]
