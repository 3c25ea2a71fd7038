"""What is sent to Slurm: the scripts as text, and the arithmetic around them.

The cluster itself is in tests/cluster.
"""

import json
import os
import re
import shutil
import subprocess
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import support
from support import call, spawn

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.cli import submitting
from evalkit.host import stage_manifest
from evalkit.host.cluster import checks, script, site, slurm, submission, submit
from evalkit.host.cluster.checks import Wanted
from evalkit.host.cluster.script import Recipe
from evalkit.host.cluster.site import Site
from evalkit.host.cluster.submission import Member, Submission
from evalkit.host.launch import start as starting
from evalkit.host.launch.command import Image, Runtime
from evalkit.host.launch.runtimes import Place
from evalkit.inputs import hub
from evalkit.plan import shards
from evalkit.run import pace

GOLDEN = Path(__file__).parent / "golden"
OUT = Path("/shared/us er/results")
STAGE = Path("/shared/staged")
NATIVE = Recipe(
    submission=Submission(OUT / "submissions/core-0123", (Member(OUT / "m/core-1", None),), 6),
    name="llama.core",
    evalkit=("/home/user/evalkit/.venv/bin/evalkit",),
    environment={"HF_HOME": "/shared/staged/hf", "HF_HUB_OFFLINE": "1"},
    needed=(OUT, STAGE),
    site=Site(partition="gpu", gres="gpu:1", time="04:00:00"),
    stage=STAGE,
    suite=None,
    image="",
    grace_s=120,
)
IMAGE = replace(
    NATIVE,
    submission=Submission(
        OUT / "submissions/mine-4567",
        (Member(OUT / "student/mine-1", "/shared/it's mine"), Member(OUT / "teacher/mine-2", None)),
        64,
    ),
    evalkit=submit.command_on_node(
        Place(
            Runtime("apptainer", "1.4.5", True),
            Image("/images/evalkit.sif", "sha256:ab", "sif"),
            "",
        ),
        OUT,
        [Path("/shared/it's mine")],
        {"HF_HUB_OFFLINE": "1"},
        Path("/shared/staged.sqsh"),
        gpus=True,
    ),
    environment={},
    site=replace(
        NATIVE.site,
        account="project",
        modules=("apptainer/1.4",),
        scratch="/local/$USER_SCRATCH",
        sbatch="--reservation=x --comment='of mine'",
        max_walltime="2-00:00:00",
        finish_partition="cpu",
        finish_time="30",
    ),
    suite="/shared/suites/mine.yaml",
    image="/images/evalkit.sif",
    words=("--device", "auto"),
)


def body_of(costs: list[int]) -> dict[str, Any]:
    """plan.json's content, as far as it says who works on what: batches without a trunk."""
    batches = [{"kind": "loglikelihood", "cost": cost, "trunk": None} for cost in costs]
    return {"batches": batches, "trunks": []}


@pytest.mark.parametrize("name", ["native", "image"])
@pytest.mark.parametrize("kind", ["array", "finish"])
def test_a_script_is_this_text(name: str, kind: str) -> None:
    """To change it on purpose: delete the file in tests/golden, run this, and read the new one."""
    made = getattr(script, kind)({"native": NATIVE, "image": IMAGE}[name])
    path = GOLDEN / f"{name}.{kind}.sbatch"
    if not path.exists():
        path.write_text(made)
        pytest.fail(f"{path.name} was written: read it")
    assert made == path.read_text()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.sbatch")), ids=lambda path: path.name)
def test_a_script_is_one_that_bash_and_shellcheck_like(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_token_and_other_variables_are_not_passed_on() -> None:
    text = script.array(IMAGE)
    assert "--export=NONE" in text and "--cleanenv" in text
    named = text.split("for name in ")[3].split(";")[0].split()
    assert set(named) == {*script.TOLD}
    assert "TOKEN" not in text


def test_arrays_are_written_and_read_as_slurm_does() -> None:
    assert submission.ranges([7, 0, 1, 2, 3]) == "0-3,7"
    assert submission.from_ranges("0-3,7%2") == {0, 1, 2, 3, 7}
    assert submission.from_ranges("N/A") == set()
    sent = Submission(Path(), (Member(Path("a"), None), Member(Path("b"), None)), 3)
    assert list(sent.tasks(sent.members[1])) == [3, 4, 5]
    assert sent.shard(4) == (sent.members[1], shards.Shard(2, 3))


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("10", 600), ("10:30", 630), ("1:02:03", 3723), ("2-1", 176400), ("1-0:30", 88200),
     ("1-0:0:5", 86405), ("", None), ("UNLIMITED", None), ("-5", None)],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_does(time: str, seconds: int | None) -> None:
    assert site.seconds(time) == seconds


