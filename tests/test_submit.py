"""What is sent to Slurm: the scripts as text, and the arithmetic around them.

The cluster itself is in tests/cluster.
"""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import support
from support import call, spawn

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.host.cluster import script, site, submission, submit
from evalkit.host.cluster.script import Recipe
from evalkit.host.cluster.site import Site
from evalkit.host.cluster.submission import Member, Submission
from evalkit.host.launch.command import Image, Runtime
from evalkit.host.launch.runtimes import Place
from evalkit.plan import shards

GOLDEN = Path(__file__).parent / "golden"
OUT = Path("/shared/us er/results")
STAGE = Path("/shared/staged")
NATIVE = Recipe(
    submission=Submission(OUT / "submissions/core-0123", (Member(OUT / "m/core-1", None),), 6),
    name="evalkit-core",
    evalkit=("/home/user/evalkit/.venv/bin/evalkit",),
    environment={"HF_HOME": "/shared/staged/hf", "HF_HUB_OFFLINE": "1"},
    needed=(OUT, STAGE),
    site=Site(partition="gpu", gres="gpu:1", time="04:00:00"),
    stage=STAGE,
    suite=None,
    image=False,
    grace_s=120,
)
IMAGE = replace(
    NATIVE,
    submission=Submission(
        OUT / "submissions/mine-4567",
        (Member(OUT / "student/mine-1", "/shared/it's mine"), Member(OUT / "teacher/mine-2", None)),
        64,
    ),
    evalkit=submit._command(
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
    site=replace(NATIVE.site, account="project", modules=("apptainer/1.4",), scratch="/local"),
    suite="/shared/suites/mine.yaml",
    image=True,
    device="auto",
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
    named = text.split("for name in ")[1].split(";")[0].split()
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
    found = site.read(path).with_words({"partition": None, "time": "60"})
    assert found == Site(partition="gpu", cpus="8", modules=("apptainer",), time="60")
    assert found.sbatch() == ["--partition=gpu", "--time=60", "--cpus-per-task=8"]
    for text, word in (("partion = 1", "did you mean partition?"), ("cpus = []", "a text"),
                       ("binds = 'x'", "list of texts"), ("=", "no TOML")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(EvalkitError, match=word.replace("?", "[?]")):
            site.read(path)


def test_no_more_shards_than_pay_for_their_start() -> None:
    """Each of 4,096 equal batches takes 10 s, a start 60 s."""
    body = body_of([1000] * 4096)
    assert shards.default_count(body, 100.0) == 128  # 320 s of work each
    assert shards.default_count(body, 1.0) == 1024
    assert shards.default_count(body, 1e9) == 1


def test_a_batch_that_can_not_fit_is_refused_with_what_to_change(tmp_path: Path) -> None:
    run = support.planned(tmp_path)
    member, said = Member(run, None), []
    wanted = submit.Wanted(("demo",), "demo", tmp_path, tokens_per_second=10.0)
    longest = max(entry["cost"] for entry in canon.read_json(run / "plan.json")["batches"])
    with pytest.raises(EvalkitError, match="the longest batch takes") as refused:
        submit._check_fits(member, wanted, Site(), said.append)
    assert refused.value.fix == f"--grace {int(longest / 10 * 1.5) + 1}"
    wanted = replace(wanted, grace_s=1000)
    submit._check_fits(member, wanted, Site(), said.append)
    with pytest.raises(EvalkitError, match="has no room for the longest batch") as refused:
        submit._check_fits(member, wanted, Site(time="10"), said.append)
    assert refused.value.fix.startswith("--time 2")
    submit._check_fits(member, replace(wanted, tokens_per_second=None), Site(), said.append)
    assert "is not known yet" in said[0]


def test_what_is_answered_is_not_sent_again(tmp_path: Path) -> None:
    done, not_yet = support.executed(tmp_path / "a"), support.planned(tmp_path / "b")
    sent = Submission(tmp_path / "s", (Member(done, None), Member(not_yet, None)), 3)
    assert submission.missing(sent) == [3, 4, 5]
    sent.folder.mkdir()
    sent.write()
    sent.note("12", "13")
    assert submission.read(sent.folder) == replace(sent, jobs=(("12", "13"),))


def test_submitting_plans_and_shows_what_it_would_send(tmp_path: Path) -> None:
    """The process itself imports nothing heavy: a login node may have the light install only."""
    tell = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    options = (*support.DEMO, "--out", tmp_path, "--in", "none", "--shards", "3", "--dry-run")
    words = ("--partition", "gpu", "--max-running", "2")
    ran = spawn("submit", *options, *words, before=tell).done()
    assert not set(ran.err.splitlines()[-1].split()) & {"torch", "lm_eval", "transformers"}
    assert "sbatch --array=0-2%2 " in ran.err
    assert "#SBATCH --partition=gpu" in ran.out
    status = call("status", ran.folder).done()
    assert "0 of 8 batches" in status.out and "it has said nothing" in status.out
    (run,) = tmp_path.glob("demo/demo-*")
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
    assert submission.speeds(run) and submit._speed(run) is None
