"""`pack`: a finished run as one .tar.gz that says the same whoever packs it.

A whole pack holds all that `verify` reads. A public one is for data that may not be passed on
(`public_form`); its files are signed by themselves. A file that is not as the record lists it, a
link's target, and whatever holds this machine's paths or secrets are not packed.
"""

import gzip
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.record import salted
from evalkit.record.packs import archive, public_form
from evalkit.record.reading import identity
from evalkit.record.reading.folder import Folder, MiB, foreign, most_unpacked
from evalkit.record.signing import attest
from evalkit.record.signing.keys import Private
from evalkit.record.types import Record

_SECRET = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "CREDENTIAL")  # in a variable's name
_MIN_SECRET = 8


def pack(
    run: Path, *, public: bool = False, key: Private | None = None, out: Path | None = None
) -> Path:
    """Write <run>.tar.gz, or <run>.public.tar.gz, beside a finished run's folder or into `out`; its
    path. `key` signs a public pack's own files. EvalkitError (1) where a file is not as the record
    lists it, a whole pack would pass on texts that may not be, or a secret or path of this machine
    stands in it."""
    if key is not None and not public:
        fix = "`evalkit sign` signs a run, and its pack holds what was signed"
        raise EvalkitError("--key is for --public", fix=fix)
    with foreign(run):
        record = _record(run)
        closed = {
            task["dataset"]["repo"]
            for task in record["tasks"].values()
            if not task["dataset"]["redistributable"]
        }
        if closed and not public:
            what = f"the texts of {', '.join(sorted(closed))} may not be passed on"
            fix = "give --public, which leaves all texts out"
            raise EvalkitError(what, where=str(run), fix=fix, code=Exit.FAILED)
        place = _place(run, out)
        files = _public(run, record, key, place) if public else _whole(run, record)
        path = place / f"{run.name}{'.public' if public else ''}{archive.SUFFIX}"
        canon.write_atomic(path, archive.packed(run.name, _harmless(files)))
    return path


def _place(run: Path, out: Path | None) -> Path:
    """Return the folder to write to; a stranger's run may lie where nobody else can write."""
    if out is None:
        return run.parent
    canon.make_folder(out)
    return out


def reveal(run: Path, name: str, out: Path | None = None) -> Path:
    """Write what opens one document of a run's public pack, `<task>/<doc_id>`, beside the folder or
    into the folder `out`; its path. EvalkitError (2) where there is no such document."""
    task, _, number = name.rpartition("/")
    with foreign(run):
        record = _record(run)
        known = task in record["tasks"] and number.isdecimal() and len(number) < 10
        salts = salted.salts_of(run, _place(run, out))
        found = public_form.revealed(run, record, task, int(number), salts) if known else None
    if found is None:
        raise EvalkitError(f"the run has no document '{name}'", fix="write <task>/<doc_id>")
    path = _place(run, out) / f"{run.name}.{task}-{number}.revealed.json"
    canon.write_json(path, found)
    return path


def _record(run: Path) -> Record:
    identity.require(run)
    record: Record = canon.read_json(run / "record.json")
    if problems := schema.check("record", record):
        raise EvalkitError(f"record.json is not a record: {problems[0]}", where=str(run))
    return record


def _whole(run: Path, record: Record) -> Iterator[tuple[str, bytes]]:
    """Yield every file of a run in order, as the record lists it."""
    names = {"record.json", *record["files"], *([attest.NAME] if _signed(run) else [])}
    for name in sorted(names):
        yield name, _listed(run, name, record)


def _listed(run: Path, name: str, record: Record) -> bytes:
    try:
        with Folder(run).reader(name) as handle:
            data = handle.read()
    except OSError as error:
        what = f"can't read {name}: {error.strerror}"
        raise EvalkitError(what, where=str(run), code=Exit.FAILED) from None
    entry = record["files"].get(name)
    if entry and canon.digest_bytes(data) != f"sha256:{entry['sha256']}":
        what = f"{name} is not the file that record.json lists"
        raise EvalkitError(what, where=str(run), fix="run `evalkit verify` on it", code=Exit.FAILED)
    return data


def _signed(run: Path) -> bool:
    return Folder(run).holds(attest.NAME)


def _public(
    run: Path, record: Record, key: Private | None, place: Path
) -> Iterator[tuple[str, bytes]]:
    """Yield the record, the lock, what was signed, and of the samples what is no text."""
    for name in record["files"]:
        _listed(run, name, record)  # what follows is made of files that are the record's
    data = _listed(run, "record.json", record)
    made = public_form.made(run, record, salted.salts_of(run, place))
    signed = _listed(run, attest.NAME, record) if _signed(run) else None
    if key is not None:
        sha256 = {name: hashlib.sha256(each).hexdigest() for name, each in made.items()}
        own = hashlib.sha256(data).hexdigest()
        body = attest.statement(record, own, attest.PUBLICATION, {}, sha256)
        signed = attest.added(signed, attest.seal(body, key), key.public)
    if signed is not None:
        yield attest.NAME, signed
    yield "lock.yaml", _listed(run, "lock.yaml", record)
    yield from made.items()
    yield "record.json", data


def _harmless(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Yield the files; EvalkitError where a secret, the home or the working folder is in one."""
    secrets = {
        value.encode(): f"the value of {name}"
        for name, value in os.environ.items()
        if any(mark in name.upper() for mark in _SECRET) and len(value) >= _MIN_SECRET
    }
    for place in (Path.home(), Path.cwd()):
        if len(place.parts) > 2:  # not "/" or "/root", which may be a word
            secrets[os.fsencode(place)] = "a path of this machine"
    overlap = max(map(len, secrets), default=1) - 1
    for name, data in files:
        for text in _texts(name, data, overlap):
            for secret, what in secrets.items():
                if secret in text:
                    raise EvalkitError(f"{what} stands in {name}", fix="unset it or mend the run",
                                       code=Exit.FAILED)  # fmt: skip
        yield name, data


def _texts(name: str, data: bytes, overlap: int) -> Iterator[bytes]:
    """Yield a file's content; of a compressed one a block at a time, each with the end of the one
    before it: a stranger's may unpack to a thousand times its size."""
    if not name.endswith(".gz"):
        yield data
        return
    total, most, end = 0, most_unpacked(len(data)), b""
    with gzip.open(io.BytesIO(data), "rb") as stream:
        while block := stream.read(archive.BLOCK):
            total += len(block)
            if total > most:
                what = f"{name} unpacks to more than {most // MiB:,} MiB"
                raise EvalkitError(what, code=Exit.FAILED)
            yield end + block
            end = (end + block)[-overlap:] if overlap else b""
