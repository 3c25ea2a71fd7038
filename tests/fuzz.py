"""Verify on records that were changed at random: `python tests/fuzz.py FIRST COUNT FOLDER`.

Each case takes a run, a public pack, a pack, a results folder with its log, or plain lm-eval's
folder, changes a few bytes, values or whole structures, or exchanges values for others of their
form, and in most cases puts the digests and ids right, so that what lies behind them is reached.
Then compare, report and export look at it too. It may end in any verdict, or in an EvalkitError;
nothing else. An audit hook ends the process at once where anything is written, started or fetched.
Prints one JSON object: cases, verdicts, the slowest case, peak memory.
"""

import copy
import gzip
import json
import os
import random
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import runs
import tamper
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from runs import Run
from verifying import scalars

from evalkit.base.errors import EvalkitError
from evalkit.base.machine import stamp
from evalkit.harness.scoring import rescore
from evalkit.judge.verify import Wanted, judge
from evalkit.record import auditlog, salted
from evalkit.record.packs import archive, pack
from evalkit.record.reading import scored
from evalkit.record.reading.folder import foreign
from evalkit.record.signing import attest, keys
from evalkit.show import export, report

MEMORY = 3 << 30  # bytes of address space: the imports of lm-eval alone take one
SLOW = 20.0  # seconds
REFUSED = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen",
           "socket.connect", "socket.getaddrinfo", "ctypes.dlopen", "webbrowser.open")  # fmt: skip
PAYLOADS = (
    "{{cycler.__init__.__globals__.os.popen('touch /tmp/owned').read()}}",
    "!!python/object/apply:os.system ['true']",
    "!function os.system",
    "__import__('os').system('true')",
    "../../../../etc/passwd",
    "/etc/passwd",
)
HOSTILE: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        10**11,
        2**63,
        10**400,
        -(10**400),
        0.0,
        -0.0,
        1e308,
        1e-320,
    ),
    *("", "nan", "inf", "-inf", "\ud800", "\x00", "\x1b[2J", "\u202e", "x" * 100_000, "1" * 5000),
    *([], {}, [[]], {"": {}}, [None] * 1000, {"unknown": "x"}, {"unknown": ""}, *PAYLOADS),
)


class Watch:
    """The audit hook. `writable`: where a case may write; nothing while verify runs."""

    def __init__(self) -> None:
        self.on = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and _writing(args) and "evalkit-pack-" not in str(args[0])
        if writes or event.startswith(REFUSED):
            sys.stderr.write(f"\nFORBIDDEN {event} {args!r}\n")
            sys.stderr.flush()
            os._exit(99)


def _writing(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2]
    if isinstance(args[0], int) or str(args[0]) in ("/dev/null", os.devnull):
        return False
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return bool(int(flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def bytes_changed(rng: random.Random, data: bytes) -> bytes:
    """Some bytes otherwise, more or fewer."""
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(len(made) + 1)
        how = rng.randrange(5)
        if how == 0 and made:
            made[min(at, len(made) - 1)] = rng.randrange(256)
        elif how == 1:
            made[at:at] = rng.randbytes(rng.choice([1, 4, 100]))
        elif how == 2:
            del made[at : at + rng.choice([1, 10, 1000])]
        elif how == 3:
            made[at:at] = made[at : at + 200] * rng.choice([1, 2, 50])
        else:
            made[at:at] = rng.choice([b"[" * 50_000, b'{"a":' * 5000, b"\n", b"\x00", b"NaN", b","])
    return bytes(made)


def value_changed(rng: random.Random, value: Any) -> Any:
    """Some of a value's parts otherwise, gone, doubled or exchanged; at any depth."""
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        places = list(scalars(value))
        if not places:
            return copy.deepcopy(rng.choice(HOSTILE))
        where = rng.choice(places)
        where = where[: rng.randrange(1, len(where) + 1)] if where else where
        if not where:
            return copy.deepcopy(rng.choice(HOSTILE))
        parent = value
        for step in where[:-1]:
            parent = parent[step]
        how, last = rng.randrange(6), where[-1]
        if how <= 2:
            parent[last] = copy.deepcopy(rng.choice(HOSTILE))
        elif how == 3:
            del parent[last]
        elif how == 4 and isinstance(parent, dict):
            parent[rng.choice(["", "x", "task", "\ud800", *PAYLOADS])] = copy.deepcopy(parent[last])
        elif isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[last]))
        else:
            other = parent[rng.choice(list(parent))]
            parent[last] = copy.deepcopy(other)
    return value


