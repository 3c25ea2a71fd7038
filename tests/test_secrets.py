"""Nothing of the user's host or secrets is in what a run leaves, and nobody else may read it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from support import call

from evalkit.base.errors import EvalkitError
from evalkit.base.machine import stamp
from evalkit.inputs import engine_name
from evalkit.run.preparing.prepare import Options

TOKEN = "hf_plantedABCDEFGHIJKLMNOPQRSTUVWXYZ"
USER = "janedoeplanted"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a telling name, and secrets in the environment."""
    folder = tmp_path / USER
    folder.mkdir()
    monkeypatch.setenv("HOME", os.fspath(folder))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, TOKEN)
    return folder


def leaks(folder: Path, tmp_path: Path) -> list[str]:
    """Where a planted word or a path of this host stands in a folder's files or their names."""
    planted = [TOKEN, USER, os.fspath(tmp_path), tmp_path.name, os.environ["XDG_CACHE_HOME"]]
    found = []
    for name, data in support.contents(folder).items():
        for word in planted:
            at = data.find(word.encode())
            if at >= 0:
                found.append(f"{name}: ...{data[max(0, at - 60) : at + 60]!r}...")
            if word in name:
                found.append(name)
    return found


def own_suite(folder: Path) -> Path:
    """A suite with a task folder of its own, whose YAML calls a Python function there."""
    from evalkit.inputs.models.builtin.demo.model import TASKS

    suite = support.suite(folder, "mine", ["demo_qa"])
    tasks = shutil.copytree(TASKS, folder / "tasks")
    (tasks / "utils.py").write_text("def question(doc):\n    return doc['question'] + ' Answer:'\n")
    yaml = tasks / "demo_qa.yaml"
    text = yaml.read_text()
    lines = [
        "doc_to_text: !function utils.question" if line.startswith("doc_to_text") else line
        for line in text.splitlines()
    ]
    yaml.write_text("\n".join(lines) + "\n")
    suite.write_text(suite.read_text().replace("package:demo/tasks", "tasks"))
    call("lock", suite, "--offline").done()
    return suite


