"""What docker, podman and apptainer are told: the whole command line, word by word, and what of the
host a command line names. `EVALKIT_WRITE_GOLDEN=1` writes tests/golden/launch.txt again."""

import grp
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, call

from evalkit.base import canon, lease, private
from evalkit.base.errors import EvalkitError
from evalkit.base.machine import stamp
from evalkit.cli import hosting
from evalkit.host import inside
from evalkit.host.launch import runtimes, start
from evalkit.host.launch import work as works
from evalkit.host.launch.command import (
    OF_SIFS,
    PLACES,
    SCRATCH,
    Image,
    Runtime,
    Work,
    asserted,
    command_line,
)
from evalkit.inputs import hub
from evalkit.inputs.models.builtin import smollm2
from evalkit.run.preparing.prepare import Options

GOLDEN = Path(__file__).with_name("golden") / "launch.txt"
SHA = "sha256:" + "ab" * 32
DOCKER, PODMAN = Runtime("docker", "28.2.2"), Runtime("podman", "4.3.1", rootless=True)
APPTAINER = Runtime("apptainer", "1.4.5", rootless=True)
LOCAL = Image("evalkit:0.1.0", SHA, "config")
PUSHED = Image(f"registry.example/evalkit@{SHA}", SHA, "manifest")
SIF = Image("/sw/evalkit.sif", SHA, "sif")
STAGED = Work(
    arguments=("eval", "--model", "/models/llama", "--out", "results", "--offline"),
    folder="/home/jane/evalkit",
    scratch="/tmp/evalkit-scratch-1",
    user="1000:1000",
    hostname="node7",
    readable=("/home/jane/.cache/huggingface/hub", "/models/llama"),
    writable=("/home/jane/evalkit/results",),
    environment=(("CUDA_VISIBLE_DEVICES", "0,1"), ("HF_HUB_OFFLINE", "1")),
)
ONLINE = replace(
    STAGED,
    arguments=("eval", "--model", "meta-llama/Llama-3.1-8B"),
    readable=(),
    writable=("/home/jane/.cache/huggingface/hub", "/home/jane/evalkit/results"),
    environment=(("EVALKIT_SECRETS", f"{SCRATCH}/secrets.json"),),
    online=True,
    gpus=True,
    terminal=True,
)
ODD = replace(STAGED, readable=('/data/a, "b"',), arguments=("verify", "results/it's"))
ROOTLESS = replace(DOCKER, rootless=True)
ELSEWHERE = replace(STAGED, writable=("/scratch/jane/results",), name="evalkit-eval-llama-7")
CASES = {
    "docker, staged": (DOCKER, LOCAL, STAGED),
    "docker, online, on GPUs, at a terminal": (DOCKER, PUSHED, ONLINE),
    "docker without root's rights": (ROOTLESS, LOCAL, STAGED),
    "docker, odd names": (DOCKER, LOCAL, ODD),
    "podman, staged": (PODMAN, LOCAL, STAGED),
    "podman, online, on GPUs, at a terminal": (PODMAN, PUSHED, ONLINE),
    "podman as root": (replace(PODMAN, rootless=False), LOCAL, STAGED),
    "apptainer, staged": (APPTAINER, SIF, STAGED),
    "apptainer, online, on GPUs, at a terminal": (APPTAINER, SIF, ONLINE),
    "apptainer, odd names": (APPTAINER, SIF, ODD),
    "apptainer, nothing shown of the working folder": (APPTAINER, SIF, ELSEWHERE),
    "apptainer, no network namespaces": (replace(APPTAINER, isolates=False), SIF, STAGED),
    "singularity": (Runtime("singularity", "4.1.0", rootless=True), SIF, STAGED),
    "docker, named, for a group": (DOCKER, LOCAL, replace(ELSEWHERE, group="1234")),
    "podman, where SELinux labels files": (replace(PODMAN, labels=True), LOCAL, STAGED),
    "none": (None, None, STAGED),
}


def shown(words: list[str]) -> str:
    """A command line as a shell takes it, an option a line."""
    text = ""
    for word in map(shlex.quote, words):
        text += f" \\\n    {word}" if word.startswith("--") else f" {word}"
    return text.strip()


def golden() -> str:
    """All the cases as the golden file has them."""
    return "\n\n".join(f"# {name}\n{shown(command_line(*CASES[name]))}" for name in CASES) + "\n"


