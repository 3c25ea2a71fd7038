"""Downloads everything that a run without network needs, once, at pinned revisions.

Models and datasets go into one folder, with a run's own checks; the manifest (`stage_manifest`)
comes last. The same command continues after a failure. A model in a folder of its own stays there.
A token is read and never written.
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events
from evalkit.host import stage_manifest
from evalkit.host.stage_manifest import StagedDataset, StagedModel
from evalkit.inputs import hub
from evalkit.inputs import suite as suites
from evalkit.inputs.locked import Lock, pinned_revision
from evalkit.inputs.models import model as models
from evalkit.inputs.types import FileEntry
from evalkit.run import loading

POLL_S = 0.5  # between two looks at the progress
MADE = 1.5  # bytes that `datasets` writes for each byte that it downloads, besides that byte


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user wants staged."""

    models: tuple[str, ...]
    suite: str
    to: Path
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False


def stage(wanted: Wanted, events: Events) -> Path:
    """Download what is wanted, write the manifest and return its path. The process's environment
    must be that of `stage_manifest.fetching`. Raises EvalkitError; what was downloaded before is
    kept."""
    suite = suites.load(wanted.suite)
    lock = suites.lock_of(suite)
    canon.make_folder(wanted.to / stage_manifest.HOME)
    _announce(wanted, lock, events)
    staged = {reference: _model(reference, wanted, events) for reference in wanted.models}
    loading.load_suite(suite, lock, events, offline=False)
    datasets: dict[str, StagedDataset] = {
        name: {"revision": pinned_revision(dataset) or "unknown", "licence": dataset["licence"]}
        for name, dataset in lock.datasets.items()
    }
    events.say("writing the manifest")
    body = stage_manifest.write(wanted.to, staged, {suite.name: {"datasets": datasets}})
    size = sum(entry["size"] for entry in body["files"].values())
    events.say(f"staged: {len(body['files']):,} files, {_bytes(size)}")
    return wanted.to / stage_manifest.NAME


def _announce(wanted: Wanted, lock: Lock, events: Events) -> None:
    """Say what will be downloaded; EvalkitError (3) where the disk has no room for it."""
    total = 0.0
    for reference in wanted.models:
        if models.is_on_hub(reference):
            size = sum(models.fetched_sizes(hub.sizes(reference, "model", wanted.revision)))
            total += size
            events.say(f"model    {reference}: {_bytes(size)}")
    for name, dataset in lock.datasets.items():
        if not name.startswith(suites.OWN_FILES):
            size = _dataset_size(name, lock)
            total += size * (1 + MADE)
            pinned, licence = pinned_revision(dataset), dataset["licence"]
            at = f"at {pinned[:12]}" if pinned else "as it is now"
            events.say(f"dataset  {name} {at}: at most {_bytes(size)}, licence {licence}")
    present = _size(wanted.to / stage_manifest.HOME)
    free = shutil.disk_usage(wanted.to).free
    if total - present > free:
        raise EvalkitError(
            f"{_bytes(total - present)} are to come and {_bytes(free)} are free",
            where=str(wanted.to),
            fix="free space or stage elsewhere (--to)",
            code=Exit.MISSING,
        )


def _dataset_size(name: str, lock: Lock) -> int:
    """Return the bytes of the wanted configurations' folders, or of all files if none has one."""
    sizes = hub.sizes(name, "dataset", pinned_revision(lock.datasets[name]))
    configs = {t["config"] for t in lock.tasks.values() if t["dataset"] == name}
    folders = {part for path in sizes for part in Path(path).parent.parts}
    if not configs <= folders:
        return sum(sizes.values())
    return sum(size for path, size in sizes.items() if configs & {*Path(path).parent.parts})


def _model(reference: str, wanted: Wanted, events: Events) -> StagedModel:
    on_hub = models.is_on_hub(reference)
    with _progress(wanted.to, events):
        model = models.resolve(
            reference,
            revision=wanted.revision if on_hub else None,
            allow_pickle=wanted.allow_pickle,
            trust_remote_code=wanted.trust_remote_code,
        )
        card = model.folder / "README.md"
        licence = hub.licence(reference, model.revision) if on_hub else hub.licence_in(card)
    files: dict[str, FileEntry] = {
        name: {"size": entry["size"], "sha256": entry["sha256"]}
        for name, entry in model.own_files().items()
    }
    size = sum(entry["size"] for entry in files.values())
    at = f" at {model.revision[:12]}" if model.revision else ""
    events.say(f"model    {reference}{at}: {_bytes(size)} are there, licence {licence}")
    return {
        "revision": model.revision,
        "folder": None if on_hub else os.fspath(Path(model.source or model.folder).resolve()),
        "licence": licence,
        "files": files,
    }


@contextmanager
def _progress(folder: Path, events: Events) -> Iterator[None]:
    """Within the block, show how many bytes arrive in a stage."""
    before, over = _size(folder / stage_manifest.HOME), threading.Event()
    with events.phase("fetch", 0, "bytes") as phase:

        def watch() -> None:
            while not over.wait(POLL_S):
                phase.advance(max(_size(folder / stage_manifest.HOME) - before - phase.done, 0))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _size(folder: Path) -> int:
    """Return the bytes in a folder that is being written; a linked file counts once."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:  # a part that was renamed meanwhile
            continue
    return total


def pack(folder: Path, file: Path, events: Events) -> None:
    """Make one read-only file of a whole stage, since cluster file systems limit the number of
    files. Raises EvalkitError where mksquashfs is missing or fails."""
    stage_manifest.read(folder)
    part = canon.beside(file)
    command = ["mksquashfs", os.fspath(folder), os.fspath(part), "-noappend", "-all-root",
               "-no-progress", "-quiet", "-no-xattrs", "-comp", "zstd"]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise EvalkitError(
            "--squashfs needs the program mksquashfs, which is not here",
            fix="install squashfs-tools, or use the folder as it is",
            code=Exit.MISSING,
        ) from None
    except subprocess.CalledProcessError as error:
        part.unlink(missing_ok=True)
        last = (error.stderr or error.stdout).strip().splitlines()[-1:]
        raise EvalkitError(
            f"mksquashfs failed: {' '.join(last)}", where=os.fspath(file), code=Exit.MISSING
        ) from None
    part.replace(file)
    digest = canon.sha256_file(file)
    events.say(f"packed   {file}: {_bytes(file.stat().st_size)}, sha256 {digest}")


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
