"""Nothing that a record names is run, opened or sent to, whatever it names and whoever reads it.

The traps: a suite whose tasks run code when they are loaded, a model's and an adapter's folder, and
an address that notes who asks and with which key. They are planted, one at a time and all at once,
wherever a record, a run.json or a submission names something.
"""

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import locked
import pytest
import support
from forgeries import identified
from runs import Run
from support import call

import evalkit
from evalkit.base import canon

pytestmark = pytest.mark.usefixtures("in_this_process")

Value = dict[str, Any]


@dataclass
class Traps:
    """What is planted, and what fell into it."""

    folder: Path
    port: int
    asked: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    watching: bool = False

    @property
    def suite(self) -> str:
        return str(self.folder / "evil.yaml")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/completions"

    @property
    def sprung(self) -> list[str]:
        """Everything that was run, opened or asked."""
        ran = [str(path) for path in self.folder.glob("ran-*")]
        return ran + self.asked + self.opened


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traps]:
    """The traps, armed; what is opened in their folder is noted while they are watched."""
    folder = tmp_path_factory.mktemp("traps")

    class Noting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(f"{self.path} {self.headers.get('Authorization')}")
            self.send_response(404)
            self.end_headers()

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Noting)
    found = Traps(folder, server.server_port)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "evil.py").write_text(
        f"open({str(folder / 'ran-code')!r}, 'w').close()\ndef docs(dataset): return dataset\n"
    )
    (folder / "tasks" / "tiny.yaml").write_text(
        "task: arc_challenge\ndataset_path: json\nprocess_docs: !function evil.docs\n"
    )
    text = "name: tiny\ntasks: [arc_challenge]\ninclude_path: tasks\n"
    for name in ("evil.yaml", "tiny.yaml"):
        (folder / name).write_text(text)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if found.watching and event == "open" and str(folder) in str(arguments[0]):
            found.opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()


Plant = Callable[[Run, Traps], None]


def _model(run: Run, traps: Traps) -> None:
    run.record["model"]["reference"] = str(traps.folder / "model")
    run.results["config"]["model_args"] = f"pretrained={traps.folder / 'model'}"


def _suite(run: Run, traps: Traps) -> None:
    run.record["command"]["config"] |= {"suite": traps.suite, "include_path": str(traps.folder)}


def _suite_name(run: Run, traps: Traps) -> None:
    """The suite's name can't be a path; what it is said to be made of can."""
    run.suite["task_files"] = {str(traps.folder / "tasks" / "evil.py"): "0" * 64}
    run.record["suite"]["task_files"] = run.suite["task_files"]


def _adapter(run: Run, traps: Traps) -> None:
    files = {"adapter_config.json": {"size": 1, "sha256": "0" * 64}}
    run.record["model"]["adapter"] = {"reference": str(traps.folder / "model"), "files": files}
    run.record["command"]["config"]["adapter"] = str(traps.folder / "model")


def _engine(run: Run, traps: Traps) -> None:
    args = {"base_url": traps.address, "tokenizer": str(traps.folder / "model")}
    run.plan["level"] = "none"
    run.record["engine"] |= {
        "name": "lm-eval:local-completions", "level": "none", "args": args, "bit_repeatable": False,
        "versions": {"lm_eval": "0.4.13"},
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in args.items()]
    run.record["command"]["config"] |= {"engine": "lm-eval:local-completions", "engine_args": words}


def _configs(run: Run, traps: Traps) -> None:
    """lm-eval's configs, in a suite of the author's own."""
    for config in run.configs.values():
        config["dataset_kwargs"] = {"data_files": {"test": f"{traps.address}/x.jsonl"}}
        config["metadata"] |= {"config_source": str(traps.folder / "tasks" / "tiny.yaml")}
        config["dataset_path"] = str(traps.folder)
        config["include"] = str(traps.folder / "tasks" / "tiny.yaml")
        config["process_docs"] = "!function evil.docs"
    run.lock["tasks"] = {
        leaf: task | locked.scoring(run, leaf) for leaf, task in run.lock["tasks"].items()
    }


def _datasets(run: Run, traps: Traps) -> None:
    old = "SaylorTwift/bbh"
    new = str(traps.folder / "tasks")
    for found in (run.lock["datasets"], run.suite["datasets"]):
        found[new] = found.pop(old)
    for leaf, task in run.lock["tasks"].items():
        if task["dataset"] == old:
            task["dataset"] = run.record["tasks"][leaf]["dataset"]["repo"] = new


def _words(run: Run, traps: Traps) -> None:
    """Wherever a record holds words."""
    record = run.record
    record["command"]["argv"] = ["evalkit", "eval", "--suite", traps.suite, traps.address]
    record["environment"] |= {"lock": traps.suite, "os": traps.address, "cpu": traps.suite}
    for segment in record["segments"]:
        segment["hardware"] = traps.address
    for task in record["tasks"].values():
        task["dataset"]["licence"] = traps.address
    for dataset in run.lock["datasets"].values():
        dataset["licence"] = traps.address
    event = {"event": "environment", "path": traps.suite, "url": traps.address}
    run.extra["events/a.jsonl"] = json.dumps(event).encode() + b"\n"