def test_the_command_lines_are_the_golden_ones() -> None:
    if os.environ.get("EVALKIT_WRITE_GOLDEN"):
        GOLDEN.write_text(golden())
    assert golden() == GOLDEN.read_text()


@pytest.mark.parametrize("name", [name for name in CASES if name != "none"])
def test_every_container_is_hardened(name: str) -> None:
    """What must never be lost in a change of the golden file."""
    runtime, image, work = CASES[name]
    assert runtime is not None and image is not None
    words = command_line(runtime, image, work)
    if runtime.name in OF_SIFS:
        assert {"--containall", "--cleanenv", "--no-home", "--no-privs"} <= set(words)
        assert ("--net" in words) == (runtime.isolates and not work.online)
    else:
        assert {"--read-only", "no-new-privileges"} <= set(words)
        assert words[words.index("--cap-drop") + 1] == "ALL"
        assert ("--network" in words) == (not work.online)
    assert not {"--privileged", "--ipc", "--pid", "host", "--fakeroot"} & set(words)
    mounts = [word for word in words if word.startswith("type=bind")]
    kept = [word for word in mounts if not word.endswith((",readonly", ",ro"))]
    assert len(kept) == 1 + len(work.writable)
    assert f"destination={SCRATCH}" in kept[0]
    assert words[-len(work.arguments) :] == list(work.arguments)


def test_what_is_asserted_of_an_image_is_what_the_record_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for runtime, image in ((DOCKER, LOCAL), (PODMAN, PUSHED), (APPTAINER, SIF)):
        monkeypatch.setenv(stamp.IMAGE, asserted(runtime, image))
        assert stamp.image() == {
            "digest": SHA,
            "of": image.of,
            "runtime": f"{runtime.name} {runtime.version}",
            "asserted_by": "launcher",
        }


@pytest.mark.parametrize("said", ["", SHA, f"sif {SHA}", f"sif {SHA[:-1]} apptainer 1.4", "x" * 99])
def test_anything_else_is_no_image(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stamp.IMAGE, said)
    assert "unknown" in stamp.image()


# What a command line names of the host


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a token and a model, which is the working folder too."""
    (tmp_path / "hf" / "hub").mkdir(parents=True)
    (tmp_path / "hf" / "token").write_text("hf_planted\n")
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HF_HOME", os.fspath(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def work(home: Path, *arguments: str) -> Work:
    """What a command line needs of this host."""
    return works.of(arguments, os.environ, home / "scratch")


def test_results_can_be_written_and_models_only_read(home: Path) -> None:
    found = work(home, "eval", "--model", "model", "--out=runs", "--offline")
    assert found.writable == (f"{home}/runs",)
    assert found.readable == (f"{home}/hf/hub", f"{home}/model")
    assert not found.online
    assert (home / "runs").is_dir()


def test_the_hubs_cache_can_be_written_to_for_a_download_only(home: Path) -> None:
    found = work(home, "eval", "--model", "org/name")
    assert found.online
    assert set(found.writable) == {f"{home}/hf/{n}" for n in ("hub", "datasets")} | {
        f"{home}/results"
    }


@pytest.mark.parametrize("variable", hub.OFFLINE)
def test_an_offline_host_stays_offline(
    home: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    assert not work(home, "eval", "--model", "org/name").online


def test_the_token_goes_with_downloads_and_never_on_a_command_line(home: Path) -> None:
    found = work(home, "eval", "--model", "org/name")
    assert start.found_secrets(os.environ)["HF_TOKEN"] == "hf_planted"
    assert "hf_planted" not in str(command_line(DOCKER, LOCAL, found))
    assert not any(home / "hf" == Path(path) for path in (*found.readable, *found.writable))


def test_smollm2_is_fetched_by_the_host_and_shown_to_the_image(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image has no pip and, offline, no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(home / "cache"))
    arguments = ("eval", "--model", smollm2.NAME, "--offline")
    with pytest.raises(EvalkitError, match="not in the cache"):
        work(home, *arguments)
    file = home / "cache" / "evalkit" / "smollm2" / smollm2.FILE
    file.parent.mkdir(parents=True)
    file.write_text("")
    found = work(home, *arguments)
    assert os.fspath(file) in found.readable
    monkeypatch.setenv(*next(each for each in found.environment if each[0] == smollm2.PLACE))
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    assert smollm2.file(offline=True) == file


COMMIT = "ab" * 20


def in_cache(cache: Path) -> Path:
    """A model in a Hub's cache; its snapshot."""
    repo = cache / "models--org--Llama-3.1"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "f00").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/f00")
    return snapshot


