"""Inputs that are made to take all of a reader's time or memory, each with what is to read it.

`scale` makes them smaller for the tests that run each time; at 1 each is at most 64 MiB.
"""

import base64
import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from runs import Run
from test_judge import plain

from evalkit.record.signing import attest, keys

MIB = 1 << 20


@dataclass(frozen=True)
class Input:
    """What it is, how it is made, and the command that is given its path."""

    what: str
    command: tuple[str, ...]
    make: Callable[[Path, float], Path]


def resealed(folder: Path, name: str, data: bytes) -> Path:
    """A file put there, with its digest in the record."""
    record = runs.read_record(folder)
    record["files"][name] = {"size": len(data), "sha256": runs.sha256(data)}
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    runs.write_record(folder, record)
    return folder


def run(place: Path) -> Path:
    """A good run."""
    return Run().write(place / "run")


def record_text(place: Path, text: bytes) -> Path:
    """A run whose record.json is this."""
    folder = run(place)
    (folder / "record.json").write_bytes(text)
    return folder


def a_key_twice(place: Path, scale: float) -> Path:
    count = int(1_500_000 * scale)
    keys = ",".join(f'"k{i}":0' for i in range(count))
    return record_text(place, b"{" + keys.encode() + b',"k0":1}')


def brackets(place: Path, scale: float) -> Path:
    return record_text(place, b"[" + b"[]," * int(20 * MIB * scale) + b"0]")


def packages(place: Path, scale: float) -> Path:
    folder = run(place)
    record = runs.read_record(folder)
    many = {f"package-{i}": "1.0" for i in range(int(1_000_000 * scale))}
    record["environment"]["packages"] |= many
    runs.write_record(folder, record)
    return folder


def nested(place: Path, scale: float) -> Path:
    """Groups that each name the next one twice, so that there are 2^n ways through them."""
    folder = run(place)
    record = runs.read_record(folder)
    group, count = record["groups"]["science"], max(24, int(4_000 * scale))
    for index in range(count):
        after = [f"group{index + 1}"] * 2 if index + 1 < count else ["arc_challenge"]
        record["groups"][f"group{index}"] = group | {"subtasks": after}
    runs.write_record(folder, record)
    return folder


def sixties(place: Path, scale: float) -> Path:
    return resealed(run(place), "lock.yaml", b"schema: 1" + b":1" * int(8 * MIB * scale) + b"\n")


def yaml_parts(place: Path, scale: float) -> Path:
    return resealed(run(place), "lock.yaml", b"- a\n" * int(4 * MIB * scale))


def filtered(place: Path, scale: float) -> Path:
    """A text on which lm-eval's own filter of that task needs quadratic time."""
    text = "the answer is " * int(400_000 * scale) + "\n"

    def answer(name: str, said: dict[str, Any]) -> dict[str, Any]:
        return said | {"text": text} if name.startswith("bbh") else said

    return Run(answer=answer).write(place / "run")


def unknown_keys(place: Path, scale: float) -> Path:
    folder = run(place)
    attest.sign(folder, keys.Private(Ed25519PrivateKey.generate()))
    path = folder / attest.NAME
    body = json.loads(path.read_text())
    made = [keys.Private(Ed25519PrivateKey.generate()) for _ in range(max(30, int(1000 * scale)))]
    body["keys"] = {key.public.id: key.public.openssh for key in made}
    signature = {"keyid": "0" * 64, "sig": base64.b64encode(bytes(64)).decode()}
    envelope = body["envelopes"][0] | {"signatures": [signature] * 100}
    body["envelopes"] = [envelope] * max(3, int(1000 * scale))
    path.write_text(json.dumps(body))
    return folder


def empty_files(place: Path, scale: float) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for index in range(int(20_001 * scale)):
            made.addfile(tarfile.TarInfo(f"run/{index}"))
    path = place / "run.tar.gz"
    path.write_bytes(gzip.compress(buffer.getvalue(), 1))
    return path


def zeros(place: Path, scale: float) -> Path:
    """A pack that unpacks to a thousand times its size."""
    info = tarfile.TarInfo("run/record.json")
    info.size = 7 << 30 if scale == 1 else 1 << 25
    path = place / "run.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as packed:
        packed.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(info.size >> 20):
            packed.write(bytes(MIB))
    return path


