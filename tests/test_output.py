"""A record's strings, and the names of folders, go out by a door for each kind of output."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from runs import Run
from support import call

from evalkit.base.errors import EvalkitError, printable
from evalkit.record.reading import output

pytestmark = pytest.mark.usefixtures("without_lm_eval", "in_this_process")

SIGNED = "\x1b[2K\rSIGNED by alice: nothing in it contradicts itself"
ODD = f"x{SIGNED}\x9b2J\u202e\nSIGNED by bob"
CLI = Path(__file__).parents[1] / "evalkit" / "cli"


def odd_run(folder: Path) -> Path:
    """A run that has odd names wherever its schema lets it."""
    run = Run()
    run.record["model"]["reference"] = ODD
    run.record["environment"]["cpu"] = ODD
    run.record["environment"]["versions"]["torch"] = ODD
    run.record["tasks"]["arc_challenge"]["dataset"]["licence"] = ODD
    run.record["tasks"]["arc_challenge"]["dataset"]["split"] = ODD
    run.record["command"]["argv"] = [ODD]
    return run.write(folder)


def is_plain(text: str) -> bool:
    """Whether nothing in a text does anything but end a line."""
    return all(c.isprintable() or c == "\n" for c in text)


def test_no_command_writes_to_a_terminal_what_a_record_or_a_folders_name_says(
    tmp_path: Path,
) -> None:
    """`verify RESULTS` printed folder names as they are: a SIGNED line in place of the real one."""
    results = tmp_path / "results"
    run = odd_run(results / "model" / "run\x1b[2K\rSIGNED by alice")
    other = odd_run(results / "model\x1b[2J\nSIGNED by bob" / "run")
    shutil.copytree(run, tmp_path / "plain")
    signers = tmp_path / "signers\x1b[2J"
    signers.write_text("alice\x1b[2J ssh-ed25519 AAAA\n")
    for words in (
        ["verify", results],
        ["verify", run, other],
        ["verify", "--json", run, other],
        ["verify", run, "--allowed-signers", signers],
        ["compare", run, other],
        ["compare", "--json", run, other],
        *(["export", "--to", to, run] for to in
          ("csv", "markdown", "latex", "every-eval-ever", "model-index")),
        ["report", run],
        ["reproduce", run, "--plan"],
        ["validate", run],
        ["status", run],
        ["pack", run],
        ["sign", run, "--key", tmp_path / "key\x1b[2J"],
        ["audit", tmp_path / "none\x1b[2J"],
        ["import", tmp_path / "none\x1b[2J"],
        ["check-table", tmp_path / "none\x1b[2J.tex"],
    ):  # fmt: skip
        ran = call(*words)
        assert ran.code in (0, 1, 2, 3), f"{words}: {ran.traceback}"
        assert is_plain(ran.out + ran.err), f"{words[:2]}: {ran.out + ran.err!r}"
        lines = (ran.out + ran.err).splitlines()
        assert not any(line.strip().startswith("SIGNED") for line in lines), words
        if "--json" in words:
            json.loads(ran.out)


def test_only_one_function_of_the_command_line_prints() -> None:
    prints = re.compile(r"click\.echo\(|(?<!\w)print\(")
    found = {path.name: len(prints.findall(path.read_text())) for path in CLI.glob("*.py")}
    assert {name: count for name, count in found.items() if count} == {
        "__init__.py": 1, "common.py": 2,
    }  # fmt: skip


def test_an_errors_line_is_printable() -> None:
    error = EvalkitError(f"what {ODD}", where=ODD, fix=ODD)
    assert is_plain(str(error)) and "\n" not in str(error)
    assert printable("a\tb\x7f\x9b é ∑") == "a\\tb\\x7f\\x9b é ∑"


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@x", " =1", "\t=1", "\u00a0=1", "\u3000=1", "\uff1d1+1", " \uff0b1",
     "\r=1", "\n=1", "\u200b=1", "\ufeff=1"],
)  # fmt: skip
def test_no_cell_is_a_formula_for_any_spreadsheet(text: str) -> None:
    cell = output.csv_cell(text)
    assert is_plain(cell) and "\n" not in cell
    assert cell.startswith("'") or cell[0] == "\\"
    buffer = io.StringIO()
    csv.writer(buffer).writerow([cell, output.csv_cell("arc_challenge")])
    assert next(csv.reader(io.StringIO(buffer.getvalue()))) == [cell, "arc_challenge"]


@pytest.mark.parametrize(
    "text",
    ["[a](https://evil.example)", "![a](x)", "<img src=x onerror=alert(1)>", "<https://evil.example>",
     "https://evil.example", "www.evil.example", "me@evil.example", "[a]: https://evil.example",
     "`x` <b>", "*a* **b**", "&lt;script&gt;", "a\n\n# head", "http://a http://b"],
)  # fmt: skip
def test_no_text_is_a_link_or_html_in_markdown(text: str) -> None:
    made = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(
        f"- asked: {output.markdown(text)}"
    )
    kinds = {child.type for token in made for child in token.children or []}
    assert kinds <= {"text", "text_special"}, kinds
    assert not re.search(r"\w://|\bwww\.|\w@\w", output.markdown(text))


def test_a_comparison_has_no_links_of_its_samples(tmp_path: Path) -> None:
    first, second = Run(), Run()
    second.record["execution"] = "f" * 32
    for run in (first, second):
        run.record["model"]["reference"] = "[me](https://evil.example) <img src=x>"
    ran = call("compare", first.write(tmp_path / "a"), second.write(tmp_path / "b")).done()
    assert "](" not in ran.out.replace("\\]", "") and "<img" not in ran.out.replace("\\<", "")


def test_latex_runs_nothing() -> None:
    made = output.latex("\\input{/etc/passwd} % $x^2$ & \x1b")
    plain = made.replace(r"\textbackslash{}", "").replace(r"\textasciicircum{}", "")
    assert not re.search(r"(?<!\\)[%$&{}^]", plain)
