"""The shape of the code: imports point one way, each heavy dependency has its doors, and nothing
grows too large to read."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "evalkit"
MOST_PRIVATE_READS = 48
# In the order of the data. A room imports only those before it, inside its functions too.
ROOMS = [
    "base",
    "inputs",
    "plan",
    "engine",
    "harness",
    "record",
    "run",
    "judge",
    "show",
    "host",
    "cli",
]
# Who may import what is heavy, or ours to guard; tests/test_light.py holds when that happens.
DOORS = {
    "lm_eval": {"harness"},
    "aiohttp": {"harness"},
    "datasets": {"harness"},
    "sklearn": {"harness"},
    "huggingface_hub": {
        *(
            "inputs.hub",
            "inputs.files",
            "inputs.models.architecture",
            "harness",
        ),
    },
    "torch": {"engine", "inputs.models.builtin.demo"},
    "safetensors": {"engine", "inputs.models.builtin.demo", "inputs.models.architecture"},
    "transformers": {
        *("engine", "inputs.models.architecture", "inputs.models.gguf", "inputs.models.tokenizer"),
        *(
            "inputs.models.builtin.demo",
            "inputs.chat.templates",
            "inputs.models.checkpoint",
        ),
    },
    "gguf": {"inputs.models.gguf"},
    "peft": {"engine"},
    "tokenizers": {"inputs.models.builtin.demo", "inputs.models.tokenizer"},
    "jinja2": {"inputs.chat.templates", "harness", "show.report"},
    "markupsafe": {"show.report"},
    "markdown_it": {"show.table_check"},
    "pylatexenc": {"show.table_check"},
    "pyarrow": {"show.export"},
    "mlflow": {"show.export"},
    "PIL": {"show.report.parts.picture"},
    "wandb": {"show.export"},
    "pandas": {"show.notebook"},
    "click": {"cli"},
    "rich": {"base.events", "show.summary", "show.progress", "show.seeds"},
    "subprocess": {
        "inputs.models.builtin.smollm2",
        "harness.scoring.apart",
        "base.machine.stamp",
        "base.machine.gpus",
        "run.processes",
        "host",
    },
    "jsonschema": {"base.schema"},
    "cryptography": {"record.signing.keys", "record.signing.timestamps"},
    "rfc3161_client": {"record.signing.timestamps"},
    "pynvml": {"run.telemetry"},
    "yaml": {"inputs.untrusted", "inputs.locked", "harness", "show.export"},
    "numpy": {
        *("plan.tokenise", "plan.batch", "plan.trie", "engine", "harness"),
        *("judge.compare", "judge.audit"),
    },
}
# Who else than canon may write, and what: a lock that must be made exclusively, a traceback where
# nothing can be trusted any more, files that other libraries save before canon's rename, the
# scratch folder of a container, a mirror of links, a file that tells a file server's clock, a pipe.
WRITERS = {
    "base.lease": {"os.open", "write"},
    "cli": {"mkstemp", "write"},
    "record.packs.archive": {"TemporaryDirectory"},
    "judge.reproduce": {"TemporaryDirectory"},
    "judge.reproduce.command": {"TemporaryDirectory"},
    "inputs.models.builtin.demo.model": {"TemporaryDirectory"},
    "inputs.models.gguf": {"TemporaryDirectory", "mkdir"},
    "inputs.models.builtin.smollm2": {"TemporaryDirectory"},
    "run.processes.template": {"write"},
    "plan.cache": {"rmtree"},
    "harness.data.cache": {"mkdtemp", "mkdir", "symlink_to"},
    "host.doctor.host": {"TemporaryFile"},
    "host.cluster.submit": {"TemporaryDirectory"},
    "host.launch.start": {"mkdtemp", "rmtree"},
}
WRITING = {"mkstemp", "NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile", "mkdtemp"}
WRITING |= {"write_text", "write_bytes", "rmtree", "copyfile", "copytree", "mkdir"}
WRITING |= {"copy2", "copyfileobj", "makedirs", "symlink_to", "hardlink_to", "touch", "truncate"}
MAX_LINES, MAX_FUNCTION, MAX_ENTRIES = 300, 40, 12
CACHE = "__pycache__"


@dataclass(frozen=True)
class Module:
    """A module of the package and what it imports: (name, line) each."""

    name: str
    path: Path
    tree: ast.Module

    @cached_property
    def imports(self) -> list[tuple[str, int]]:
        """Every module that it imports at run time, wherever the statement stands."""
        return list(self._imports())

    def _imports(self) -> Iterator[tuple[str, int]]:
        skipped = {id(node) for block in self._type_checking() for node in ast.walk(block)}
        for node in ast.walk(self.tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level and node.module, f"{self.path}: a relative import"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield (inner if inner in MODULES else node.module), node.lineno

    def _type_checking(self) -> Iterator[ast.AST]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                yield from node.body


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


PATHS = sorted(PACKAGE.rglob("*.py"))
MODULES = {_name(path): path for path in PATHS}


@cache
def _all() -> list[Module]:
    """Every module of the package."""
    return [
        Module(name.removeprefix("evalkit").lstrip("."), path, ast.parse(path.read_text("utf-8")))
        for name, path in MODULES.items()
    ]


@cache
def _inner() -> list[Module]:
    """All but the package's own."""
    return [module for module in _all() if module.name]


