"""What the README and the docs show is true: the record, the targets, the files, the links."""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from evalkit.base import canon
from evalkit.inputs import suite as suites
from evalkit.judge.verify import verify

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DOCS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_committed_record_verifies_as_the_readme_shows() -> None:
    named = re.search(r"make verify RUN=(results/example/\S+)\n(.*?)```", README, re.S)
    assert named is not None
    shown = [line for line in named[2].splitlines() if not line.startswith("PASS  rescoring")]
    report = verify(ROOT / named[1])
    # without lm-eval that one line is a SKIP
    found = [line for line in report.lines() if "  rescoring  " not in line]
    assert report.consistent
    assert shown == [line.rstrip() for line in found]


def test_every_target_the_readme_names_is_one() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for doc in DOCS for name in re.findall(r"\bmake ([a-z-]+)\b", doc.read_text())}
    named -= {"the", "a"}  # "make the package locks again"
    assert named and named <= targets


def test_the_readmes_tree_names_what_is_there() -> None:
    tree = README.split("suites/               what to evaluate")[1].split("##")[0]
    for line in tree.splitlines():
        names = re.match(r"\s*((?:[\w/]+(?:\.py|/)\s+)+)", line)
        for name in names[1].split() if names else []:
            inside = line.startswith("      ")
            assert ((ROOT / "evalkit" if inside else ROOT) / name).exists(), name


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(doc: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", doc.read_text("utf-8")):
        assert (doc.parent / link).exists(), link


def test_the_index_names_every_page_of_the_docs() -> None:
    index = (ROOT / "docs/README.md").read_text("utf-8")
    named = re.findall(r"\]\((\S+?\.md)\)", index)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert len(named) == len(set(named)) and set(named) == pages


def test_the_workflow_runs_the_tiers_of_the_projects_own_integration() -> None:
    ours = re.search(r"^for tier in (.*?); do", (ROOT / ".ci/run").read_text("utf-8"), re.M)
    text = (ROOT / ".github/workflows/test.yml").read_text("utf-8")
    slow = re.search(r"tier: \[(.*)\]", text)
    assert ours and slow
    single = re.findall(r"run: make ([\w-]+)$", text, re.M)
    assert {*single, *slow[1].split(", ")} == set(ours[1].split())


def test_every_file_named_in_the_docs_exists() -> None:
    for doc in DOCS:
        for name in re.findall(r"`((?:tests|evalkit|schemas|bench|suites|docs)/[\w./-]+)`",
                               doc.read_text("utf-8")):  # fmt: skip
            assert (ROOT / name).exists(), f"{doc.name} names {name}"


RECIPES = ("A level", "A request type", "A field of the record", "An export", "A launcher",
           "A Slurm option", "A verdict", "A signer")  # fmt: skip
MOST_FILES = 4  # of evalkit/ that a recipe may touch


def _recipes() -> dict[str, list[str]]:
    """The numbered steps of each recipe in docs/changing.md."""
    text = (ROOT / "docs/changing.md").read_text("utf-8")
    part = text.split("\n## Recipes\n")[1].split("\n## ")[0]
    recipes = [recipe.split("\n", 1) for recipe in part.split("\n### ")[1:]]
    return {name: re.findall(r"^\d\. (.*(?:\n   .*)*)", body, re.M) for name, body in recipes}


def _names(path: Path) -> set[str]:
    """What a module defines at its top."""
    tree = ast.parse(path.read_text("utf-8"))
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    kinds = ast.FunctionDef | ast.ClassDef
    return assigned | {node.name for node in tree.body if isinstance(node, kinds)}


def test_there_is_a_recipe_for_each_change_that_is_promised() -> None:
    assert tuple(_recipes()) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_few_files_that_are_there_and_a_test(name: str) -> None:
    *steps, last = _recipes()[name]
    assert last.startswith("Test: ") and re.search(r"`tests/test_\w+\.py`", last)
    files = {file for step in steps for file in re.findall(r"`(evalkit/[\w/]+\.py)`", step)}
    assert 1 <= len(files) <= MOST_FILES, sorted(files)
    for step in steps:
        file = step.partition(":")[0]
        path = re.match(r"`([\w/.]+)`", file)
        assert path and (ROOT / path[1]).is_file(), step
        if path[1].endswith(".py"):
            named = set(re.findall(r"`(\w+)`", file))
            assert named <= _names(ROOT / path[1]), f"{path[1]} has no {named}"


def test_every_evalkit_command_in_the_docs_is_one_and_takes_what_it_is_given() -> None:
    from evalkit import cli

    for doc in DOCS:
        text = doc.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(r"^\s*\$ evalkit (.*)$", text, re.M):
            name, *words = line.split(" #")[0].split()
            command = cli.cli.commands[name]
            known = {option for param in command.params for option in param.opts}
            given = {word.split("=")[0] for word in words if word.startswith("--")}
            assert given <= known | {"--help", "--version"}, f"{doc.name}: evalkit {line}"


def test_the_data_page_covers_every_leaf_task_of_the_shipped_locks() -> None:
    """A leaf task, or a family by `name_*`, with what the locks pin of it and how it is known."""
    page = (ROOT / "docs/data.md").read_text("utf-8")
    known = set(re.findall(r"^\| (\w[\w -]*) \| [A-Z]", page, re.M))
    locks = [suites.read_lock(suites.load(name).lock_path) for name in suites.shipped()]
    tasks = {leaf: task["rows"] for lock in locks for leaf, task in lock.tasks.items()}
    assert all(lock.tasks[leaf]["rows"] == tasks[leaf] for lock in locks for leaf in lock.tasks)
    counts = {leaf: task["documents"] for lock in locks for leaf, task in lock.tasks.items()}
    documents, shots = (part.split("\n## ")[0] for part in page.split("| known by |\n")[1:])
    seen: set[str] = set()
    for row in re.findall(r"^\| `(\S+)` \| ([\d,]+) \| `(\w+)` \| (.*) \|$", documents, re.M):
        seen |= checked(row[0], tasks, counts, row[1:3], documents)
        assert set(row[3].split(", ")) <= known, row
    assert seen == tasks.keys()
    pinned = {
        n: t["shots"] for lock in locks for n, t in lock.tasks.items() if t["shots"] is not None
    }
    digests = {leaf: said["digest"] for leaf, said in pinned.items() if "digest" in said}
    sizes = {leaf: pinned[leaf]["rows"] for leaf in digests}
    seen = set()
    for row in re.findall(r"^\| `(\S+)` \| [^|]+ \| ([\d,]+) \| `(\w+)` \| (.*) \|$", shots, re.M):
        seen |= checked(row[0], digests, sizes, row[1:3], shots)
        assert row[3] in known, row
    assert seen == digests.keys()
    for leaf in pinned.keys() - digests.keys():
        assert re.search(rf"^\| `{leaf}` \| [^|]+ \| +\| +\| not known \|$", shots, re.M), leaf
        assert pinned[leaf]["unknown"] in page


def checked(
    name: str, digests: dict[str, str], counts: dict[str, int], row: tuple[str, ...], table: str
) -> set[str]:
    """The leaf tasks that a line of the page's table is about, which none with a longer name is;
    what it says of them must be true."""
    longer = [other for other in re.findall(r"^\| `(\S+)`", table, re.M) if len(other) > len(name)]
    found = {leaf for leaf in digests if fnmatch(leaf, name)}
    found -= {leaf for leaf in found for other in longer if fnmatch(leaf, other)}
    assert found, name
    one = digests.get(name, canon.digest({leaf: digests[leaf] for leaf in found}))
    total = sum(counts[leaf] for leaf in found)
    assert row == (f"{total:,}", one.removeprefix("sha256:")[:16]), name
    return found


def test_the_reviewers_page_is_true(tmp_path: Path) -> None:
    """Its table and its count, by the commands that it shows."""
    from support import call

    text = (ROOT / "docs/reviewers.md").read_text("utf-8")
    run = re.search(r"evalkit export (\S+) --to latex", text)
    assert run
    paper = tmp_path / "table.tex"
    call("export", ROOT / run[1], "--to", "latex", "--out", paper).done()
    assert call("check-table", paper, ROOT / run[1]).done().out.strip() in text
