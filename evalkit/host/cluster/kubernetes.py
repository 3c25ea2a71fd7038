"""Makes a Kubernetes Job of a planned run: its shards are the completions of an indexed Job.

A pure function: nothing here calls a cluster. Results and stage are on a volume that all pods
mount at the paths that they have where the run was planned. The pods have no more rights than the
launcher's containers; the cluster has to deny them a network.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

from evalkit.host.launch.command import SCRATCH
from evalkit.inputs import hub

LATE_S = 30  # from the end of the last batch to the end of the pod
USER = 10001  # of the image


@dataclass(frozen=True, slots=True)
class Pods:
    """The settings of the pods. `image`: by its digest; `claim`: of the volume, mounted at `mount`;
    `home`: the Hugging Face home on it; `gpus`: of each pod."""

    image: str
    claim: str
    mount: str
    home: str
    shards: int
    parallel: int
    gpus: int = 0
    grace_s: int = 120


def manifest(run: str, pods: Pods) -> dict[str, object]:
    """Return the Job that answers a run's shards. `run`: its folder, as the pods see it."""
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


def _container(run: str, pods: Pods) -> dict[str, object]:
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
