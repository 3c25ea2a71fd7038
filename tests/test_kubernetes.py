"""The Job for Kubernetes: by the API's own schema where that is at hand, and what it must say."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import support
from support import call

from evalkit.host.cluster import kubernetes
from evalkit.host.cluster.kubernetes import Pods

PODS = Pods("registry.example/evalkit@sha256:ab", "evals", "/work", "/work/staged/hf", 16, 8, 1)


def made() -> dict[str, Any]:
    """A Job for a run whose folder has a space in its name."""
    return kubernetes.manifest("/work/us er/demo.limit4-0123456789ab", PODS)


def test_the_job_fits_the_apis_schema() -> None:
    """kubernetes-validate brings the schemas; it is in no lock, since a page alone needs it."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate isn't here")
    for version in ("1.33", "1.37"):
        validate.validate(made(), version, strict=True)
    spoilt = made()
    spoilt["spec"]["completion"] = 3
    with pytest.raises(validate.ValidationError):
        validate.validate(spoilt, "1.37", strict=True)


def test_each_completion_is_a_shard_counted_from_one() -> None:
    job = made()
    assert job["metadata"]["name"] == "evalkit-demo-limit4-0123456789ab"
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 16)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    program = container["command"][2].replace("exec evalkit", "printf '<%s>'")
    ran = subprocess.run(
        ["sh", "-c", program, container["command"][3]],
        env={"JOB_COMPLETION_INDEX": "15"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "<execute></work/us er/demo.limit4-0123456789ab>" in ran.stdout
    assert ran.stdout.endswith("<--shard><16/16>")
    assert shlex.split(container["command"][2])[0] == "exec"


def test_a_pod_may_do_no_more_than_a_launched_container() -> None:
    pod = made()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    allowed = container["securityContext"]
    assert allowed["readOnlyRootFilesystem"] and not allowed["allowPrivilegeEscalation"]
    assert allowed["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["HF_HUB_OFFLINE"] == "1" and not any("TOKEN" in name for name in variables)
    assert pod["terminationGracePeriodSeconds"] > PODS.grace_s


def test_the_command_prints_a_job_of_a_planned_run_only(tmp_path: Path) -> None:
    words = ("--image", "x", "--claim", "c", "--mount", "/w", "--stage", "/w/s", "--shards", "2")
    ran = call("manifest", support.planned(tmp_path), *words).done()
    assert json.loads(ran.out)["spec"]["completions"] == 2
    call("manifest", tmp_path, *words).refused(3, "run.json")
