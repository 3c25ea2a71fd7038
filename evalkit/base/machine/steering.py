"""Environment variables that choose how kernels compute: none of them decides an answer.

torch, oneDNN, MKL, cuBLAS and cuDNN read them at their first use, some in every pass. In an image
they are refused (`inside`). Elsewhere they are cleared before torch is imported; the user is told,
and the record lists them. Variables on the number and place of threads stay: the run's numerics set
the threads of an operation.
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
# Of those, the variables on the number of threads, on places of files and on what is printed.
KEPT = ("NUM_THREADS", "THREAD_LIMIT", "PROC_BIND", "PLACES", "AFFINITY", "STACKSIZE", "BLOCKTIME",
        "WAIT_POLICY", "DISPLAY_ENV", "LIB_OK", "THREADING_LAYER", "FORCE_INTEL", "CACHE_DIR",
        "_HOME", "VERBOSE")  # fmt: skip
DETERMINISTIC = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
# Blocks of GPU memory can grow, so growing buffers leave no gaps. No bit depends on it.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "expandable_segments:True")
SHOWN = 80  # characters of a value

_cleared: dict[str, str] = {}


def found(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that choose kernels and differ from what evalkit sets."""
    return {
        name: value[:SHOWN]
        for name, value in sorted(environment.items())
        if name.startswith(KERNELS) and not name.endswith(KEPT) and (name, value) != DETERMINISTIC
    }


def clear(environment: MutableMapping[str, str] = os.environ) -> None:
    """Remove such variables and set evalkit's own. `told` returns what was removed."""
    taken = found(environment)
    for name in taken:
        del environment[name]
    environment.update([DETERMINISTIC])
    if "PYTORCH_CUDA_ALLOC_CONF" not in environment:  # the same by its older name
        environment.setdefault(*ALLOCATOR)
    _cleared.update(taken)


def told() -> dict[str, str]:
    """Return the variables that this process has cleared, by name."""
    return dict(sorted(_cleared.items()))


def lines() -> list[str]:
    """Return a line for the user on each cleared variable."""
    return [f"cleared {name}={value}: it chooses kernels" for name, value in told().items()]
