"""The command line: what stands on stdout and stderr, the exit codes, and help that shows how."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import pytest
import support
from support import DEMO, call, spawn

import evalkit
from evalkit import cli
from evalkit.base import lease
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine import stamp

COMMANDS = [name for name, command in cli.cli.commands.items() if not command.hidden]


def contents_and_times(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a folder with its bytes and when it was written."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


# Help


def test_help_lists_every_command_once_in_its_group_with_a_whole_line() -> None:
    shown = call("--help").done().out
    for title, commands in cli.COMMANDS.items():
        for command in commands:
            line = command.get_short_help_str(limit=1000)
            assert len(line) < 60 and not line.endswith("..."), (title, line)
            assert (command.help or "").splitlines()[0] == line, "the first line is a sentence"
            assert f"  {command.name} " in shown.split(f"\n{title}:\n")[1].split("\n\n")[0]
    assert "evalkit eval --model demo --suite demo" in shown
    listed = [command.name for group in cli.COMMANDS.values() for command in group]
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_has_an_example_and_says_what_options_do(command: str) -> None:
    shown = call(command, "-h").done().out
    assert f"evalkit {command} " in shown.split("Options:")[0].split("\n", 1)[1]
    for option in cli.cli.commands[command].params:
        assert not isinstance(option, click.Option) or option.help, option.name


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"launch", "manifest"}))
def test_each_command_tells_programs_in_json_and_begins_its_help_with_an_example(
    command: str,
) -> None:
    """`launch` prints what the command it starts prints, and `manifest` nothing but JSON."""
    assert any("--json" in option.opts for option in cli.cli.commands[command].params)
    shown = call(command, "--help").done().out.splitlines()
    first = next(
        index for index, line in enumerate(shown) if line.startswith(f"  evalkit {command}")
    )
    assert first < 8


def test_the_version_is_the_packages() -> None:
    assert evalkit.__version__ in call("--version").done().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evl"], ["No such command 'evl'", "eval"]),
        (["eval", "--modle", "x"], ["No such option", "--model"]),
        (["verify"], ["Missing argument 'RUN...'"]),
        (["eval", "--limit", "ten"], ["--limit", "'ten' is not a valid integer"]),
        (["eval", "--model"], ["--model", "requires an argument"]),
        (["eval", "model"], ["unexpected extra argument", "model"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistyped_command_line_says_what_is_wrong(arguments: list[str], words: list[str]) -> None:
    ran = call(*arguments)
    assert ran.code == 2 and not ran.out and all(word in ran.err for word in words), ran.err


# No model


@pytest.mark.parametrize("given", [[], ["--model", ""]], ids=["none", "empty"])
@pytest.mark.parametrize("command", ["eval", "plan"])
def test_without_a_model_there_is_a_usage_line_with_an_example(
    command: str, given: list[str]
) -> None:
    call(command, *given).refused(2, "no model given", "make eval MODEL=", "e.g.", "meta-llama/")


def test_make_eval_without_a_model_fails_with_the_usage_line() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make")
    ran = subprocess.run(
        [
            make, "--no-print-directory", "-o", "setup", "eval", "MODEL=",
            f'LAUNCH={sys.executable} -c "{support.MAIN}"',
        ],
        cwd=support.ROOT, env={**os.environ, "PYTHONPATH": os.fspath(support.ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode != 0 and not ran.stdout
    assert "evalkit: no model given: usage: make eval MODEL=" in ran.stderr
    assert "Traceback" not in ran.stderr


# What is where


def test_stdout_is_the_runs_folder_and_stderr_is_for_people(tmp_path: Path) -> None:
    folder = support.finished(tmp_path)
    ran = call("eval", *DEMO, "--out", tmp_path / "results").done()
    assert ran.out == f"{folder}\n"
    for words in ("already finished", "demo_letters", "coverage", "health", "CONSISTENT"):
        assert words in ran.err


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    """Whatever is asked of it again: the same command, its parts, looking at it."""
    folder = support.finished(tmp_path)
    before = contents_and_times(tmp_path)
    out = ("--out", tmp_path / "results")
    for arguments in (
        ["eval", *DEMO, *out], ["plan", *DEMO, *out], ["execute", folder], ["finish", folder],
        ["verify", folder], ["status", folder],
    ):  # fmt: skip
        call(*arguments).done()
        assert contents_and_times(tmp_path) == before, f"after {arguments[0]}"


def test_the_score_table_has_the_records_scores(tmp_path: Path) -> None:
    record = support.read(support.finished(tmp_path))
    shown = call("eval", *DEMO, "--out", tmp_path / "results").done().err
    for name in ("demo_letters", "demo_endings", "demo_qa", "demo_cot"):
        result = record["groups"].get(name) or record["tasks"][name]
        row = next(line for line in shown.splitlines() if line.startswith(name))
        metric, value = min(result["metrics"].items())
        assert metric.removesuffix(",none") in row and f"{value['value']:.4f}" in row
        assert f"{value['stderr']:.4f}" in row and f"{result['n']:,}" in row
    assert "6 leaf tasks, 210 of 210 documents" in shown and "PARTIAL" not in shown
    assert shown.count(": at chance") == 4


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_never_cuts_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    record = support.read(support.finished(tmp_path))
    shown = call("eval", *DEMO, "--out", tmp_path / "results").done().err
    table = shown.split("coverage")[0]
    for result in (*record["groups"].values(), record["tasks"]["demo_qa"]):
        for value in result["metrics"].values():
            assert f"{value['value']:.4f}" in table and f"{value['stderr']:.4f}" in table


def test_a_name_with_brackets_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = support.finished(tmp_path)
    record = support.read(folder)
    record["model"]["reference"] = "my[red]model"
    (folder / "record.json").write_text(json.dumps(record))
    assert "my[red]model on demo" in call("eval", *DEMO, "--out", tmp_path / "results").err


def test_verify_prints_a_line_a_check_and_ends_with_its_verdict(tmp_path: Path) -> None:
    ran = call("verify", support.finished(tmp_path)).done()
    *lines, last = ran.out.splitlines()
    assert all(line.split()[0] in ("PASS", "WARN", "SKIP") for line in lines) and len(lines) > 10
    assert last.startswith("CONSISTENT") and not ran.err


def test_verify_as_json_is_all_that_stands_on_stdout(tmp_path: Path) -> None:
    folder = support.finished(tmp_path)
    found = json.loads(call("verify", "--json", folder).done().out)
    assert found["exit_code"] == 0 and found["verdict"].startswith("CONSISTENT")
    (folder / "results.json").write_text("{}")
    ran = call("verify", "--json", folder)
    assert ran.code == json.loads(ran.out)["exit_code"] == 1


def test_what_a_command_tells_in_json_is_what_it_prints(tmp_path: Path) -> None:
    folder = support.finished(tmp_path)
    out = ("--out", tmp_path / "results")
    for arguments in (["eval", *DEMO, *out], ["plan", *DEMO, *out], ["execute", folder],
                      ["finish", folder]):  # fmt: skip
        ran = call(*arguments, "--json").done()
        assert json.loads(ran.out)["folder"] == str(folder)
    lines = json.loads(call("status", folder, "--json").done().out)["lines"]
    assert "\n".join(lines) + "\n" == call("status", folder).done().out


def test_no_colour_where_it_is_not_wanted(tmp_path: Path) -> None:
    """Neither into a pipe nor, in a terminal, with NO_COLOR."""
    from evalkit.base.events import Events

    assert "\x1b" not in call("verify", support.finished(tmp_path)).done().out
    assert Events().console.color_system is None
    ran = spawn("--help", env={"NO_COLOR": "1"}, before="from rich.console import Console;"
                "assert Console(force_terminal=True).no_color")  # fmt: skip
    ran.done()


def test_status_says_how_far_a_run_is(tmp_path: Path) -> None:
    for name, make, words in (
        ("a", support.finished, "finished: 100% of the work, {all} of {all} batches, record"),
        (
            "b",
            support.executed,
            "unfinished: 100% of the work, {all} of {all} batches; `evalkit finish` scores it",
        ),
        ("c", support.planned, "unfinished: 0% of the work, 0 of {all} batches;"),
    ):
        (tmp_path / name).mkdir()
        folder = make(tmp_path / name)
        words = words.format(all=support.num_batches(folder))
        assert call("status", folder).done().out.startswith(words)


def test_bar_status_and_page_show_one_figure_of_a_half_done_run(tmp_path: Path) -> None:
    """They counted tokens of what was left, batches, and requests."""
    folder = support.executed(tmp_path)
    journal = support.journal_file(folder)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]))
    told = json.loads(call("status", folder, "--json").done().out)
    assert told["state"] == "unfinished" and 0 < told["share"] < 1
    assert told["progress"]["done"] < told["progress"]["batches"] == support.num_batches(folder)
    percent = f"{100 * told['share']:.0f}% of the work"
    assert percent in call("status", folder).out
    page = Path(call("report", folder).done().out.strip()).read_text()
    assert percent in page
    ran = call("execute", folder).done()
    first = next(json.loads(line) for line in ran.err.splitlines() if '"phase":"execute"' in line)
    assert first["done"] == told["progress"]["done_tokens"]
    assert first["total"] == told["progress"]["tokens"]
    assert "UNFINISHED" in call("verify", folder).out and call("verify", folder).code == 3


def test_status_says_that_a_run_is_being_worked_on(tmp_path: Path) -> None:
    folder = support.planned(tmp_path)
    with lease.held(folder):
        assert call("status", folder).done().out.startswith("running: 0% of ")


def test_status_does_not_call_a_killed_run_running(tmp_path: Path) -> None:
    folder = support.planned(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    support.lock(folder, process.pid)
    assert call("status", folder).done().out.startswith("unfinished: 0% of ")


# The parts of eval


def test_plan_execute_and_finish_one_by_one_are_eval(tmp_path: Path) -> None:
    """What was planned here needs no name twice."""
    folder = support.planned(tmp_path)
    early = call("finish", folder)
    count = support.num_batches(folder)
    early.refused(Exit.STOPPED, f"{count} of {count} batches have no answer yet")
    assert call("execute", folder).done().folder == folder
    ran = call("finish", folder).done()
    assert ran.folder == folder and "CONSISTENT" in ran.err
    assert support.read(folder)["answers"] == support.demo_answers()
    audit = (tmp_path / "results" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in audit] == ["finished"]


def test_executing_needs_the_folder_and_the_model_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = support.planned(tmp_path).rename(tmp_path / "elsewhere")
    model = shutil.copytree(
        Path(os.environ["XDG_CACHE_HOME"]) / "evalkit" / "demo-model", tmp_path / "a-model"
    )
    for name in ("lm_eval", "datasets", "evalkit.harness"):
        monkeypatch.setitem(sys.modules, name, None)
    call("execute", folder, "--model", model, "--device", "cpu", "--offline").done()
    assert support.digests(folder) == support.demo_answers()


def test_executing_with_other_software_names_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, now = support.planned(tmp_path), stamp.versions()
    monkeypatch.setattr(stamp, "versions", lambda: now | {"torch": "9.9"})
    call("execute", folder).refused(2, f"versions.torch: {now['torch']} -> 9.9", "planned with")
    assert not (folder / "journal").exists()


def test_executing_with_another_model_names_the_file_that_differs(
    tmp_path: Path, tiny_model: Any
) -> None:
    folder = support.planned(tmp_path)
    call("execute", folder, "--model", tiny_model()).refused(2, "model.config.json", "->")


# Ways out


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (EvalkitError("no such\nthing", where="here", fix="look there"), 2,
         "no such thing (here): look there"),
        (EvalkitError("gone", code=Exit.MISSING), 3, "gone"),
        (KeyboardInterrupt(), 75, "stopped"),
        (ModuleNotFoundError("no torch", name="torch.nn"), 3, "torch.nn is not in this light"),
        (ZeroDivisionError("oops"), 70, "a bug in evalkit"),
        (ModuleNotFoundError("no evalkit.x", name="evalkit.x"), 70, "a bug in evalkit"),
    ],
    ids=["error", "missing", "interrupt", "light", "bug", "broken install"],
)  # fmt: skip
def test_every_way_out_is_one_line_and_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, words: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where a bug's traceback goes

    def fail(_: object) -> None:
        raise raised

    monkeypatch.setattr("evalkit.show.progress.status", fail)
    call("status", "x").refused(code, words)


def test_a_bug_leaves_its_traceback_in_a_private_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail(_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("evalkit.show.progress.status", fail)
    path = Path(call("status", "x").refused(70, "traceback is in").split()[-1])
    assert "ZeroDivisionError: oops" in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    process = support.start("--help", before="import time; time.sleep(0.5)")
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait(60) in (0, 1) and process.stderr.read() == ""
    process.stderr.close()


def test_a_real_process_says_and_exits_alike() -> None:
    spawn("eval", "--suite", "demo").refused(2, "no model given")


def test_stderr_that_is_no_terminal_gets_no_colours_and_json_progress(tmp_path: Path) -> None:
    folder = support.planned(tmp_path)
    ran = call("execute", folder).done()
    assert "\x1b" not in ran.err
    progress = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    units = {line["phase"]: line["unit"] for line in progress}
    assert units == {"start": "workers", "execute": "tokens"}


@pytest.mark.parametrize(
    ("words", "offered"),
    [("eval --suite le", "leaderboard"), ("eval --profile p", "precise"), ("rep", "report")],
)
def test_a_shell_completes_commands_suites_and_profiles(words: str, offered: str) -> None:
    asked = {"_EVALKIT_COMPLETE": "bash_complete", "COMP_WORDS": f"evalkit {words}",
             "COMP_CWORD": str(len(words.split()))}  # fmt: skip
    assert offered in spawn(env=asked).done().out


def test_an_interrupted_verify_does_not_promise_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evalkit.judge.verify.judge", stop)
    ran = call("verify", support.ROOT)
    assert ran.code == 75 and ran.errors == ["evalkit: stopped"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_the_output_is_told_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-c", support.MAIN, "--help"], text=True, stdout=full,
            stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.fspath(support.ROOT)},
        )  # fmt: skip
    assert done.returncode == Exit.MISSING
    assert done.stderr == "evalkit: the output can't be written: No space left on device\n"