def opened_in_an_image(found: Work, path: str) -> bool:
    """Whether a file can be opened where only what is shown is there, each link followed by a
    step."""
    shown = [Path(each) for each in (*found.readable, *found.writable)]
    for _ in range(40):
        (inside,) = [each for each in shown if Path(path).is_relative_to(each)][:1] or [None]
        if inside is None:
            return False
        real = inside.resolve() / Path(path).relative_to(inside)
        if not real.is_symlink():
            return real.is_file()
        path = os.path.normpath(Path(path).parent / real.readlink())
    return False


@pytest.mark.parametrize("way", ["a snapshot", "a link to it", "a parent that is a link", "a chain",
                                 "a single file elsewhere"])  # fmt: skip
def test_all_that_a_models_links_lead_to_is_shown(way: str, home: Path) -> None:
    """The words of a launched command name the folder as it lies on the disk: a relative link leads
    nowhere from another place."""
    snapshot = in_cache(home / "deep" / "hub")
    given = snapshot
    if way == "a link to it":
        (home / "llama").symlink_to(snapshot)
        given = home / "llama"
    elif way == "a parent that is a link":
        (home / "cache").symlink_to("deep")
        given = home / "cache" / snapshot.relative_to(home / "deep")
    elif way == "a chain":
        (home / "one").symlink_to("two")
        (home / "two").symlink_to(snapshot)
        (home / "middle").mkdir()
        blob = snapshot.parent.parent / "blobs" / "f00"
        (home / "middle" / "f").symlink_to(blob.rename(home / "deep" / "moved"))
        blob.symlink_to(home / "middle" / "f")
        given = home / "one"
    elif way == "a single file elsewhere":
        (home / "far").mkdir()
        (home / "far" / "weights").write_text("{}")
        (home / "model" / "config.json").symlink_to(home / "far" / "weights")
        given = home / "model"
    found = work(home, "eval", "--model", os.fspath(given), "--offline")
    named = found.arguments[2]
    assert named == os.fspath(given.resolve())
    assert opened_in_an_image(found, f"{named}/config.json"), found.readable


def test_what_the_hubs_cache_has_elsewhere_is_shown(home: Path) -> None:
    snapshot = in_cache(home / "shared")
    repo = snapshot.parent.parent
    (home / "hf" / "hub" / repo.name).symlink_to(repo)
    found = work(home, "eval", "--model", "org/Llama-3.1", "--offline")
    inside = f"{home}/hf/hub/models--org--Llama-3.1/snapshots/{COMMIT}/config.json"
    assert opened_in_an_image(found, inside), found.readable


def test_a_snapshot_is_called_by_its_repo_and_not_by_forty_digits(home: Path) -> None:
    snapshot = in_cache(home / "hub")
    (home / "llama").symlink_to(snapshot)
    for given in (snapshot, home / "llama"):
        assert hub.snapshot(given) == ("org/Llama-3.1", COMMIT)
        assert Options(model=os.fspath(given)).published()["model"] == "org/Llama-3.1"
        (snapshot / "model.safetensors").touch()
    assert hub.snapshot(home) is None


def test_a_container_is_called_after_what_it_runs(home: Path) -> None:
    for model in ("org/Llama-3.1", os.fspath(in_cache(home / "hub"))):
        name = work(home, "eval", "--model", model, "--suite", "core", "--offline").name
        assert name == f"evalkit-eval-Llama-3.1-core-{os.getpid()}"