def test_a_run_tells_nothing_of_its_host(
    home: Path, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    """Model, suite and results given by absolute paths, as words of their own."""
    model = shutil.copytree(tiny_model(), home / "models" / "mymodel")
    out = home / "results"
    ran = call("eval", "--model", model, "--suite", own_suite(home), "--out", out).done()
    record = support.read(ran.folder)
    assert record["model"]["reference"] == "mymodel"
    expected = ["--model", "mymodel", "--suite", "mine.yaml", "--out", "results"]
    assert record["command"]["argv"] == ["evalkit", "eval", "--workers", "0", *expected]
    assert leaks(out, tmp_path) == []


def test_the_form_with_an_equals_sign_tells_nothing_either(home: Path, tmp_path: Path) -> None:
    """`--out=/home/me/results` was kept whole: only words that begin with a path were cut."""
    out = home / "results"
    ran = call("eval", "--model=demo", "--suite=demo", f"--out={out}").done()
    assert support.read(ran.folder)["command"]["argv"][-1] == "--out=results"
    assert leaks(out, tmp_path) == []


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/home/me/models/x", "x"),
        ("/home/me/models/x/", "x"),
        ("--model=/home/me/models/x", "--model=x"),
        ("~/models/x", "x"),
        ("--model=~/models/x", "--model=x"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("results/demo", "results/demo"),
        ("--limit", "--limit"),
        ("0.5", "0.5"),
    ],
)
def test_a_word_of_the_command_line_is_cut_to_what_may_be_said(
    word: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a checkout may have results/demo
    assert stamp.command(["/usr/bin/evalkit", word])[1].rstrip("/") == shown


@pytest.mark.parametrize(
    "path",
    [
        "/home/jane doe/models/x",
        "--out=/home/jane doe/results",
        "/data/user=jane/x",
        "/home/jane:1/x",
        "/home/jane,doe/x",
        "//jane/x",
    ],
)
def test_a_path_with_odd_letters_is_cut_too(path: str) -> None:
    assert "jane" not in " ".join(stamp.command(["evalkit", path]))


def test_a_failure_tells_nothing_of_its_host(
    home: Path, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    """transformers' own message, with the model's path in it, went into the audit log."""
    model = shutil.copytree(tiny_model(), home / "models" / "mymodel")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = {"lm_head.weight": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    out = home / "results"
    ran = call("eval", "--model", model, "--suite", "demo", "--out", out)
    assert ran.code in (2, 3) and len(ran.errors) == 1
    assert leaks(out, tmp_path) == []


def test_what_a_run_leaves_is_the_users_alone_whatever_the_shell_says(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        run = call("plan", *support.DEMO, "--out", tmp_path / "a" / "results").done().folder
        call("execute", run).done()
    finally:
        os.umask(mask)
    made = [tmp_path / "a", *(tmp_path / "a").rglob("*")]
    modes = {os.fspath(path): path.stat().st_mode & 0o777 for path in made}
    assert len(modes) > 8
    assert {m for path, m in modes.items() if Path(path).is_dir()} == {0o700}, modes
    assert {m for path, m in modes.items() if Path(path).is_file()} == {0o600}, modes


def test_a_finished_run_is_the_users_alone(tmp_path: Path) -> None:
    support.finished(tmp_path)
    for path in (tmp_path / "results").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_no_variable_of_the_environment_is_in_a_record_but_those_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_ACCOUNT", TOKEN)
    hardware = {"gpu": [], "cuda": None, "device": "cpu"}
    text = json.dumps([stamp.segment_start(hardware), stamp.environment(hardware)])
    assert "4711" in text and TOKEN not in text


# credentials by what they look like

PLANTED = "Sesam0effneDich"
KINDS = [
    f"https://host.example/v1?access_token={PLANTED}",
    f"https://host.example/v1?password={PLANTED}",
    f"https://host.example/v1?X-Amz-Signature={PLANTED}",
    f"https://host.example/v1?sv=2024&sig={PLANTED}",
    f"https://host.example/v1?id={PLANTED}",
    f"https://host.example/v1#{PLANTED}",
    f"https://{PLANTED}@host.example/v1",
    f"https://me:{PLANTED}@host.example/v1",
    f"https://me%3A{PLANTED}%40host.example/v1",
    f"https%3A%2F%2Fme%3A{PLANTED}%40host.example",
    f"me:{PLANTED}@host.example:8000",
    f"nvapi-{PLANTED}{PLANTED}",
    f"hf_{PLANTED}{PLANTED}",
    f"sk-proj-{PLANTED}",
    f"ghp_{PLANTED}abcdef",
    f"github_pat_{PLANTED}{PLANTED}",
    f"gsk_{PLANTED}{PLANTED}",
    f"xoxb-{PLANTED}{PLANTED}",
    f"AKIA{PLANTED}",
    f"eyJ{PLANTED}.{PLANTED}.{PLANTED}",
    f"Basic {PLANTED}",
    f"Bearer {PLANTED}",
    f"session={PLANTED}; path=/",
    f"Cookie: a={PLANTED}",
    f"X-Api-Key: {PLANTED}",
    f'{{"Authorization": "{PLANTED}"}}',
    f"SharedAccessSignature={PLANTED}",
    f"password={PLANTED}",
    f"AccountName=me;AccountKey={PLANTED}==",
    f"{PLANTED}{PLANTED}",
    f"{PLANTED}+{PLANTED}/abc=",
    f"-----BEGIN PRIVATE KEY-----{PLANTED}",
    f"https://host.example/v1;jsessionid={PLANTED}",
    f"PGPASSWORD={PLANTED}",
    f"MY_APIKEY={PLANTED}",
    f"xapp-1-{PLANTED}-abc",
    f"phc_{PLANTED}abcdef",
    f"EAAC{PLANTED}",
]
RANDOM = [
    "0123456789abcdef0123456789abcdef",
    "123e4567-e89b-42d3-a456-426614174000",
    "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
]
ORDINARY = [
    *("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct-GPTQ-Int4", "bfloat16"),
    *("nvidia/Llama-3_3-Nemotron-Super-49B-v1_5", "gpt-4o-mini-2024-07-18", "0.9", "4096"),
    *("http://127.0.0.1:8000/v1/chat/completions", "</think>", '{"temperature": 0}', "False"),
    *("unsloth/DeepSeek-R1-Distill-Llama-8B-unsloth-bnb-4bit", "demo-0123456789ab"),
]


@pytest.mark.parametrize("value", KINDS + RANDOM)
def test_a_credential_is_refused_as_an_argument_and_cut_from_all_that_is_told(value: str) -> None:
    with pytest.raises(EvalkitError, match=r"looks like a secret|is an address with") as refused:
        engine_name.parse("lm-eval:local-completions", [f"thing={value}"])
    told = [
        str(refused.value),
        *stamp.command(["evalkit", value, f"--model={value}", "--engine-arg", f"thing={value}"]),
        stamp.without_paths(f"the server at {value} does not answer"),
        Options(model=value, suite=value, out=Path(value)).published()["model"],
    ]
    assert [each for each in told if PLANTED in each or value in each] == []


@pytest.mark.parametrize("value", ORDINARY)
def test_what_is_no_credential_is_left_as_it_is(value: str) -> None:
    assert engine_name.parse("lm-eval:vllm", [f"thing={value}"]).args == {"thing": value}
    assert stamp.command(["evalkit", value]) == ["evalkit", value]


def test_a_commit_is_no_credential_where_it_is_one() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert engine_name.parse("lm-eval:vllm", [f"revision={commit}"]).args == {"revision": commit}
    with pytest.raises(EvalkitError, match="looks like a secret"):
        engine_name.parse("lm-eval:vllm", [f"thing={commit}"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("../../jane/x", "x"),
        ("./jane/x", "x"),
        ("jane/deep/x", "x"),
        ("~/jane/x", "x"),
        ("org/model", "org/model"),
        ("model", "model"),
    ],
)
def test_a_relative_path_is_told_by_its_last_part(given: str, told: str) -> None:
    assert Options(model=given).published()["model"] == told
    words = stamp.command(["evalkit", "--model", given, f"--suite={given}"])
    assert words[2:] == [told, f"--suite={told}"]


def test_relative_paths_of_a_run_are_in_nothing_that_it_leaves(
    home: Path, tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--model ../../x/y` stood in the record, run.json, the results, events and the audit log."""
    shutil.copytree(tiny_model(), home / "secretplace" / "mymodel")
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    own_suite(home)
    monkeypatch.chdir(here)
    place = f"../../{USER}"
    ran = call("eval", "--model", f"{place}/secretplace/mymodel", "--suite", f"{place}/mine.yaml",
               "--out", "../out").done()  # fmt: skip
    assert support.read(ran.folder)["model"]["reference"] == "mymodel"
    for name, data in support.contents(tmp_path / "a" / "out").items():
        for word in ("secretplace", USER, "../"):
            assert word.encode() not in data, f"{word} in {name}"
    call("pack", ran.folder).done()
