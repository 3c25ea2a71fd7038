"""Container runtimes: which can run the image, and why another can't."""

import evalkit
from evalkit.host.doctor.finding import Finding, passed, warned
from evalkit.host.doctor.host import Host
from evalkit.host.launch.command import OF_SIFS, PLACES
from evalkit.host.launch.runtimes import Unusable

FIXES = {
    "not installed": "nothing, where another runtime works",
    "no image": "make image, or make image-load FILE=",
    "there is no": "make sif, or make image-load FILE=",
}


def runtimes(host: Host) -> list[Finding]:
    """A line for each runtime that evalkit can use."""
    return [_runtime(host, name) for name in PLACES if name != "none"]


def _runtime(host: Host, name: str) -> Finding:
    default = "evalkit.sif" if name in OF_SIFS else f"evalkit:{evalkit.__version__}"
    try:
        return passed(name, host.runtime(name, default))
    except Unusable as reason:
        fixes = [fix for words, fix in FIXES.items() if words in str(reason)]
        return warned(name, str(reason), fixes[0] if fixes else "mend that, or use another")