FOLDERS = sorted({_name(path.parent).removeprefix("evalkit").lstrip(".") for path in PATHS})
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _inside(name: str, folder: str) -> bool:
    """Whether a module is the folder's, or a folder itself."""
    return not folder or name == folder or name.startswith(f"{folder}.")


def test_every_module_stands_in_a_room() -> None:
    assert {module.name.split(".")[0] for module in _inner()} == set(ROOMS)


def test_imports_point_one_way() -> None:
    place = {name: index for index, name in enumerate(ROOMS)}
    backwards = [
        f"{module.name}:{line} imports {name}"
        for module in _inner()
        for name, line in module.imports
        if name.startswith("evalkit.")
        and place[name.split(".")[1]] > place[module.name.split(".")[0]]
    ]
    assert backwards == []


def _circle(folder: str) -> set[str]:
    """What in a folder imports each other; an entry stands for all that is in it."""
    depth = len(folder.split(".")) if folder else 0
    graph: dict[str, set[str]] = {}
    for module in (module for module in _inner() if _inside(module.name, folder)):
        mine = [*module.name.split("."), "__init__"][depth]
        needs = graph.setdefault(mine, set())
        for name, _ in module.imports:
            package, _, inner = name.partition(".")
            if package == "evalkit" and inner and _inside(inner, folder):
                needs.add([*inner.split("."), "__init__"][depth])
        needs.discard(mine)
    done: set[str] = set()
    while ready := {name for name, needs in graph.items() if name not in done and needs <= done}:
        done |= ready
    return graph.keys() - done


def test_what_stands_in_a_folder_imports_in_no_circle() -> None:
    """Neither modules nor folders import each other."""
    circles = {folder: found for folder in FOLDERS if (found := _circle(folder))}
    assert circles == {}


def test_a_folder_holds_no_more_than_can_be_seen_at_once() -> None:
    def is_seen(entry: Path) -> bool:  # a module that has moved leaves its compiled form behind
        if entry.is_file():
            return True
        return entry.name != CACHE and any(inner.name != CACHE for inner in entry.iterdir())

    entries = {
        folder: [e for e in (PACKAGE / folder.replace(".", "/")).iterdir() if is_seen(e)]
        for folder in FOLDERS
    }
    assert {name: len(found) for name, found in entries.items() if len(found) > MAX_ENTRIES} == {}


@pytest.mark.parametrize("dependency", DOORS)
def test_a_heavy_dependency_comes_in_by_its_doors_only(dependency: str) -> None:
    users = {
        module.name
        for module in _all()
        for name, _ in module.imports
        if name.split(".")[0] == dependency
    }
    doors = DOORS[dependency]
    strangers = {user for user in users if not any(_inside(user, door) for door in doors)}
    unused = {door for door in doors if not any(_inside(user, door) for user in users)}
    assert strangers == set(), f"{dependency} is imported elsewhere"
    assert unused == set(), f"no {dependency} there any more"


def test_no_other_dependency_is_imported() -> None:
    own = {"evalkit", *DOORS, *sys.stdlib_module_names}
    found = {name.split(".")[0] for module in _all() for name, _ in module.imports}
    assert found - own == set()


