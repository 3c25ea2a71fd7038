"""Environment variables that choose how kernels compute: none of them decides an answer.

torch, oneDNN, MKL, cuBLAS and cuDNN read them when they are first used, some in any pass. In an
image they are refused (`inside`); elsewhere they are cleared before torch is imported, which is
told and stands in the record. What only says how many threads there are, and where, stays: threads
within an operation are set by the run's numerics.
"""

import os
from collections.abc import Mapping, MutableMapping

# How the names of such variables begin.
KERNELS = (
    "ATEN_", "BLIS_", "CUBLAS", "CUDNN_", "DISABLE_ADDMM_CUDA_LT", "DNNL_", "KMP_", "MKL_", "NPY_",
    "NVIDIA_TF32", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_TUNABLEOP", "TORCHDYNAMO_",
    "TORCHINDUCTOR_", "TORCH_ALLOW_TF32", "TORCH_BLAS_", "TORCH_COMPILE_", "TORCH_CUBLAS",
    "TORCH_CUDNN", "TORCH_LINALG", "TRITON_", "USE_HUB_KERNELS",
)  # fmt: skip
# Of those, what says how many threads there are, where files lie and what is printed.
KEPT = ("NUM_THREADS", "THREAD_LIMIT", "PROC_BIND", "PLACES", "AFFINITY", "STACKSIZE", "BLOCKTIME",
        "WAIT_POLICY", "DISPLAY_ENV", "LIB_OK", "THREADING_LAYER", "FORCE_INTEL", "CACHE_DIR",
        "_HOME", "VERBOSE")  # fmt: skip
DETERMINISTIC = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
# Blocks of a GPU's memory that grow: buffers that do leave no gaps behind. No bit depends on it.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "expandable_segments:True")
SHOWN = 80  # characters of a value

_cleared: dict[str, str] = {}


def found(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables there that choose kernels, other than as evalkit sets them."""
    return {
        name: value[:SHOWN]
        for name, value in sorted(environment.items())
        if name.startswith(KERNELS) and not name.endswith(KEPT) and (name, value) != DETERMINISTIC
    }


def clear(environment: MutableMapping[str, str] = os.environ) -> None:
    """Take them out, and put in what evalkit sets. What was there is remembered (`told`)."""
    taken = found(environment)
    for name in taken:
        del environment[name]
    environment.update([DETERMINISTIC])
    if "PYTORCH_CUDA_ALLOC_CONF" not in environment:  # the same by its older name
        environment.setdefault(*ALLOCATOR)
    _cleared.update(taken)


def told() -> dict[str, str]:
    """What this process has cleared, by name."""
    return dict(sorted(_cleared.items()))


def lines() -> list[str]:
    """What to tell a person of it."""
    return [f"cleared {name}={value}: it chooses kernels" for name, value in told().items()]