PLANTS: dict[str, Plant] = {
    "model": _model, "suite": _suite, "task files": _suite_name, "adapter": _adapter,
    "engine": _engine, "configs": _configs, "datasets": _datasets, "words": _words,
}  # fmt: skip


def planted(names: list[str], traps: Traps, to: Path) -> Path:
    """A run that is consistent in itself and names the traps."""
    run = Run(leave_out=("mmlu_anatomy",))
    for name in names:
        PLANTS[name](run, traps)
    return identified(run).write(to)


def commands(run: Path, out: Path) -> Iterator[list[Any]]:
    """Every command that reads a record, and what a reader would type."""
    yield from (["verify", run, "--deep", "--offline"], ["audit", run])
    yield from (["reproduce", run, "--plan", "--out", out], ["reproduce", run, "--out", out])
    yield ["reproduce", run, "--out", out, "--sample", "1"]
    yield from (["compare", run, run], ["report", run, "--out", out / "report.html"])
    yield from (["export", run, "--to", kind] for kind in ("csv", "lm-eval", "markdown"))
    yield from (["status", run], ["validate", run], ["pack", run], ["finish", run])


ALONE = [pytest.param([name], marks=pytest.mark.trust) for name in PLANTS]


@pytest.mark.parametrize("names", [["engine"], list(PLANTS), *ALONE], ids=", ".join)
def test_nothing_that_a_record_names_is_run_opened_or_sent_to(
    names: list[str], traps: Traps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the-readers-own")
    monkeypatch.chdir(tmp_path)
    run = planted(names, traps, tmp_path / "results" / "made-up" / "tiny-0123456789ab")
    (tmp_path / "out").mkdir()
    traps.watching = True
    try:
        assert call("verify", run).code == 0, call("verify", run).out
        for words in commands(run, tmp_path / "out"):
            ran = call(*words)
            assert "Traceback" not in ran.err and ran.code != 70, (words, ran.err, ran.traceback)
        evalkit.load(run).scores()
    finally:
        traps.watching = False
    assert traps.sprung == []


def test_reproduce_and_audit_say_what_is_asked_for_and_what_to_type(
    traps: Traps, tmp_path: Path
) -> None:
    run = planted(["model", "suite", "adapter", "engine"], traps, tmp_path / "run")
    told = call("reproduce", run, "--out", tmp_path / "out").refused(
        3, "only you may name what is opened", f"its model '{traps.folder}/model'",
        "its suite 'tiny'", f"base_url={traps.address}"[:40],
    )  # fmt: skip
    assert "give --model --suite FILE --adapter --engine NAME --engine-arg KEY=VALUE" in told
    told = call("audit", run).refused(3, f"its model '{traps.folder}/model'", "give --model")


@pytest.mark.parametrize("command", ["execute", "finish"])
def test_a_run_that_was_not_planned_here_names_nothing_that_is_opened(
    command: str, traps: Traps, tmp_path: Path
) -> None:
    run = (support.executed if command == "finish" else support.planned)(tmp_path)
    body = canon.read_json(run / "run.json")
    trap = str(traps.folder / "model")
    body["options"] |= {"model": trap, "suite": traps.suite, "trust_remote_code": True}
    body["model"]["reference"] = trap
    (run / "run.json").write_text(json.dumps(body))
    traps.watching = True
    try:
        call(command, run).refused(3, "only you may name what is opened", f"its model '{trap}'")
    finally:
        traps.watching = False
    assert traps.sprung == []


def test_a_run_that_was_planned_here_is_gone_on_with_from_any_folder(
    tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run.json has only the last part of a path."""
    model = shutil.copytree(tiny_model(), tmp_path / "models" / "mine")
    suite = tmp_path / "own.yaml"
    suite.write_text(support.SUITE.format(name="own", tasks="demo_qa"))
    monkeypatch.chdir(tmp_path)
    call("lock", suite).done()
    given = ("--model", "models/mine", "--suite", "own.yaml", "--limit", 1)
    run = tmp_path / call("plan", *given).done().folder
    monkeypatch.chdir("/")
    call("execute", run, "--workers", 0).done()
    call("finish", run).done()
    assert str(tmp_path) not in (run / "run.json").read_text()
    (run / "record.json").unlink()
    model.rename(tmp_path / "moved")
    call("execute", run).refused(3, "give --model if it has moved")


def test_a_submission_names_no_run_elsewhere(traps: Traps, tmp_path: Path) -> None:
    where = tmp_path / "results" / "submissions" / "tiny-1"
    where.mkdir(parents=True)
    member = {"run": str(traps.folder / "model"), "model": None}
    (where / "submission.json").write_text(json.dumps({"members": [member], "shards": 1}))
    traps.watching = True
    try:
        call("status", where).refused(2, "submission.json is not of this evalkit")
    finally:
        traps.watching = False
    assert traps.sprung == []
