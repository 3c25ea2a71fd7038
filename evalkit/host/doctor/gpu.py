"""GPUs: the driver against the locks' CUDA, what is installed, the memory against the model."""

from pathlib import Path

from evalkit.base.machine.gpus import pick_lock
from evalkit.host.doctor.finding import Finding, failed, passed, warned
from evalkit.host.doctor.host import Host
from evalkit.host.launch.work import caches

GB = 1e9
ROOM = 1.2  # weights, and a fifth more for activations and caches


def driver(host: Host) -> Finding:
    """Which lock this host's driver can run."""
    said = host.gpus()
    choice = pick_lock(said, host.machine)
    if choice.lock != "cpu":
        return passed("driver", f"{choice.why}: the lock to use is {choice.lock}")
    if said is None and (signs := host.gpu_signs()):
        return failed(
            "driver", f"there is no nvidia-smi, but {', '.join(signs)}: a run is refused here",
            "have the driver mended, start the image with --nv, or ask Slurm for a GPU; DEVICE=cpu"
            " computes on the CPU",
        )  # fmt: skip
    if said is None:
        return warned(
            "driver",
            "there is no nvidia-smi, so runs are on the CPU (GPUs are NVIDIA's only)",
            "LOCK=cpu; for an image or a set-up that others with GPUs will use, LOCK=cuda13 or"
            " cuda12",
        )
    return warned("driver", choice.why, "have the driver mended or renewed; until then LOCK=cpu")


def installed(host: Host) -> Finding:
    """Whether what is installed is for this host."""
    lock, fitting = host.lock(), pick_lock(host.gpus(), host.machine).lock
    if lock is None:
        return warned(
            "installed", "this evalkit was not installed by its set-up",
            "`make setup` installs exactly what is locked",
        )  # fmt: skip
    if lock == "base":
        return passed("installed", "base lock: it judges records and starts images")
    if lock == fitting:
        return passed("installed", f"{lock} lock")
    if host.gpus() is None:
        return warned(
            "installed", f"{lock} lock, and no GPU here: runs are on the CPU",
            "LOCK=cpu is smaller, and as good for that",
        )  # fmt: skip
    if lock == "cpu":
        return warned("installed", "cpu lock, on a host with a GPU", f"make setup LOCK={fitting}")
    return failed(
        "installed", f"{lock} lock, which this host can't run", f"make setup LOCK={fitting}"
    )


def memory(host: Host, model: str | None) -> Finding:
    """Whether the model fits into each GPU, or into memory where there is none."""
    each = host.gpu_memory()
    most, where = (min(each), "a GPU") if each else (host.memory(), "memory")
    have = f"{len(each)} GPUs, the smallest of {most / GB:.0f} GB" if each else (
        f"{most / GB:.0f} GB of memory, no GPU"
    )  # fmt: skip
    folder = _folder(host, model)
    needed = ROOM * host.weights(folder) if folder else 0
    if not needed:
        asked = f"; there are no weights of {model} here" if model else "; MODEL=... compares"
        return passed("memory", f"{have}{asked}")
    found = f"{have}; {model} needs about {needed / GB:.1f} GB"
    if needed <= most:
        return passed("memory", found)
    if each and needed <= sum(each):
        return warned("memory", found, "more than one GPU is needed: DEVICE=auto")
    return failed("memory", found, f"a host with more room in {where}, or a smaller model")


def _folder(host: Host, model: str | None) -> Path | None:
    """A model's files on this host: its folder, or its newest snapshot in the Hub's cache."""
    if model is None or Path(model).is_dir():
        return Path(model) if model else None
    kept = caches(host.environment)["HF_HUB_CACHE"] / f"models--{model.replace('/', '--')}"
    found = sorted(kept.glob("snapshots/*"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None