@cache
def _defined(module: str) -> set[str]:
    """The names at the top of one of our modules, imported ones too."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    assigned = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    imported = {alias.asname or alias.name for n in ast.walk(tree)
                if isinstance(n, ast.Import | ast.ImportFrom) for alias in n.names}  # fmt: skip
    return assigned | imported | {n.name for n in tree.body if isinstance(n, Definition)}


def test_code_in_texts_imports_what_is_there() -> None:
    """What a process of its own is given to run, and what a test puts into one, is a text: no tool
    sees that a module of it has moved."""
    root = PACKAGE.parent
    paths = [path for folder in ("evalkit", "tests", "bench", "image", "requirements")
             for path in sorted((root / folder).rglob("*.py"))]  # fmt: skip
    missing = [
        f"{path.relative_to(root)}: {found[0]}"
        for path in paths
        for found in re.finditer(r"from (evalkit(?:\.\w+)*) import (\w+)", path.read_text("utf-8"))
        if f"{found[1]}.{found[2]}" not in MODULES
        and (found[1] not in MODULES or found[2] not in _defined(found[1]))
    ]
    assert missing == []


def test_a_module_is_of_a_size_to_read() -> None:
    sizes = {m.name: len(m.path.read_text("utf-8").splitlines()) for m in _all()}
    assert {name: size for name, size in sizes.items() if size > MAX_LINES} == {}


def test_a_function_fits_on_a_screen() -> None:
    long = [
        f"{module.name}.{node.name}: {size} lines"
        for module in _all()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION
    ]
    assert long == []


def test_a_module_says_in_a_paragraph_what_it_is() -> None:
    """A sentence, then what there is to say."""
    texts = {module.name: ast.get_docstring(module.tree) or "" for module in _all()}
    assert [name for name, text in texts.items() if not text.split("\n\n")[0].endswith(".")] == []


def _public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Functions and classes that others may use, and the methods of such classes."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{node.name}.")


def test_everything_public_says_what_it_does() -> None:
    silent = [
        f"{module.name}.{name}"
        for module in _all()
        for name, node in _public(module.tree.body)
        if not ast.get_docstring(node)
    ]
    assert silent == []


def _writes(module: Module) -> Iterator[str]:
    """What of a module's calls creates or changes a file or a folder."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rsplit(".", 1)[-1]
        if name == "os.open":
            if "O_RDONLY" not in ast.unparse(node.args[1]):
                yield name
        elif last == "open" and (mode := _mode(node, name)) and set(mode) & set("wax+"):
            yield f"open {mode}"
        elif last == "write" and name.startswith("os."):
            yield "write"
        elif last in WRITING:
            yield last


def _mode(call: ast.Call, name: str) -> str:
    """The mode that an `open` is called with; a mode that is no constant counts as writing."""
    found = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    at = 1 if name in ("open", "io.open", "gzip.open") else 0
    found += call.args[at : at + 1] if not name.endswith("events.open") else []
    if not found:
        return ""
    constant = found[0]
    return str(constant.value) if isinstance(constant, ast.Constant) else "w"


def private_reads(path: Path) -> list[str]:
    """The private names of others that a module reads, imports or replaces, once for each time."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found += [] if own else [node.attr]
        elif isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
            named = node.args[1] if len(node.args) > 1 else None
            found += [str(named.value)] if isinstance(named, ast.Constant) else []
    return [name for name in found if re.fullmatch(r"_[a-zA-Z]\w*", name) and name != "_exit"]


def test_tests_reach_into_few_private_names() -> None:
    """A name that a test needs is no detail: it is public and says what it does. Names of torch,
    transformers and lm-eval count too."""
    places = {path: private_reads(path) for path in sorted(TESTS.rglob("*.py"))}
    reads = {f"{path.relative_to(TESTS)}: {name}" for path in places for name in places[path]}
    assert sum(map(len, places.values())) <= MOST_PRIVATE_READS, "\n".join(sorted(reads))


def test_only_canon_opens_a_file_for_writing() -> None:
    found = {
        module.name: set(_writes(module)) for module in _inner() if module.name != "base.canon"
    }
    assert {name: writes for name, writes in found.items() if writes} == WRITERS


def test_the_check_for_writing_sees_what_it_should() -> None:
    seen = Module("x", Path(), ast.parse(
        'open("a", "w"); p.open("ab"); p.open(mode=m); os.open(p, os.O_WRONLY); p.write_text("")\n'
        'os.write(1, b""); open("a"); p.open("rb"); os.open(p, os.O_RDONLY); gzip.open(p, "rt")'
    ))  # fmt: skip
    assert list(_writes(seen)) == ["open w", "open ab", "open w", "os.open", "write_text", "write"]


def test_nothing_in_the_package_is_caught_and_forgotten() -> None:
    """`except Exception` stands where a bug becomes a line and a file, and where one in a child
    process is told to the parent for that."""
    broad = [
        module.name
        for module in _all()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
    ]
    assert sorted(broad) == ["base.bounded", "cli"]


def test_no_file_of_the_package_names_a_place_on_its_authors_machine() -> None:
    texts = [path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".yaml", ".jsonl"}]
    marks = ("/mnt/", "/home/", "/root/", "/Users/")
    found = [path.name for path in texts for mark in marks if mark in path.read_text("utf-8")]
    assert found == []
    schemas = PACKAGE.parent / "schemas"
    assert all(json.loads(path.read_text()) for path in schemas.glob("*.json"))
