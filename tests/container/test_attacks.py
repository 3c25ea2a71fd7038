"""What a program inside the image can't do: each of these is tried from inside."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import BUILD, ROOT, TAG, USER, Place, found, run
from support import call

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]
PLACES = ("docker", "user", "apptainer", "podman")
ATTACKS = """
import ctypes, json, os, socket, sys
from pathlib import Path

home, model, results, port = os.environ["TZ"].split("|")  # what every place is handed

def tried(action):
    try:
        return repr(action())
    except Exception as error:
        return type(error).__name__

def written(path):
    Path(path, "planted").write_text("x")
    return "written"

def connected(host):
    with socket.create_connection((host, int(port)), timeout=3):
        return "connected"

status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
mount = lambda: ctypes.CDLL(None, use_errno=True).mount(b"none", results.encode(), b"tmpfs", 0, b"")
places = ["/", "/opt/evalkit", "/usr/lib", "/etc", "/home", "/var/tmp", "/root", model, home]
print(json.dumps({
    "writes": {place: tried(lambda: written(place)) for place in places},
    "results": tried(lambda: written(results)),
    "scratch": tried(lambda: written(os.environ["TMPDIR"])),
    "sockets": {host: tried(lambda: connected(host)) for host in ("127.0.0.1", "HOST")},
    "home": tried(lambda: Path(home, "secret").read_text()),
    "listing": tried(lambda: [name for name in os.listdir(home)]),
    "capabilities": [status[name].strip() for name in ("CapEff", "CapPrm", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "root": tried(lambda: os.chroot("/tmp")),
    "mount": tried(mount),
    "namespace": tried(lambda: ctypes.CDLL(None).unshare(0x10000000)),  # of users
    "planted": tried(lambda: __import__("planted")),
    "path": sys.path,
    "environment": sorted(os.environ),
}))
"""


@pytest.fixture(scope="session")
def listener() -> Iterator[int]:
    """A server on this host that takes whoever comes."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="session")
def home(room: Path) -> Path:
    """A user's home folder: a secret, and packages planted where Python looks."""
    folder = room / "home"
    for version in ("3.11", "3.12", "3.13"):
        site = folder / ".local" / "lib" / f"python{version}" / "site-packages"
        site.mkdir(parents=True)
        (site / "planted.py").write_text("stolen = True\n")
        (site / "usercustomize.py").write_text("import planted\n")
    (folder / "secret").write_text("sesame")
    run("chmod", "-R", "a+rwX", folder)
    return folder


@pytest.mark.parametrize("name", PLACES)
def test_nothing_of_the_host_can_be_reached_or_changed(
    name: str, room: Path, home: Path, tiny: Path, listener: int, request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(name)
    folder = room / f"attack-{name}"
    folder.mkdir()
    results = folder / "results"
    said = "|".join([str(home), str(tiny), str(results), str(listener)])
    site = home / ".local" / "lib" / "python3.11" / "site-packages"
    planted = {"HOME": str(home), "PYTHONPATH": str(site), "HF_TOKEN": "hf_planted", "TZ": said}
    planted |= {"HF_HOME": str(home), "APPTAINERENV_NOTHING": "x", "LD_LIBRARY_PATH": str(site)}
    program = ATTACKS.replace("HOST", socket.gethostbyname(socket.gethostname()))
    words = ("eval", "--model", str(tiny), "--out", "results", "--offline")
    got: dict[str, Any] = json.loads(place.python(folder, program, *words, **planted))
    assert "'written'" not in got["writes"].values(), got["writes"]
    assert got["results"] == got["scratch"] == "'written'"
    assert "'connected'" not in got["sockets"].values(), got["sockets"]
    assert got["home"] == got["listing"] == "FileNotFoundError"
    assert set(got["capabilities"]) == {"0" * 16}
    assert got["no_new_privileges"] == "1"
    assert got["root"] == "PermissionError" and got["mount"] == "-1"
    # As docs/containers.md says: Apptainer lets a program make one, in which it has capabilities.
    assert got["namespace"] == ("0" if name == "apptainer" else "-1")
    assert got["planted"] == "ModuleNotFoundError"
    assert all(entry.startswith(("/opt/evalkit", "/usr/lib/python")) for entry in got["path"])
    assert not {"HF_TOKEN", "PYTHONPATH", "SSH_AUTH_SOCK", "OLDPWD"} & set(got["environment"])


@pytest.mark.parametrize("variable", ["PYTHONPATH", "LD_PRELOAD", "OMP_NUM_THREADS", "PYTHONHOME"])
def test_a_start_with_something_of_the_hosts_is_refused(variable: str, image: str) -> None:
    value = {"PYTHONPATH": "/tmp", "LD_PRELOAD": "", "OMP_NUM_THREADS": "3", "PYTHONHOME": "/usr"}
    said = run("docker", "run", "--rm", "--env", f"{variable}={value[variable]}", image, "--help",
               code=3)  # fmt: skip
    assert f"something of the host leaked into the image: the variable {variable}" in said


def test_a_raw_apptainer_run_with_the_hosts_python_path_is_refused(sif: Path, home: Path) -> None:
    """Without --cleanenv the host's environment comes along."""
    command = ["runuser", "-u", USER, "--", "apptainer", "run", sif, "--help"]
    assert "leaked into the image" in run(*command, code=3, PYTHONPATH=str(home))


def test_a_token_is_in_nothing_that_can_be_inspected(
    image: str, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets to the program by a file that is gone once it was read."""
    from evalkit.host.launch import start
    from evalkit.host.launch.runtimes import Place as Where

    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("HF_HOME", str(room / "token-hf"))
    monkeypatch.chdir(room)
    seen: dict[str, str] = {}

    def attend(command: list[str]) -> int:
        (mount,) = [w for w in command if "destination=/var/cache/evalkit" in w]
        secrets = Path(mount.split("source=")[1].split(",")[0], "secrets.json")
        seen["command"], seen["file"] = " ".join(command), secrets.read_text()
        seen["mode"] = oct(secrets.stat().st_mode & 0o777)
        at = command.index(image)
        told = "import os; from evalkit.host import inside; inside.enter()"
        told += "; print(os.environ['HF_TOKEN'])"
        seen["inside"] = run(*command[:at], "--entrypoint", "python3", image, "-c", told)
        seen["left"] = str(secrets.exists())
        return 0

    monkeypatch.setattr(start, "run_command", attend)
    place = found("docker", image)
    start.start(Where(place.runtime, place.image, ""), ["eval", "--model", "org/name"])
    assert "hf_planted" in seen["file"] and seen["mode"] == "0o600"
    assert "hf_planted" not in seen["command"]
    assert seen["inside"].strip() == "hf_planted"
    assert seen["left"] == "False"


def test_a_changed_harness_is_told_by_the_record_and_by_verify(docker: Place, room: Path) -> None:
    """One line more in one installed file of lm-eval's."""
    changed = f"{TAG}-changed"
    recipe = room / "changed"
    recipe.mkdir()
    (recipe / "Dockerfile").write_text(
        f"FROM {TAG}\nUSER root\n"
        'RUN echo "# changed" >> "$(python3 -c "import lm_eval; print(lm_eval.__file__)")"\n'
        "USER 10001:10001\n"
    )
    run(BUILD["DOCKER"], "build", "--tag", changed, recipe, DOCKER_BUILDKIT="1")
    place = found("docker", changed)
    folder = room / "changed-run"
    folder.mkdir()
    words = ("eval", "--model", "demo", "--suite", "demo", "--limit", "1", "--offline")
    said = place.evalkit(folder, *words, code=1)
    assert "BROKEN" in said
    (run_folder,) = (folder / "results" / "demo").glob("demo*")
    record = json.loads((run_folder / "record.json").read_text())
    assert record["environment"]["harness_intact"] is False
    verdict = call("verify", run_folder)
    assert verdict.code == 1
    assert "lm-eval's installed files were not the released ones" in verdict.out
    failed = run("docker", "run", "--rm", "--entrypoint", "python3", changed,
                 "/opt/evalkit/image/selftest.py", code=1)  # fmt: skip
    assert "lm_eval/__init__.py is not what lm_eval's RECORD says" in failed
    run("docker", "rmi", changed)


def test_a_wrong_hash_in_the_lock_fails_the_build(image: str, room: Path) -> None:
    context = room / "wrong"
    context.mkdir()
    run("bash", "-c", f"git -C {ROOT} archive HEAD | tar -x -C {context}")
    lock = context / "requirements" / "cpu.lock"
    lines = lock.read_text().splitlines()
    (at, *_) = [n for n, line in enumerate(lines) if line.startswith("absl-py==")]
    for n in range(at + 1, at + 3):
        lines[n] = lines[n].replace(lines[n].split(":")[1][:8], "00000000")
    lock.write_text("\n".join(lines) + "\n")
    options = ["--network", "host", "--build-arg", f"BASE_IMAGE={BUILD['BASE_IMAGE']}"]
    options += ["--build-arg", "SNAPSHOT=", "--build-arg", "LOCK=cpu", "--target", "build"]
    said = run(BUILD["DOCKER"], "build", *options, context, code=1, DOCKER_BUILDKIT="1")
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in said
    assert "absl-py" in said
