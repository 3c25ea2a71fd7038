"""Slurm and namespaces: what a cluster has for shards, and whether images can start here."""

from evalkit.base.errors import EvalkitError
from evalkit.host.doctor.finding import Finding, passed, warned
from evalkit.host.doctor.host import Host


def slurm(host: Host) -> Finding:
    """The cluster that this machine sends jobs to."""
    try:
        found = host.slurm()
    except EvalkitError as error:
        return warned("slurm", str(error), "ask the cluster's people, or try again later")
    if found is None:
        return passed("slurm", "not here")
    shown = [f"{name} ({', '.join(told)})" for name, told in found.partitions.items()]
    limit = f"; {found.limit}" if found.limit else ""
    return passed("slurm", f"{found.version}: partitions {', '.join(shown)}{limit}")


def namespaces(host: Host) -> Finding:
    """Whether an ordinary user may make namespaces, which rootless images need."""
    user, network = host.namespaces()
    if not user:
        return warned(
            "namespaces", "this user may make none",
            "rootless images can't start: user.max_user_namespaces, AppArmor's"
            " unprivileged_userns, or an Apptainer installed with setuid",
        )  # fmt: skip
    if not network:
        return warned(
            "namespaces", "no network namespaces",
            "nothing: a SIF runs with this host's network then, which its record says",
        )  # fmt: skip
    return passed("namespaces", "of users and networks")