def test_a_site_file_says_what_the_cluster_wants(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('partition = "gpu"\ncpus = 8\nmodules = ["apptainer"]\n')
    found = site.read(str(path)).with_words({"partition": None, "time": "60"})
    assert found == Site(partition="gpu", cpus="8", modules=("apptainer",), time="60")
    assert found.options() == ["--partition=gpu", "--time=60", "--cpus-per-task=8"]
    for text, word in (("partion = 1", "did you mean partition"), ("cpus = []", "a text"),
                       ("binds = 'x'", "list of texts"), ("=", "no TOML")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(EvalkitError, match=word.replace("?", "[?]")):
            site.read(str(path))


def test_no_more_shards_than_pay_for_their_start() -> None:
    """Each of 4,096 equal batches takes 10 s, a start 60 s."""
    body = body_of([1000] * 4096)
    assert shards.default_count(body, 100.0) == 128  # 320 s of work each
    assert shards.default_count(body, 1.0) == 1024
    assert shards.default_count(body, 1e9) == 1


def test_a_batch_that_can_not_fit_is_refused_with_what_to_change() -> None:
    said: list[str] = []
    wanted = Wanted(("demo",), "demo", Path("results"))
    with pytest.raises(EvalkitError, match="the longest batch takes 200 s") as refused:
        checks.fits(2000, 10.0, wanted, Site(), said.append)
    assert refused.value.fix == "--grace 301"
    wanted = replace(wanted, grace_s=1000)
    checks.fits(2000, 10.0, wanted, Site(), said.append)
    with pytest.raises(EvalkitError, match="has no room for the longest batch") as refused:
        checks.fits(2000, 10.0, wanted, Site(time="10"), said.append)
    assert refused.value.fix.startswith("--time 2")
    assert not said
    checks.fits(2000, None, wanted, Site(), said.append)
    assert "is not known yet" in said[0]


def test_what_is_answered_is_not_sent_again(tmp_path: Path) -> None:
    done, not_yet = support.executed(tmp_path / "a"), support.planned(tmp_path / "b")
    sent = Submission(tmp_path / "s", (Member(done, None), Member(not_yet, None)), 3)
    assert submission.missing(sent) == [3, 4, 5]
    sent.folder.mkdir()
    sent.write()
    sent.note("12", "13")
    assert submission.read(sent.folder) == replace(sent, jobs=(("12", "13"),))


def test_the_status_of_all_submissions_is_not_stopped_by_what_else_lies_there(
    tmp_path: Path,
) -> None:
    """`evalkit status results/submissions/*` names the jobs' cache as well."""
    run, sent = support.planned(tmp_path / "a"), tmp_path / "submissions"
    for name in ("one", "two", "cache"):
        (sent / name).mkdir(parents=True)
    for name in ("one", "two"):
        Submission(sent / name, (Member(run, None),), 2).write()
    folders = sorted(sent.glob("*"))
    told = call("status", *folders).done().out
    assert told.count("demo on demo: unfinished: 0% of the work") == 2
    assert f"{sent / 'cache'}\nthere is no run here" in told
    assert len(json.loads(call("status", *folders, "--json").done().out)["folders"]) == 2
    call("status", folders[0], tmp_path / "none").refused(3, "there is no run here")
    call("status", *folders, "--watch").refused(2, "--watch is for one")


# What another process planned is planned already: its child has no more to import.
PLANNED = """
import subprocess
run, done = subprocess.run, subprocess.CompletedProcess([], 0, {told!r})
subprocess.run = lambda words, **more: done if "plan" in words else run(words, **more)
"""


@pytest.mark.parametrize("in_a_child", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_submitting_plans_and_shows_what_it_would_send(
    in_a_child: bool, tmp_path: Path, tiny_model: Any
) -> None:
    """The process itself imports nothing heavy: a login node may have the light install only. A
    model in a file is sent by its path. The child that plans takes six seconds to import torch and
    lm-eval, so by default the run is planned here; tests/cluster has that child in every run."""
    model = gguf_files.write(tiny_model(), tmp_path / "tiny.gguf", "Q4_0")
    tell = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    options = ("--out", tmp_path, "--in", "none", "--shards", "3", "--dry-run")
    words = ("--mem", "1G", "--max-running", "2")
    asked = ("--model", model, "--suite", "demo", *options)
    if not in_a_child:
        tell += PLANNED.format(told=call("plan", *asked[:6]).done().out)
    # Where Slurm's programs are, they may have no controller to ask.
    ran = spawn("submit", *asked, *words, before=tell, env={"PATH": "/nowhere"}).done()
    assert not set(ran.err.splitlines()[-1].split()) & {"torch", "lm_eval", "transformers"}
    assert "sbatch --array=0-2%2 " in ran.err
    assert "#SBATCH --job-name=tiny.gguf.demo" in ran.out and str(model) in ran.out
    status = call("status", ran.folder).done()
    assert "0 of 9 batches" in status.out and "it has said nothing" in status.out
    (run,) = tmp_path.glob("tiny/demo-*")
    assert "3/3" in call("status", run).done().out


def test_what_submit_is_not_told_is_one_line(tmp_path: Path) -> None:
    call("submit", "--in", "none").refused(2, "no model given")
    call("submit", "--model", "demo").refused(2, "--sif IMAGE, or --in none")
    options = ("--model", "demo", "--in", "none", "--site", tmp_path / "none.toml")
    call("submit", *options).refused(3, "can't read the site file")


def test_a_stretch_that_mostly_started_up_tells_no_speed(tmp_path: Path) -> None:
    """A node that died after its first batch made the longest look ten times as long, and what was
    missing was refused."""
    run = support.finished(tmp_path)
    assert pace.speeds(run) and submit.measured_speed(run) is None


# What a site wants


def test_there_is_one_list_of_settings(tmp_path: Path) -> None:
    """The site file's keys, submit's options, make's variables and the page's table."""
    names = {field.name for field in fields(Site)}
    assert names == site.SETTINGS.keys()
    options = {param.name for param in submitting.submit_command.params}
    assert names <= options
    listed = re.search(r"^SLURM = ((?:.*\\\n)*.*)", (support.ROOT / "Makefile").read_text(), re.M)
    assert listed
    made = {word.replace("-", "_") for word in listed[1].replace("\\", "").split()}
    assert names - made == {"scratch"}
    assert made - names <= options | {"in", "grace"}
    page = (support.ROOT / "docs" / "cluster.md").read_text()
    assert all(f"`{name}`" in page for name in names)


def test_make_submit_hands_every_variable_on(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make")
    told = ["MODEL=a b", "SBATCH=--reservation=x --exclude=n1", "GRES=gpu:1", "MAX_WALLTIME=2-0",
            "GPUS_PER_NODE=a100:1", "MEM=1G", "CPUS=4", "ACCOUNT=p", "QOS=q", "FRESH=1", "IN=none",
            "ADAPTER=lora", "LEVEL=none", "ENGINE=lm-eval:hf", "FINISH_PARTITION=cpu"]  # fmt: skip
    ran = subprocess.run(
        [make, "-s", "-o", "setup", "submit", *told, "EVALKIT=printf '<%s>'"],
        cwd=support.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for words in ("<--model><a b>", "<--sbatch><--reservation=x --exclude=n1>", "<--gres><gpu:1>",
                  "<--max-walltime><2-0>", "<--gpus-per-node><a100:1>", "<--fresh>", "<--qos><q>",
                  "<--adapter><lora>", "<--engine><lm-eval:hf>",
                  "<--finish-partition><cpu>"):  # fmt: skip
        assert words in ran.stdout


def test_one_of_several_sites_is_chosen_by_this_hosts_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = site.default_path()
    path.parent.mkdir()
    path.write_text(
        'time = "60"\n[alps]\nhosts = ["alps-ln*", "*.alps.example"]\npartition = "normal"\n'
        '[lumi]\npartition = "standard-g"\ntime = "120"\n'
    )
    assert site.read(host="alps-ln2.cluster") == Site(partition="normal", time="60")
    assert site.read(host="x.alps.example").partition == "normal"
    assert site.read("lumi", host="x.alps.example") == Site(partition="standard-g", time="120")
    with pytest.raises(EvalkitError, match="none of the sites alps, lumi is for this host") as no:
        site.read(host="laptop")
    assert "--site NAME" in no.value.fix
    with pytest.raises(EvalkitError, match=r"no site 'alp'.*did you mean alps"):
        site.read("alp")


def test_the_finishing_job_has_options_of_its_own_and_no_gpu() -> None:
    shards = Site(
        partition="gpu", account="p", qos="night", constraint="a100", gres="gpu:a100:1", time="60",
        mem="64G", sbatch="--reservation=x",
    )  # fmt: skip
    assert shards.finishing() == [
        "--partition=gpu", "--account=p", "--qos=night", "--time=60", "--mem=64G",
    ]  # fmt: skip
    own = replace(shards, finish_partition="cpu", finish_time="10", finish_mem="4G",
                  finish_constraint="icelake", finish_sbatch="--nice=1")  # fmt: skip
    assert own.finishing() == [
        "--partition=cpu", "--account=p", "--constraint=icelake", "--time=10", "--mem=4G",
        "--nice=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, "gpu:4"), ({"gres": "gpu:1"}, "gpu:4"), ({"gres": "gpu:a100:1"}, "gpu:a100:4"),
     ({"gres": "nvme:1,gpu:h100"}, "nvme:1,gpu:h100:4"), ({"gres": "none"}, "gpu:4")],
)  # fmt: skip
def test_gpus_a_shard_keep_the_type_that_was_asked_for(before: dict[str, str], after: str) -> None:
    assert Site(**before).with_gpus(4).gres == after  # type: ignore[arg-type]


def test_a_typed_number_of_gpus_a_node_keeps_its_type() -> None:
    assert Site(gpus_per_node="a100:1").with_gpus(4).options() == ["--gpus-per-node=a100:4"]


@pytest.mark.parametrize("words", ["--array=1", "-a 1", "--export=ALL", "--output=x", "'"])
def test_an_option_that_the_scripts_need_can_not_be_passed_through(words: str) -> None:
    with pytest.raises(EvalkitError, match=r"sbatch (can't say|is no list)"):
        Site(sbatch=words).options()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A cluster that answers this, by the program asked."""
    said = {
        "sinfo": "cpu*|up|1-00:00:00|(null)|9\n"
        "gpu|up|4:00:00|gpu:a100:4(S:0-1)|2\n"
        "old|down|1:00|(null)|1\n",
        "scontrol": "MaxArraySize            = 1001\n",
        "sacctmgr": "\n",
        "squeue": "",
        "sbatch": "",
    }  # fmt: skip
    monkeypatch.setattr(slurm, "ask", lambda command: said[command[0]])
    monkeypatch.setattr(slurm, "is_here", lambda: True)
    return said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"partition": "gpu"}, "partition gpu has GPUs .gpu:a100:4. and none is asked for"),
        ({"partition": "gup"}, "there is no partition 'gup'.*did you mean gpu"),
        ({"partition": "old"}, "partition old is down"),
        ({"partition": "gpu", "gres": "gpu:1", "time": "5:00:00"}, "ends jobs after 4:00:00"),
        ({"finish_partition": "none"}, "there is no partition 'none'"),
        ({"time": "3"}, "leaves no time to work.*--time 14 or more"),
        ({"time": "soon"}, "'soon' is no time"),
        ({"binds": ("/not/there",)}, "/not/there is to be bound and is not here"),
    ],
)
def test_what_can_not_work_is_refused_before_it_is_planned(
    given: dict[str, Any], words: str, asked: dict[str, str]
) -> None:
    with pytest.raises(EvalkitError) as refused:
        checks.before(Wanted(("demo",), "demo", Path("results")), Site(**given), print)
    assert re.search(words, str(refused.value)), str(refused.value)


@pytest.mark.parametrize(
    "given",
    [{}, {"partition": "gpu", "gres": "gpu:1"}, {"partition": "gpu", "gpus_per_node": "a100:1"},
     {"partition": "gpu", "gres": "none"}, {"partition": "gpu", "sbatch": "--gpus=1"}],
)  # fmt: skip
def test_what_works_is_let_through(given: dict[str, str], asked: dict[str, str]) -> None:
    site_ = Site(**given)  # type: ignore[arg-type]
    checks.before(Wanted(("demo",), "demo", Path("results")), site_, pytest.fail)


def test_no_more_tasks_than_the_cluster_takes(asked: dict[str, str]) -> None:
    said: list[str] = []
    assert checks.allowed_shards(64, 2, False, Site(), said.append) == 64 and not said
    assert checks.allowed_shards(1024, 2, False, Site(), said.append) == 500
    assert said == ["500 shards a run, not 1024: an array may have 1,000 tasks here (MaxArraySize)"]
    with pytest.raises(EvalkitError, match="2,048 tasks, and an array may have") as refused:
        checks.allowed_shards(1024, 2, True, Site(), said.append)
    assert refused.value.fix == "--shards 500"
    asked["sacctmgr"], asked["squeue"] = "100\n", "a\nb\n"
    assert checks.allowed_shards(64, 2, False, Site(), said.append) == 48
    assert "you may have 100 jobs in the queue (MaxSubmitJobs), of which 2 are there" in said[-1]


def test_the_queue_shows_model_and_suite() -> None:
    wanted = Wanted(("org/Llama 3", "x"), "suites/mine.yaml", Path("results"))
    assert wanted.array_name == "Llama_3+1.mine"


def test_a_shard_that_gets_nowhere_stops_before_its_weights_are_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = support.planned(tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    events = run / "events"
    events.mkdir()
    (mine, _) = shards.deal(canon.read_json(run / "plan.json"), 2)
    note = {"event": "shard", "shard": "1/2", "left": len(mine), "job": "5"}
    for number, job in enumerate(("5", "4", "5")):
        path = events / f"20260101T0{number}0000Z-n1-1-aa.jsonl"
        path.write_text(canon.dumps(note | {"job": job}) + "\n")
        began = datetime(2026, 1, 1, number, tzinfo=UTC).timestamp()
        os.utime(path, (began + 170, began + 170))
    words = ("execute", run, "--shard", "1/2", "--offline")
    said = call(*words).refused(1, "shard 1/2 was started 2 times, for 170 s and 170 s")
    assert "answered no batch: its longest is of" in said and "--time" in said
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "6")
    call(*words).done()


def test_what_the_stage_lacks_is_fetched_where_there_is_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the image where there is one, which has what fetches datasets; not on an offline host."""
    started: list[tuple[str, ...]] = []

    def start(_: Place, words: list[str]) -> int:
        started.append(tuple(words))
        return 0

    monkeypatch.setattr(starting, "start", start)
    for name in hub.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    wanted = Wanted(("org/name", "demo"), "demo", tmp_path, stage=tmp_path / "staged",
                    plan=("--limit", "3", "--revision", "v1"))  # fmt: skip
    assert checks.lacks(wanted)
    place = Place(Runtime("apptainer", "1.4"), Image("x.sif", "sha256:ab", "sif"), "")
    submit.fetch_stage(wanted, place, print)
    (words,) = started
    assert words[:3] == ("stage", "--to", str(tmp_path / "staged"))
    assert words[-2:] == ("--revision", "v1") and words.count("--model") == 2
    (tmp_path / "staged").mkdir()
    manifest = {"schema": stage_manifest.SCHEMA, "created": "2026-01-01T00:00:00.000Z",
                "evalkit": "0.2.0", "suites": {"demo": {"datasets": {}}}, "models": {},
                "files": {}}  # fmt: skip
    (tmp_path / "staged" / stage_manifest.NAME).write_text(canon.dumps(manifest))
    assert checks.lacks(wanted) and not checks.lacks(replace(wanted, models=("demo",)))
    assert not checks.lacks(replace(wanted, stage=tmp_path / "x.sqsh"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EvalkitError, match="told to stay offline"):
        submit.fetch_stage(wanted, place, print)