def changed(rng: random.Random, name: str, data: bytes) -> bytes:
    """A file otherwise: its bytes, its text, or the values in it."""
    packed = name.endswith(".gz")
    if rng.random() < 0.25 or name == "plan.tokens":
        return bytes_changed(rng, data)
    if rng.random() < 0.15:
        text = bytes_changed(rng, gzip.decompress(data) if packed else data)
        return gzip.compress(text, 1, mtime=0) if packed else text
    values = tamper.values(name, data)
    if not values:
        return bytes_changed(rng, data)
    number = rng.randrange(len(values))
    values[number] = value_changed(rng, values[number])
    if name.startswith("journal") and isinstance(values[number], dict) and rng.random() < 0.8:
        values[number] = _sealed(values[number])
    if rng.random() < 0.1:
        rng.shuffle(values)
    try:
        return tamper.data_of(name, values)
    except (UnicodeEncodeError, ValueError):  # a lone surrogate: as JSON may write it
        return json.dumps(values[number]).encode()


def _sealed(line: Any) -> Any:
    try:
        return runs.seal(line)
    except (UnicodeEncodeError, ValueError):
        return line


def resealed(rng: random.Random, folder: Path, name: str, data: bytes) -> None:
    """Put a file there, and in most cases its digest and size into the record."""
    (folder / name).write_bytes(data)
    try:
        record = runs.read_record(folder)
        if name != "record.json" and name in record["files"] and rng.random() < 0.85:
            record["files"][name] = {"size": len(data), "sha256": runs.sha256(data)}
            runs.write_record(folder, record)
    except (ValueError, LookupError, TypeError, RecursionError):  # a record changed before
        return


def run_case(rng: random.Random, seeds: Path, place: Path) -> list[Path]:
    """A run's folder with one to three of its files otherwise."""
    folder = tamper.copied(seeds / rng.choice(["run", "signed", "limited"]), place / "run")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    for name in rng.sample(names, rng.choice([1, 1, 2, 3])):
        resealed(rng, folder, name, changed(rng, name, (folder / name).read_bytes()))
    return [folder]


def shaped(rng: random.Random, value: Any) -> Any:
    """A value with one to four scalars exchanged for others of their kind, so that its form holds:
    neighbours, what stands elsewhere, a little more or less, another sign."""
    places = [where for where in scalars(value) if where]
    for _ in range(rng.choice([1, 1, 2, 4])) if places else ():
        where, other = rng.choice(places), _at(value, rng.choice(places))
        old, parent = _at(value, where), _at(value, where[:-1])
        if isinstance(old, bool) or old is None:
            made: Any = not old
        elif isinstance(old, int):
            made = rng.choice([old + 1, old - 1, -old, 0, 10 * old, 2**31])
        elif isinstance(old, float):
            made = rng.choice([-old, old + 1e-9, old * 1.5, 0.0, 1e308, "nan", "-inf"])
        elif isinstance(other, str) and rng.random() < 0.7:
            made = other
        else:
            made = old[::-1] if rng.random() < 0.5 else old + rng.choice(["\n", " ", "0", old])
        parent[where[-1]] = made
    return value


def _at(value: Any, where: tuple[Any, ...]) -> Any:
    for step in where:
        value = value[step]
    return value


def shaped_case(rng: random.Random, seeds: Path, place: Path) -> list[Path]:
    """A run in which values were exchanged for others of their form, and every digest and id put
    right that follows from them."""
    folder = tamper.copied(seeds / rng.choice(["run", "signed", "limited"]), place / "run")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    named = [name for name in names if name not in ("plan.tokens", attest.NAME)]
    for name in rng.sample(named, rng.choice([1, 1, 2])):
        values = tamper.values(name, (folder / name).read_bytes())
        if not values:
            continue
        number = rng.randrange(len(values))
        values[number] = shaped(rng, values[number])
        if name.startswith("journal"):
            values[number] = _sealed(values[number])
        data = tamper.data_of(name, values)
        (folder / name).write_bytes(data)
        record = runs.read_record(folder)
        if name in record["files"]:
            record["files"][name] = {"size": len(data), "sha256": runs.sha256(data)}
        asked = {k: v for k, v in record["suite"].items() if k not in ("name", "partial")}
        record["ids"] |= {"suite": runs.digest(asked), "answers": runs.digest(record["answers"])}
        with suppress(TypeError, LookupError, AttributeError):
            record["ids"]["run"] = runs.run_id(record)
        runs.write_record(folder, record)
    return [folder]


def public_case(rng: random.Random, seeds: Path, place: Path) -> list[Path]:
    """A public pack's folder likewise."""
    folder = tamper.copied(seeds / "public", place / "public")
    name = rng.choice([salted.HEAD, salted.LINES, salted.LINES, "record.json", "lock.yaml"])
    (folder / name).write_bytes(changed(rng, name, (folder / name).read_bytes()))
    return [folder]


