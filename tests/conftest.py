"""What every test gets: caches of its own, no way to the real Hub, and the fixtures shared.

The one cache that is kept from one test run to the next is lm-eval's index of its tasks, which
takes eight seconds to make: its key covers every file that it is made of. Each environment has a
file of its own, so that several checkouts don't replace one another's.

The Hub's address and the cache folders are read from the environment once, when huggingface_hub is
first imported, so they are set here, before any test module is.
"""

import atexit
import gc
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub as stand_in
import pytest
import yaml

_OWN_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evalkit"
_CACHE = tempfile.mkdtemp(prefix="evalkit-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
with socket.socket() as _free:
    _free.bind(("127.0.0.1", 0))
    _PORT: int = _free.getsockname()[1]  # the stand-in Hub's, if a test starts it
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
    os.environ.pop(_name, None)
os.environ |= {
    "HF_HOME": f"{_CACHE}/hf",
    "XDG_CACHE_HOME": f"{_CACHE}/xdg",  # evalkit's own
    "HF_ENDPOINT": f"http://127.0.0.1:{_PORT}",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    # What is compiled is kept, for the next worker, the commands started here and the next run.
    "PYTHONDONTWRITEBYTECODE": "",
}
sys.dont_write_bytecode = False
_PREFIX = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
_KEPT = _OWN_CACHE / f"tasks-{_PREFIX}.json"
_INDEX = Path(_CACHE, "xdg", "evalkit", "tasks.json")
if _KEPT.is_file():
    _INDEX.parent.mkdir(parents=True)
    shutil.copy(_KEPT, _INDEX)


@atexit.register  # before the folder is removed: what is registered last runs first
def _keep_index() -> None:
    if _INDEX.is_file() and not (_KEPT.is_file() and _KEPT.read_bytes() == _INDEX.read_bytes()):
        _KEPT.parent.mkdir(parents=True, exist_ok=True)
        new = _KEPT.with_name(f"{_KEPT.name}.{os.getpid()}")
        shutil.copy(_INDEX, new)
        new.replace(_KEPT)


# Their longest tests take a worker 5 to 15 s: begun first, nobody waits for them at the end.
LONG = ("test_workers.py", "test_stage.py", "test_submit.py", "test_apart.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes come first."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_look_through() -> None:
    """A collection of garbage need not look through all that was imported before: the engine starts
    one wherever a batch does not fit, and each takes half a second otherwise."""
    gc.freeze()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands read what is foreign in this process, which has imported and remembers what a child
    would read again. That they use a child, and what its limits are, is tests/test_denial.py's."""
    from evalkit.base import bounded

    monkeypatch.setattr(bounded, "run", lambda work, _: work())


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stand_in.Hub]:
    """The stand-in Hub at HF_ENDPOINT; skips where ../shared is absent."""
    if stand_in.MISSING:
        pytest.skip(stand_in.MISSING)
    with stand_in.serve(tmp_path_factory.mktemp("hub"), _PORT) as served:
        yield served


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The name of the built-in real model, which is kept in the user's own cache; skips where it
    can't be had."""
    from evalkit.base.errors import EvalkitError, Exit
    from evalkit.inputs.models import model
    from evalkit.inputs.models.builtin import smollm2

    os.environ.setdefault(smollm2.PLACE, str(_OWN_CACHE / smollm2.NAME / smollm2.FILE))
    try:
        model.resolve(smollm2.NAME)
    except EvalkitError as error:
        if error.code != Exit.MISSING:
            raise
        pytest.skip(str(error))
    return smollm2.NAME


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`models.tiny` with a folder of its own, made once for the same arguments."""
    made: dict[str, Path] = {}

    def model(architecture: str = "llama", **arguments: Any) -> Path:
        import models

        key = repr((architecture, sorted(arguments.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp("models") / f"{architecture}{len(made)}"
            made[key] = models.tiny(folder, architecture, **arguments)
        return made[key]

    return model


@pytest.fixture(scope="session")
def write_task() -> Callable[..., Path]:
    """Writes a small lm-eval task: its YAML and its documents, a JSON line each, in one folder.

    `write_task(folder, name, documents, extra="", **config)`; `extra` is more text for the YAML
    (`!function`), the result the YAML's path. The documents are the task's test split.
    """

    def write(
        folder: Path, name: str, documents: list[dict[str, Any]], extra: str = "", **config: Any
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(document) + "\n" for document in documents]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        body = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
            "test_split": "test",
            **config,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(body) + extra)
        return path

    return write


@pytest.fixture
def lm_eval() -> None:
    """For the tests in which lm-eval scores samples again: skips where it isn't installed."""
    from evalkit.harness.scoring import rescore

    if rescore.installed() is None:
        pytest.skip("lm-eval isn't installed")


@pytest.fixture
def without_lm_eval(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests about a record's folder alone: lm-eval isn't there to score samples again, but in
    those that ask for `lm_eval` or for a `demo` run."""
    from evalkit.harness.scoring import rescore

    if not {"lm_eval", "demo"} & set(request.fixturenames):
        monkeypatch.setattr(rescore, "installed", lambda: None)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped suites that holds the one of `runs.Run`, whole."""
    from runs import Run

    from evalkit.judge.verify.checks import completeness

    suites = tmp_path / "suites"
    suites.mkdir()
    run = Run()
    suite = {"name": "tiny", "tasks": [task["task"] for task in run.suite["tasks"]]}
    (suites / "tiny.lock.yaml").write_text(yaml.safe_dump(run.lock))
    (suites / "tiny.yaml").write_text(yaml.safe_dump(suite))
    monkeypatch.setattr(completeness, "SUITES", [suites])
    return suites