def test_a_stage_is_fetched_by_the_image_where_the_install_is_light(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The light install has nothing that loads datasets."""
    words = ("stage", "--model", "org/Llama-3.1", "--suite", "demo", "--to", "staged")
    found = work(home, *words)
    assert found.online and f"{home}/staged" in found.writable
    started: list[list[str]] = []
    place = runtimes.Place(DOCKER, LOCAL, "in an image")
    monkeypatch.setattr(hosting, "find_spec", lambda name: None)
    monkeypatch.setattr(runtimes, "choose", lambda: place)
    monkeypatch.setattr(start, "start", lambda at, words: started.append(words) or 75)
    ran = call(*words)
    assert (ran.code, ran.err) == (75, "evalkit: runs in an image\n")
    assert started == [list(words)]


def test_a_container_goes_on_under_its_launchers_name_and_not_as_process_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(lease.LAUNCHER, lease.launched())
    assert lease.this_process() == replace(lease.this_process(), pid=os.getpid())
    monkeypatch.setenv(lease.LAUNCHER, "4711:99:boot pid:[1]")
    owner = lease.this_process()
    assert (owner.pid, owner.started, owner.seen_from) == (4711, "99", "boot pid:[1]")
    assert owner.is_dead() is None


def test_a_folder_with_a_shipped_suites_name_is_not_taken_for_the_suite(home: Path) -> None:
    """A folder `demo` where it was started ended every launch of the suite."""
    (home / "demo").mkdir()
    found = work(home, "eval", "--model", "demo", "--suite", "demo", "--offline")
    assert f"{home}/demo" not in found.readable


def test_the_scratch_of_a_killed_launcher_is_removed_by_the_next_and_no_other(
    tmp_path: Path,
) -> None:
    """It stayed for ever, with the caches of what ran in it."""
    killed, working, young = (tmp_path / f"evalkit-scratch-{name}" for name in "abc")
    for folder in (killed, working, young):
        (folder / "torchinductor").mkdir(parents=True)
    for folder in (killed, working):
        os.utime(folder, (0, 0))
    (tmp_path / "evalkit-scratch-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    held = start.lock_scratch(working)
    start.remove_abandoned(tmp_path)
    assert not killed.exists()
    assert all(path.is_dir() for path in (working, young, tmp_path / "elsewhere"))
    os.close(held)


def test_what_a_killed_launcher_started_is_told_to_stop(tmp_path: Path) -> None:
    """A kill that can't be caught used to leave the container working."""
    mark = tmp_path / "stopped"
    inner = f"trap 'touch {mark}; exit' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    outer = f"from evalkit.host.launch import start; start.run_command(['bash', '-c', {inner!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], cwd=ROOT) as launcher:
        wait_for(tmp_path / "ready")
        launcher.kill()
    wait_for(mark)


def wait_for(path: Path) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def test_a_group_may_read_what_is_made_and_the_image_is_told_its_number(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(private.GROUP, "")
    group = grp.getgrgid(os.getgid()).gr_name
    umask = os.umask(0o077)
    try:
        words = ("--model", "model", "--group", group, "--out", "new", "--offline")
        found = work(home, "eval", *words)
        assert "--group" not in found.arguments and group not in found.arguments[3:]
        assert (private.GROUP, str(os.getgid())) in found.environment
        assert (home / "new").stat().st_mode & 0o7777 == 0o2750
        canon.write_atomic(home / "new" / "x", "x")
        assert (home / "new" / "x").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(umask)


def test_a_run_that_one_has_no_right_to_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root reads everything: what others see is stood in for; the image tests have a user."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "record.json").write_text("{}")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "record.json")
    call("verify", run).refused(3, "no right to read", f"{run}/record.json", "--group")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "/home/jane/results/x")

    monkeypatch.setattr(Path, "is_file", refuse)
    call("status", tmp_path).refused(3, "no right to read", "/home/jane/results/x", "pack")


def test_a_host_that_forbids_network_namespaces_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(*command: str) -> str:
        if "--net" in command:
            raise runtimes.Unusable("no namespaces")
        return ""

    monkeypatch.setattr(runtimes, "_ask", ask)
    assert runtimes.isolated(APPTAINER, SIF) == replace(APPTAINER, isolates=False)
    assert runtimes.isolated(DOCKER, LOCAL) is DOCKER


@pytest.mark.parametrize(("network", "kept"), [("none", True), ("open", True), ("x", False)])
def test_the_record_says_whether_the_container_had_a_network(
    network: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(stamp.IMAGE, asserted(APPTAINER, SIF))
    monkeypatch.setenv(stamp.NETWORK, network)
    assert (stamp.image().get("network") == network) is kept


def test_a_suites_lock_and_tasks_come_along_and_nothing_beside_them(home: Path) -> None:
    (home / "tasks").mkdir()
    (home / "mine.yaml").write_text("name: mine\ntasks: [demo_qa]\ninclude_path: tasks\n")
    (home / "mine.lock.yaml").write_text("")
    found = work(home, "eval", "--suite", "mine.yaml", "--model", "model", "--offline")
    named = {Path(path).name for path in found.readable}
    assert named == {"hub", "mine.lock.yaml", "mine.yaml", "model", "tasks"}


def test_the_lock_of_a_shipped_suite_is_this_checkouts(home: Path) -> None:
    """The image's own copy could not be written to."""
    found = work(home, "lock", "core", "--offline")
    shipped = Path(runtimes.__file__).resolve().parents[3] / "suites"
    assert found.arguments == ("lock", f"{shipped}/core.yaml", "--offline")
    assert found.writable == (f"{shipped}",)


def test_a_run_can_be_written_to_by_what_goes_on_with_it_only(home: Path) -> None:
    run, results = home / "results" / "demo" / "demo-1", f"{home}/results"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    assert work(home, "execute", os.fspath(run), "--offline").writable == (results,)
    judged = work(home, "verify", os.fspath(run))
    assert judged.writable == () and os.fspath(run) in judged.readable and not judged.online


@pytest.mark.parametrize("place", ["/", "/usr/lib", "/opt", "/var/cache/evalkit/results"])
def test_a_place_that_the_image_has_for_its_own_is_refused(place: str) -> None:
    with pytest.raises(EvalkitError, match="for its own"):
        works._check(Path(place))


def test_no_image_is_started_from_the_root_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(EvalkitError, match="from the folder /"):
        work(home, "eval", "--model", "demo", "--suite", "demo", "--out", f"{home}/results")


# Which place is taken


def stand_in(monkeypatch: pytest.MonkeyPatch, **said: str) -> None:
    """Runtimes that say no more than this: for each its image's commit, or why it does not work."""

    def runtime(name: str) -> Runtime:
        if "!" in said.get(name, "not installed!"):
            raise runtimes.Unusable(said.get(name, "not installed!"))
        return Runtime(name, "1.0")

    monkeypatch.setattr(runtimes, "runtime", runtime)
    monkeypatch.setattr(runtimes, "image", lambda name, _: (LOCAL, said[name]))
    monkeypatch.setattr(stamp, "code", lambda: {"commit": "c0ffee", "dirty": False})


def test_the_first_runtime_that_works_and_has_the_image_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, docker="no daemon!", podman="c0ffee", apptainer="c0ffee")
    place = runtimes.choose()
    assert place.runtime == Runtime("podman", "1.0")
    assert place.words == "in podman 1.0, evalkit:0.1.0 sha256:abababababab"


def test_where_none_works_it_is_the_host_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, docker="no daemon!", podman="no image!", apptainer="decaf")
    place = runtimes.choose()
    assert place.runtime is None
    assert "docker: no daemon!" in place.words
    assert "apptainer: evalkit:0.1.0 is of commit decaf, not of this checkout's" in place.words


def test_an_image_of_another_commit_is_taken_where_it_is_asked_for_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, docker="decaf")
    assert "not of this checkout's" in runtimes.choose("docker").words


