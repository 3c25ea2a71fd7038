"""What honest runs on real hosts may look like, each of which must be CONSISTENT: clocks, names,
losses, copies and colleagues, as people have them. A check of verify that fails one of these takes
an accident for a lie.

Each makes the small run's folder at a path as such a host would have left it.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runs
import yaml
from forgeries import DAY, identified, recorded, segments
from runs import Run

from evalkit.record import segments as segment_names

Value = dict[str, Any]
Make = Callable[[Path], Path]


def shipped_suite(folder: Path) -> Path:
    """Write the small run's suite into a folder, as evalkit ships one, and return the folder."""
    run = Run()
    suite = {"name": "tiny", "tasks": [task["task"] for task in run.suite["tasks"]]}
    (folder / "tiny.lock.yaml").write_text(yaml.safe_dump(run.lock))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(suite))
    return folder


def _changed(change: Callable[[Value], Any]) -> Make:
    """The run with a changed record and what follows from it."""
    return lambda folder: recorded(change).write(folder)


def _answered(change: Callable[[str, Value], Value], **numerics: Any) -> Make:
    """The run with other answers, computed with other numerics."""

    def make(folder: Path) -> Path:
        run = Run(answer=change)
        run.record["numerics"] |= numerics
        return identified(run).write(folder)

    return make


def _with(*names: str) -> Make:
    """Files that nobody meant to be there."""

    def make(folder: Path) -> Path:
        Run().write(folder)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"anything")
        return folder

    return make


# Who answered: containers, clocks, hosts

OTHER = runs.SEGMENT.replace("030405", "030406").replace("abcd", "abce")


def _by(name: str, **fields: Any) -> Make:
    """The run with its one segment called otherwise."""

    def make(folder: Path) -> Path:
        run = Run(segment=name)
        run.record["segments"][0] |= fields
        return identified(run).write(folder)

    return make


def _on(host: str) -> Make:
    """The run on a host of that name."""
    return _by(segment_names.name("2026-01-02T03:04:05.678Z", host), host=host)


def _hosts(hardware: str) -> Callable[[Value], None]:
    """A second segment, on another machine, that answered nothing first."""

    def change(record: Value) -> None:
        record["segments"].append(runs.segment(OTHER, 0, hardware) | {"host": "host"})

    return change


LOST = {"unknown": "its events were lost"}
HOSTS: dict[str, Make] = {
    "a run as it should be": lambda folder: Run().write(folder),
    "a part of a suite": lambda folder: Run(limit=2).write(folder),
    "two containers on a node whose processes have one number, at one time": _changed(
        segments((runs.SEGMENT, f"{DAY}:04:05Z", f"{DAY}:04:09Z", 8),
                 (OTHER, f"{DAY}:04:06Z", f"{DAY}:04:08Z", 0))
    ),
    "a clock set back in mid-segment": _changed(
        segments((runs.SEGMENT, f"{DAY}:04:05Z", f"{DAY}:04:01Z", 8))
    ),
    "a clock that is years behind": _by(
        "19700101T000107Z-host-1-abcd", started="1970-01-01T00:01:07Z"
    ),
    "a host that slept for a night": _changed(
        segments((runs.SEGMENT, f"{DAY}:04:05Z", "2026-01-03T14:00:00Z", 8))
    ),
    "a segment that was killed": _changed(
        lambda r: r["segments"][0].update(stopped={"unknown": "it was killed"})
    ),
    "a host without a name": _on(""),
    "a host whose name is not of ASCII letters": _on("bücher-rechner-ß"),
    "a host whose name is all other letters": _on("計算機"),
    "a host with a long name": _on("gpu-node-0123456789." * 9),
    "a host called by an address": _on("10.0.0.7"),
    "a machine that lost power, and what it said of itself": _changed(
        lambda r: r["segments"][0].update(
            started=LOST, stopped=LOST, host=LOST, hardware=dict(LOST)
        )
    ),
    "two kinds of GPU": _changed(_hosts("another processor")),
    "shards that end at once": _changed(
        segments((runs.SEGMENT, f"{DAY}:04:05Z", f"{DAY}:04:09Z", 8),
                 (OTHER, f"{DAY}:04:06Z", f"{DAY}:04:09Z", 0))
    ),
}  # fmt: skip


# What a journal looks like after an accident


def _journal(change: Callable[[bytes], bytes]) -> Make:
    def make(folder: Path) -> Path:
        Run().write(folder)
        name = f"journal/{runs.SEGMENT}.jsonl"
        data = change((folder / name).read_bytes())
        (folder / name).write_bytes(data)
        record = runs.read_record(folder)
        record["files"][name] = {"size": len(data), "sha256": runs.sha256(data)}
        runs.write_record(folder, record)
        return folder

    return make


def _first(data: bytes) -> bytes:
    return data.splitlines(keepends=True)[0]


ACCIDENTS: dict[str, Make] = {
    "killed in mid-line, and gone on": _journal(lambda data: _first(data)[:99] + b"\n" + data),
    "killed in mid-line at the end": _journal(lambda data: data + _first(data)[:99]),
    "power lost: a block of zeros": _journal(lambda data: b"\0" * 4096 + b"\n" + data),
    "a batch answered twice, equally": _journal(lambda data: data + _first(data)),
}


# What a model on real hardware may answer


