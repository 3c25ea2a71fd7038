"""What decides a run's answers, level, profile, adapter: each in its identity and its record."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
from support import call
from test_load import made_adapter

from evalkit.base.errors import EvalkitError, Exit
from evalkit.engine import core
from evalkit.engine.numerics.numerics import Quantized
from evalkit.engine.probe import probe
from evalkit.judge.verify import verify
from evalkit.run import folder as folders

Start = Callable[..., support.Ran]


@pytest.fixture
def command(tmp_path: Path, tiny_model: Callable[..., Path]) -> Start:
    """Runs a command with a tiny model, a suite of one task of three documents, and options."""
    suite = support.suite(tmp_path, "mine", ["demo_qa"])

    def run(name: str, *options: str | Path, out: str = "results") -> support.Ran:
        given = ("--model", tiny_model(), "--suite", suite, "--limit", "3", "--device", "cpu")
        return call(name, *given, "--out", tmp_path / out, *options)

    return run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--level", "D"), "unknown level 'D': choose from tree, prefix, none"),
        (("--profile", "exact"), "unknown numerics profile 'exact'"),
        (("--adapter", "nowhere"), "'nowhere' is not an adapter"),
        (("--engine", "other"), "unknown engine 'other'"),
    ],
)
def test_an_option_of_no_known_value_is_one_line(
    command: Start, options: tuple[str, ...], words: str
) -> None:
    ran = command("eval", *options)
    ran.refused(ran.code, words)
    assert ran.code in (Exit.USAGE, Exit.MISSING)


def test_without_a_level_the_probe_decides_and_the_record_says_it(
    command: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where nothing passed before
    for level in ("tree", "prefix"):
        monkeypatch.setattr(probe, "resolve", lambda model, level=level: level)
        ran = command("eval", out=level).done()
        record = support.read(ran.folder)
        assert record["engine"]["level"] == level == support.read(ran.folder, "plan.json")["level"]
        assert f"level {level} checked in " in ran.err
        assert record["phases"]["probe"]["seconds"] > 0


def test_a_level_that_is_given_is_not_probed_for(
    command: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> str:
        raise AssertionError("it was probed for")

    monkeypatch.setattr(probe, "resolve", refuse)
    ran = command("plan", "--level", "none").done()
    assert support.read(ran.folder, "run.json")["inputs"]["engine"]["level"] == "none"


def test_a_worker_whose_probe_fails_stops_before_its_first_batch(
    command: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(engine: Any) -> None:
        raise EvalkitError("not its own", fix="plan with --level none", code=Exit.FAILED)

    folder = command("plan", "--level", "prefix").done().folder
    monkeypatch.setattr(probe, "check", fail)
    command("eval", "--level", "prefix").refused(1, "plan with --level none")
    assert not list((folder / "journal").glob("*"))


def test_a_finished_run_is_not_probed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise AssertionError("it was probed")

    finished, executed = support.finished(tmp_path / "a"), support.executed(tmp_path / "b")
    monkeypatch.setattr(probe, "check", refuse)
    for folder in (finished, executed):
        call("execute", folder).done()


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        (("--level", "prefix"), ("--level", "none"), "engine.level: prefix -> none"),
        (("--level", "none"), ("--level", "none", "--profile", "precise"),
         "numerics.profile: native -> precise"),
        (("--level", "none"), ("--level", "none", "--dtype", "bfloat16"),
         "numerics.dtype: float32 -> bfloat16"),
    ],
    ids=["level", "profile", "dtype"],
)  # fmt: skip
def test_a_changed_option_is_named(
    command: Start, first: tuple[str, ...], then: tuple[str, ...], words: str
) -> None:
    folder = command("plan", *first).done().folder
    command("plan", *then).refused(2, f"differs in {words}", folder.name, "--fresh")
    assert command("plan", *first).done().folder == folder


def test_an_adapter_is_an_input_of_the_run_and_stands_in_its_record(
    command: Start, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    adapter = made_adapter(tiny_model(), tmp_path / "my-lora")
    plain = command("eval", "--level", "none", out="plain").done().folder
    folder = command("plan", "--level", "none", "--adapter", adapter).done().folder
    moved = adapter.rename(tmp_path / "moved")
    call("execute", folder, "--model", tiny_model()).refused(3, "'my-lora' is not an adapter")
    call("execute", folder, "--model", tiny_model(), "--adapter", moved).done()
    call("finish", folder, "--model", tiny_model(), "--suite", tmp_path / "mine.yaml").done()
    record = support.read(folder)
    assert record["model"]["adapter"]["reference"] == "my-lora"
    assert set(record["model"]["adapter"]["files"]) == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert record["answers"] != support.read(plain)["answers"]
    assert support.read(plain)["model"]["adapter"] is None
    assert verify(folder).consistent, verify(folder).lines()
    record["model"]["adapter"] = None
    support.write(folder, record)
    assert "the run id" in "\n".join(verify(folder).lines())


def test_another_adapter_is_named_by_its_file(
    command: Start, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    first = made_adapter(tiny_model(), tmp_path / "first")
    second = shutil.copytree(first, tmp_path / "second")
    config = second / "adapter_config.json"
    config.write_text(config.read_text() + "\n")
    folder = command("plan", "--level", "none", "--adapter", first).done().folder
    command("plan", "--level", "none", "--adapter", second).refused(
        2, "adapter.adapter_config.json"
    )
    command("plan", "--level", "none").refused(2, "differs in adapter:", "-> None")
    ran = call("execute", folder, "--model", tiny_model(), "--adapter", second)
    ran.refused(2, "planned with another adapter.adapter_config.json")


def test_a_quantised_checkpoint_is_told(monkeypatch: pytest.MonkeyPatch, command: Start) -> None:
    monkeypatch.setattr(core, "quantization", lambda _: Quantized("gptq", None))
    monkeypatch.setattr("evalkit.engine.quantization", core.quantization)
    body = folders.read(command("plan", "--level", "none").done().folder).body
    unknown = {"unknown": "config.json does not say"}
    at_load = {"unknown": "transformers decides when it loads"}
    expected = {"method": "gptq", "bits": unknown, "dequantized": at_load}
    assert body["model"]["quantization"] == expected


def test_the_precise_profile_runs_and_is_recorded(command: Start) -> None:
    folder = command("eval", "--dtype", "bfloat16", "--profile", "precise").done().folder
    record = support.read(folder)
    assert record["numerics"]["profile"] == "precise" and record["numerics"]["dtype"] == "bfloat16"
    (line,) = [line for line in verify(folder).lines() if line.startswith("PASS  engine ")]
    assert line.endswith(f"evalkit, level {record['engine']['level']}, precise bfloat16")


def test_batches_that_were_split_are_counted_and_warned_of(
    command: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, seen = core.Engine.execute, []

    def execute(self: Any, batch: Any) -> Any:
        answers = answer(self, batch)
        seen.append(batch)
        self.last_split = 2 if len(seen) == 1 else 0
        return answers

    monkeypatch.setattr(probe, "check", lambda _: None)  # it executes batches of its own
    monkeypatch.setattr(core.Engine, "execute", execute)
    folder = command("eval", "--level", "none").done().folder
    lines = [support.canon.loads(line) for line in support.journal_file(folder).open()]
    assert [line.get("split") for line in lines] == [2] + [None] * (len(lines) - 1)
    assert support.read(folder)["health"]["split_batches"] == 1
    report = verify(folder)
    assert report.consistent
    assert "1 batches split because memory ran out" in "\n".join(report.lines())


def test_the_tokens_that_a_run_took_count_every_shared_prefix_once(tmp_path: Path) -> None:
    folder = support.finished(tmp_path)
    plan, answers = support.read(folder, "plan.json"), support.read_journal(folder).answers()
    assert plan["trunks"], "the demo's worked examples are shared"
    written = sum(len(answer.get("tokens", ())) for answer in answers.values())
    prefixes = sum(trunk["length"] for trunk in plan["trunks"])
    rows = sum(batch["tokens"] for batch in plan["batches"])
    assert support.read(folder)["phases"]["execute"]["tokens"] == prefixes + rows + written


def test_planning_shows_a_table_and_prints_the_folder(command: Start) -> None:
    ran = command("plan", "--level", "tree").done()
    assert ran.out == f"{ran.folder}\n"
    table = dict(line.split(None, 1) for line in ran.err.splitlines()[-5:])
    assert list(table) == ["level", "requests", "batches", "computed", "longest"]
    unique = support.read(ran.folder, "run.json")["unique_tokens"]
    assert table["level"].strip() == "tree" and table["requests"].strip() == "12"
    assert f"times the {unique:,} unique ones" in table["computed"]
    (batch,) = support.read(ran.folder, "plan.json")["batches"]
    assert f"a batch of demo_qa: {batch['cost']:,} tokens" in table["longest"]
