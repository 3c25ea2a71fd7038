"""`doctor`: what this host has and lacks for a run, a line each, and what to do about it.

Each check is a function from what `Host` found to one `Finding`; what is asked of the machine is in
`host`, so that a check is tested against machines that we don't have. It changes nothing, downloads
nothing, and shows no secret, only whether there is one.
"""

from pathlib import Path

from evalkit.host.doctor import cluster, gpu, machine, places
from evalkit.host.doctor.finding import Finding, Status
from evalkit.host.doctor.host import Host

__all__ = ["Finding", "Host", "Status", "examine"]


def examine(host: Host, out: Path, model: str | None = None) -> list[Finding]:
    """Every check, in the order in which a run would fail: 1 the GPUs and what is installed for
    them, 2 the model's size, 3 disks and caches, 4 runtimes, 5 the process's surroundings."""
    return [
        gpu.driver(host),
        gpu.installed(host),
        gpu.memory(host, model),
        machine.disk(host, out),
        machine.inodes(host, out),
        machine.cache(host),
        machine.token(host),
        *places.runtimes(host),
        cluster.namespaces(host),
        cluster.slurm(host),
        machine.environment(host),
        machine.clock(host, out),
        machine.limits(host),
        machine.shared_memory(host),
    ]