def bomb(place: Path, scale: float) -> Path:
    """Samples that unpack to a thousand times their size."""
    size = 64 * MIB if scale == 1 else 4 * MIB
    block = gzip.compress(b" " * (size - 1) + b"\n")
    return resealed(run(place), "samples.jsonl.gz", block * max(2, int(1000 * scale)))


def short_lines(place: Path, scale: float) -> Path:
    lines = gzip.compress(b"{}\n" * int(20_000_000 * scale), 1)
    return resealed(run(place), "samples.jsonl.gz", lines)


def journal_lines(place: Path, scale: float) -> Path:
    name = next(n for n in runs.read_record(run(place))["files"] if n.startswith("journal/"))
    return resealed(place / "run", name, b"{}\n" * int(20 * MIB * scale))


def plan_batches(place: Path, scale: float) -> Path:
    body = json.loads((run(place) / "plan.json").read_text())
    body["batches"] *= max(1, int(20_000 * scale))
    return resealed(place / "run", "plan.json", json.dumps(body).encode())


def deep_target(place: Path, scale: float) -> Path:
    made = Run()
    for sample in made.samples:
        sample["target"] = "[" + "-" * int(1_000_000 * scale) + "1]"
        sample["target_hash"] = runs.sha256(sample["target"])
    return made.write(place / "run")


def pipe(place: Path, scale: float) -> Path:
    folder = plain(Run(), place / "lm-eval")
    path = next(folder.glob("*/samples_arc*"))
    path.unlink()
    os.mkfifo(path)
    return folder


def device(place: Path, scale: float) -> Path:
    folder = plain(Run(), place / "lm-eval")
    path = next(folder.glob("*/samples_arc*"))
    path.unlink()
    path.symlink_to("/dev/zero")
    return folder


def results_pipe(place: Path, scale: float) -> Path:
    folder = plain(Run(), place / "lm-eval")
    path = next(folder.glob("*/results_*"))
    path.unlink()
    os.mkfifo(path)
    return folder


def record_pipe(place: Path, scale: float) -> Path:
    (run(place) / "record.json").unlink()
    os.mkfifo(place / "run" / "record.json")
    return place / "run"


def tables(place: Path, scale: float) -> Path:
    paper = place / "paper.tex"
    paper.write_text(r"\begin{tabular}" * int(4_000_000 * scale))
    return paper


def odd_sample(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, float], Path]:
    """lm-eval's results with something else in a place."""

    def make(place: Path, scale: float) -> Path:
        folder = plain(Run(), place / "lm-eval")
        path = next(folder.glob("*/results_*"))
        body = json.loads(path.read_text())
        change(body)
        path.write_text(json.dumps(body))
        return folder

    return make


READERS = (("verify",), ("report",), ("export", "--to", "csv"))
INPUTS = [
    Input("a record of 1,500,000 keys, one of them twice", ("verify",), a_key_twice),
    Input("a record of 60 MiB of `[],`", ("verify",), brackets),
    Input("a record of 1,000,000 packages", ("verify",), packages),
    *(Input("4,000 groups, each naming the next twice", c, nested) for c in READERS),
    Input("`lock.yaml` of 16 MiB of `1:1:1`", ("verify",), sixties),
    Input("`lock.yaml` of 4,000,000 items", ("verify",), yaml_parts),
    Input("a generation on which lm-eval's own filter is quadratic", ("verify",), filtered),
    Input("100,000 signatures by unknown keys, 1,000 keys", ("verify",), unknown_keys),
    Input("a pack of 20,001 empty files", ("verify",), empty_files),
    Input("a pack of 7 GiB of zeros", ("verify",), zeros),
    Input("samples that unpack to 62 GB", ("verify",), bomb),
    Input("20,000,000 samples of two bytes", ("verify",), short_lines),
    Input("60 MiB of journal lines of two bytes", ("verify",), journal_lines),
    Input("a plan of one batch 20,000 times", ("verify",), plan_batches),
    Input("a target of a million signs", ("verify",), deep_target),
    *(Input("samples that are a pipe", c, pipe) for c in (("verify",), ("import",), ("report",))),
    *(Input("samples that are `/dev/zero`", c, device) for c in (("verify",), ("import",))),
    Input("results that are a pipe", ("import",), results_pipe),
    *(Input("a record that is a pipe", c, record_pipe) for c in (*READERS, ("validate",))),
    Input("60 MB of `\\begin{tabular}`", ("check-table",), tables),
]