def pack_case(rng: random.Random, seeds: Path, place: Path) -> list[Path]:
    """A pack with bytes otherwise, of the archive or of what is packed."""
    data = (seeds / "run.tar.gz").read_bytes()
    inner = bytes_changed(rng, gzip.decompress(data))
    made = bytes_changed(rng, data) if rng.random() < 0.3 else gzip.compress(inner, 1, mtime=0)
    place.mkdir(exist_ok=True)
    (place / "pack").write_bytes(made)
    return [place / "pack"]


def log_case(rng: random.Random, seeds: Path, place: Path) -> list[Path]:
    """A results folder whose log is otherwise."""
    folder = tamper.copied(seeds / "results", place / "results")
    path = folder / auditlog.NAME
    path.write_bytes(changed(rng, "audit.jsonl", path.read_bytes()))
    return [folder]


def plain_case(rng: random.Random, seeds: Path, place: Path) -> list[Path]:
    """Plain lm-eval's folder with one of its files otherwise."""
    folder = tamper.copied(seeds / "plain", place / "plain")
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    path.write_bytes(changed(rng, path.name, path.read_bytes()))
    return [folder]


CASES: tuple[Callable[[random.Random, Path, Path], list[Path]], ...] = (
    *([run_case] * 8),
    *([shaped_case] * 8),
    *([public_case] * 3),
    *([plain_case] * 3),
    pack_case,
    log_case,
)


def seeds_in(folder: Path) -> Path:
    """What the cases are made of."""
    from test_judge import plain

    Run().write(folder / "run")
    Run(limit=2).write(folder / "limited")
    signed = Run().write(folder / "signed")
    attest.sign(signed, keys.Private(Ed25519PrivateKey.generate()))
    pack.pack(folder / "run")
    with archive.unpacked(pack.pack(folder / "run", public=True)) as public:
        shutil.copytree(public, folder / "public")
    plain(Run(), folder / "plain")
    shutil.copytree(folder / "run", folder / "results" / "model" / "run")
    record = runs.read_record(folder / "run")
    line = {"execution": record["execution"], "ids": record["ids"], "run": "model/run"}
    for _ in range(3):
        auditlog.append(folder / "results", "finished", line)
    return folder


def report_of(path: Path) -> str:
    """The page of a run, not written."""
    with foreign(path):
        return report._text([path], path / "report.html", report.Options())


def looked_at(path: Path) -> None:
    """The same by those who only look: no more than an EvalkitError."""
    if not (path / "record.json").is_file():
        return
    for look in (
        lambda: scored.read(path),
        lambda: export.write([path], "every-eval-ever", None, unverified=True),
        lambda: export.write([path], "csv", None, unverified=True),
        lambda: report_of(path),
    ):
        with suppress(EvalkitError):
            look()


def main(first: int, count: int, folder: Path) -> None:
    """Run the cases of these numbers; the first thing that should not be ends it."""
    installed = rescore.installed
    seeds = seeds_in(folder / "seeds")
    judge([seeds / "run", seeds / "plain"], Wanted())  # imports done
    watch = Watch()
    sys.addaudithook(watch)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    verdicts: Counter[str] = Counter()
    slowest = 0.0
    for number in range(first, first + count):
        rng = random.Random(number)
        rescore.installed = installed if rng.random() < 0.03 else lambda: None
        paths = rng.choice(CASES)(rng, seeds, folder / "case")
        began, watch.on = time.perf_counter(), True
        try:
            found = judge(paths, Wanted())
            text = "\n".join([*found.lines(), found.to_json()])
            looked_at(paths[0])
        except EvalkitError as error:
            text = f"{error}\nERROR: {error.code}"
        except BaseException:
            watch.on = False
            sys.stderr.write(f"case {number}: {paths}\n")
            raise
        watch.on = False
        taken = time.perf_counter() - began
        assert taken < SLOW, f"case {number} took {taken:.1f} s"
        assert "\x1b" not in text, f"case {number} writes to the terminal"
        slowest = max(slowest, taken)
        verdicts[_word(text)] += 1
        shutil.rmtree(folder / "case", ignore_errors=True)
    peak = stamp.peak_memory_bytes()
    print(json.dumps({"cases": count, "verdicts": verdicts, "slowest": slowest, "peak": peak}))


def _word(text: str) -> str:
    lines = text.splitlines()
    words = [line for line in lines if line.split(":")[0] in ("BROKEN", "CONSISTENT", "UNREADABLE",
             "UNMET", "ERROR") or line.startswith(("1 ", "2 "))]  # fmt: skip
    return words[-1].split(":")[0] if words else "?"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
