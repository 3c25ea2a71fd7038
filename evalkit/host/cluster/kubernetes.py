"""A planned run as a Kubernetes Job: its shards as the completions of an indexed Job. Text only.

Nothing here speaks to a cluster. The results and the stage lie on a volume that all pods see, at
the paths that they have where the run was planned, so that names mean the same. The pods may do no
more than the launcher's containers may; that they have no network is the cluster's matter.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from evalkit.host.launch.command import SCRATCH
from evalkit.inputs import hub

LATE_S = 30  # from the last batch's end to the pod's
USER = 10001  # the image's


@dataclass(frozen=True, slots=True)
class Pods:
    """How the pods are made. `image`: by its digest; `claim`: of the volume, seen at `mount`;
    `home`: the Hugging Face home on it; `gpus`: of each pod."""

    image: str
    claim: str
    mount: str
    home: str
    shards: int
    parallel: int
    gpus: int = 0
    grace_s: int = 120


def manifest(run: str, pods: Pods) -> dict[str, Any]:
    """The Job that answers a run's shards. `run`: its folder, as the pods see it."""
    name = "".join(c if c.isalnum() else "-" for c in PurePosixPath(run).name.lower()).strip("-")
    grace = pods.grace_s + LATE_S
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"evalkit-{name}"[:63].rstrip("-")},
        "spec": {
            "completionMode": "Indexed",
            "completions": pods.shards,
            "parallelism": pods.parallel,
            "backoffLimitPerIndex": 3,
            "maxFailedIndexes": pods.shards,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": grace,
                    "automountServiceAccountToken": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": USER,
                        "fsGroup": USER,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [_container(run, pods)],
                    "volumes": [
                        {"name": "work", "persistentVolumeClaim": {"claimName": pods.claim}},
                        {"name": "scratch", "emptyDir": {}},
                    ],
                },
            },
        },
    }


def _container(run: str, pods: Pods) -> dict[str, Any]:
    # completions count from 0, shards from 1
    shard = f"$((JOB_COMPLETION_INDEX + 1))/{pods.shards}"
    program = f'exec evalkit execute "$0" --offline --grace {pods.grace_s} --shard "{shard}"'
    variables = {
        "HF_HUB_CACHE": f"{pods.home}/hub",
        "HF_DATASETS_CACHE": f"{pods.home}/datasets",
        **hub.OFFLINE,
    }
    limits = {"nvidia.com/gpu": str(pods.gpus)} if pods.gpus else {}
    return {
        "name": "shard",
        "image": pods.image,
        "command": ["sh", "-c", program, run],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "resources": {"limits": limits} if limits else {},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "work", "mountPath": pods.mount},
            {"name": "scratch", "mountPath": SCRATCH},
        ],
    }