def test_a_place_asked_for_that_can_not_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, docker="no daemon!")
    with pytest.raises(EvalkitError, match="docker: no daemon!") as error:
        runtimes.choose("docker")
    assert error.value.code == 3


def test_a_sif_is_for_apptainer_and_an_images_name_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, docker="c0ffee", podman="c0ffee", apptainer="c0ffee")
    assert runtimes.choose(reference="x.sif").runtime == Runtime("apptainer", "1.0")
    with pytest.raises(EvalkitError, match="it runs a SIF"):
        runtimes.choose("apptainer", "evalkit:1")


def test_an_unknown_place_is_refused_with_the_places() -> None:
    ran = call("launch", "--in", "dokcer", "status", "x")
    assert "docker" in ran.refused(2, "unknown place 'dokcer'")
    assert PLACES[-1] == "none"


@pytest.mark.parametrize("error", [OSError(107, "not connected"), ModuleNotFoundError(name="json")])
def test_an_image_that_goes_away_under_a_run_stops_it_and_is_no_bug(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rootless Apptainer's image is a process of its own, which a preemption may end first."""

    def fail() -> None:
        raise error

    monkeypatch.setenv(inside.PREFIX, str(tmp_path / "opt"))
    monkeypatch.setattr(inside, "enter", fail)
    call("status", tmp_path).refused(75, "its image went away")
