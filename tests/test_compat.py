"""What evalkit uses of other packages beyond their documented interfaces is as it expects, and is
named in one module for each room: an upgrade that moves it fails here, by name."""

import ast
import importlib
import inspect
import re
from functools import reduce
from pathlib import Path

import pytest

from evalkit.engine import compat as of_the_engine
from evalkit.harness import compat as of_the_harness
from evalkit.inputs import compat as of_the_inputs

PACKAGE = Path(of_the_engine.__file__).parents[1]
ROOMS = {
    "engine": of_the_engine.NAMES, "harness": of_the_harness.NAMES, "inputs": of_the_inputs.NAMES,
}  # fmt: skip
# Python's own: `os._exit` is documented, and what a command registered for its end would be left
# undone if `atexit._run_exitfuncs` were gone: every command would end in an error.
OF_PYTHON = {"_exit", "_run_exitfuncs"}
USED = [(room, name) for room, names in ROOMS.items() for name in names]


def problem(name: str, wanted: str) -> str:
    """What is wrong with a name, or an empty string."""
    module, _, path = name.partition(":")
    try:
        found = reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        return f"{name} is not there: {error}"
    if wanted.startswith("attributes "):
        text, (_, *attributes) = inspect.getsource(found), wanted.split()
        unset = [each for each in attributes if not re.search(rf"\bself\.{each}\b", text)]
        return f"{name} sets no {', '.join(unset)}" if unset else ""
    if not wanted:
        return ""
    shown = parameters(found)
    return "" if shown == wanted else f"{name} takes {shown}, not {wanted}"


def parameters(function: object) -> str:
    """The parameters of a function as the tables have them: no types, no defaults."""
    given = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    bare = [each.replace(default=each.empty, annotation=each.empty) for each in given]
    return str(inspect.Signature(bare))


@pytest.mark.parametrize(("room", "name"), USED)
def test_a_name_beyond_the_documented_interfaces_is_as_evalkit_expects(
    room: str, name: str
) -> None:
    pytest.importorskip(name.partition(":")[0].split(".")[0])
    assert problem(name, ROOMS[room][name]) == ""


def test_the_check_sees_what_has_moved() -> None:
    assert "is not there" in problem("json:no_such_name", "")
    assert "takes" in problem("json:loads", "(text)")
    assert "sets no" in problem("json.decoder:JSONDecoder", "attributes _private")


def private_names(path: Path) -> set[str]:
    """Private names of others that a module reads: `thing._name`, `from x import _name`."""
    tree = ast.parse(path.read_text("utf-8"))
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    }
    own |= {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
    }
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} - own
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("evalkit"):
            read |= set((node.module or "").split("."))
            read |= {alias.name for alias in node.names}
    return {name for name in read if re.fullmatch(r"_[a-zA-Z]\w*", name)} - OF_PYTHON


def test_no_module_reads_a_private_name_that_its_room_does_not_name() -> None:
    unnamed = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        known = " ".join([*ROOMS.get(room, {}), *ROOMS.get(room, {}).values()])
        missing = {name for name in private_names(path) if not re.search(rf"\b{name}\b", known)}
        if missing:
            unnamed[str(path.relative_to(PACKAGE))] = missing
    assert unnamed == {}