def _choices(*answers: tuple[float, bool]) -> Callable[[str, Value], Value]:
    """A letters task's first document: the log-likelihood of each letter, and whether it was the
    likeliest of its own row."""

    def change(part: str, answer: Value) -> Value:
        if not part.startswith("mmlu_anatomy/0/"):
            return answer
        value, greedy = answers[int(part.split("/")[2])]
        return answer | {"loglikelihood": value, "is_greedy": greedy}

    return change


TIED = _choices((-0.9, True), (-0.89, True), (-8.0, False), (-7.0, False))
COARSE = _choices((-1.9, True), (-0.9, True), (-8.0, False), (-7.0, False))


def _engine(change: Callable[[str, Value], Value]) -> Make:
    """A suite of one's own, answered by an engine of lm-eval's."""

    def make(folder: Path) -> Path:
        run = Run(answer=change, leave_out=("mmlu_anatomy",), name="own")  # whose rows are trees
        run.record["engine"] |= {"name": "lm-eval:hf", "level": "none", "bit_repeatable": False,
                                 "versions": {"lm_eval": "0.4.13"}}  # fmt: skip
        unknown = {"unknown": "lm-eval:hf decides it"}
        run.record["numerics"] = dict.fromkeys(run.record["numerics"], unknown)
        run.plan["level"] = "none"
        return identified(run).write(folder)

    return make


def _one_token(folder: Path) -> Path:
    """Two letters that are one token to a small vocabulary: of whatever it lacks."""
    kept = runs.last_token
    runs.last_token = lambda part: kept(part) - part.startswith("mmlu_anatomy/0/1")
    try:
        change = _choices((-0.1, True), (-0.1, True), (-8.0, False), (-7.0, False))
        run = Run(answer=change)
        run.record["health"]["exact_ties"] = 1
        return run.write(folder)
    finally:
        runs.last_token = kept


ANSWERS: dict[str, Make] = {
    "two choices that are one token": _one_token,
    "two choices that tie, each the likeliest in its own row": _answered(TIED),
    "the same in bfloat16, where rows computed apart are further apart": _answered(
        COARSE, dtype="bfloat16"
    ),
    "no answer but minus infinity": _answered(
        lambda part, answer: (
            answer | {"loglikelihood": "-inf", "is_greedy": False}
            if part.startswith("arc_challenge/1/0")
            else answer
        )
    ),
    "an engine that takes the softmax in bfloat16, and two tokens that tie at a half": _engine(
        lambda part, answer: (
            answer | {"loglikelihood": -0.69140625, "is_greedy": False}
            if part.startswith("arc_challenge/1/0")
            else answer
        )
    ),
    "a server that compares tokens as texts": _engine(
        lambda part, answer: (
            answer | {"loglikelihood": -0.001, "is_greedy": False}
            if part.startswith("arc_challenge/1/0")
            else answer
        )
    ),
}


# Where it was installed


def _of_another_release(folder: Path) -> Path:
    """A shipped suite's lock as another release of evalkit had it."""
    run = Run()
    run.lock["datasets"][run.lock["tasks"]["whole_texts"]["dataset"]]["licence"] = "another"
    run.record["tasks"]["whole_texts"]["dataset"]["licence"] = "another"
    for part in ("versions", "packages"):
        run.record["environment"][part]["evalkit"] = "0.1.9"
    return identified(run).write(folder)


def _later(folder: Path) -> Path:
    run = Run()
    run.results["enable_thinking"] = None
    for part in ("versions", "packages"):
        run.record["environment"][part]["evalkit"] = "9.1.0"
    return identified(run).write(folder)


SOFTWARE: dict[str, Make] = {
    "scored where another transformers is installed than where it was answered": _changed(
        lambda r: (
            r["environment"]["packages"].update(transformers="5.1", lm_eval="0.4.12"),
            r["environment"]["versions"].update(transformers="5.1"),
        )
    ),
    "answered where lm-eval is not installed": _changed(
        lambda r: (
            r["environment"]["packages"].pop("lm_eval"),
            r["environment"].update(harness_intact={"unknown": "lm-eval is not installed"}),
        )
    ),
    "a suite whose shipped lock has been mended since": _of_another_release,
    "a later release, whose lm-eval writes one field more": _later,
    "a package that its installer writes with a hyphen": _changed(
        lambda r: (
            r["environment"]["packages"].update({"Lm-Eval": "0.4.13"})
            or r["environment"]["packages"].pop("lm_eval")
        )
    ),
}


# Where it lies


def _moved(folder: Path) -> Path:
    """Renamed, copied, with other times and modes."""
    first = Run().write(folder.with_name("first"))
    shutil.copytree(first, folder)
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (0, 0))
        path.chmod(0o755 if path.is_dir() else 0o444)
    return folder


def _linked(folder: Path) -> Path:
    Run().write(folder.with_name("first"))
    folder.symlink_to(folder.with_name("first"))
    return folder


PLACES: dict[str, Make] = {
    "moved, read-only, of 1970": _moved,
    "a link to it": _linked,
    "a folder with spaces and other letters": lambda folder: Run().write(
        folder.with_name("meine Läufe 計")
    ),
    "looked at with a Mac": _with(".DS_Store", "journal/.DS_Store", "._record.json"),
    "looked at with Windows": _with("Thumbs.db", "desktop.ini"),
    "on NFS, a removed file still open": _with("journal/.nfs000000000123abcd00000001"),
    "killed after the record, before the lock was given back": _with(".lock"),
    "killed while it was signed": _with(".attestation.json.0123456789ab.part"),
}

VARIATIONS = HOSTS | ACCIDENTS | ANSWERS | SOFTWARE | PLACES
