"""`doctor`: what this host has and lacks for a run, a line for each check, and what to do about it.

Each check (`checks`) is a function of what `Host` answers, so that it is tested on machines that we
don't have; `host` asks the machine. The doctor changes nothing, downloads nothing, and shows no
secret, only whether there is one.
"""

from pathlib import Path

from evalkit.host.doctor import checks
from evalkit.host.doctor.checks import Finding
from evalkit.host.doctor.host import Host
from evalkit.record.reading.findings import Status

__all__ = ["Finding", "Host", "Status", "examine"]


def examine(host: Host, out: Path, model: str | None = None) -> list[Finding]:
    """Run every check, in the order in which a run would fail."""
    return [
        checks.driver(host),
        checks.installed(host),
        checks.memory(host, model),
        checks.disk(host, out),
        checks.inodes(host, out),
        checks.cache(host),
        checks.token(host),
        *checks.runtimes(host),
        checks.namespaces(host),
        checks.slurm(host),
        checks.environment(host),
        checks.clock(host, out),
        checks.limits(host),
        checks.shared_memory(host),
    ]
