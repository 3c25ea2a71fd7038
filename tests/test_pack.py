"""A run as one file: the same for everybody, nothing of its host in it, and read as if meant to
harm. A public pack holds no text and is verified all the same."""

import gzip
import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
import support
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from runs import Run
from support import call

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import Deep, Report, Status, Trust, Wanted, judge
from evalkit.record import salted
from evalkit.record.packs import archive, pack
from evalkit.record.reading import folder as reading
from evalkit.record.signing import attest, keys

pytestmark = pytest.mark.usefixtures("without_lm_eval")


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A finished demo run."""
    return support.finished(tmp_path)


def judged(path: Path, wanted: Wanted | None = None) -> Report:
    """What verify makes of a pack."""
    (report,) = judge([path], wanted or Wanted()).reports.values()
    return report


def failed(report: Report) -> dict[str, str]:
    """The failing checks."""
    return {check.name: check.detail for check in report.checks if check.status is Status.FAIL}


def members(path: Path) -> dict[str, bytes]:
    """What is in a pack, by name without its folder."""
    with tarfile.open(path) as tar:
        found = {}
        for member in tar.getmembers():
            handle = tar.extractfile(member)
            assert handle is not None
            found[member.name.partition("/")[2]] = handle.read()
    return found


# a whole pack


def test_a_pack_verifies_as_its_folder_does(demo: Path) -> None:
    path = pack.pack(demo)
    assert path == demo.with_name(f"{demo.name}.tar.gz")
    assert members(path) == dict(_files(demo))
    assert judged(path).lines() == judge([demo], Wanted()).lines()
    assert "made again by lm-eval" in "\n".join(
        judged(path, Wanted(deep=Deep(offline=True))).lines()
    )


def test_a_pack_of_somebody_elses_run_goes_to_a_folder_of_ones_own(
    demo: Path, tmp_path: Path
) -> None:
    """Beside the run one may have no right to write."""
    beside = pack.pack(demo).read_bytes()
    demo.with_name(f"{demo.name}.tar.gz").unlink()
    out = tmp_path / "packs of mine"
    assert call("pack", demo, "--out", out).done().out == f"{out / demo.name}.tar.gz\n"
    assert (out / f"{demo.name}.tar.gz").read_bytes() == beside
    call("pack", demo, "--out", out, "--reveal", "demo_qa/3").done()
    assert (out / f"{demo.name}.demo_qa-3.revealed.json").is_file()
    assert not demo.with_name(f"{demo.name}.tar.gz").exists()
    key = demo.with_name(f"{demo.name}.pack.key")
    call("pack", demo, "--public", "--out", out).done()
    assert (out / key.name).is_file() and not key.exists()


def _files(run: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(run.rglob("*")):
        if path.is_file():
            yield path.relative_to(run).as_posix(), path.read_bytes()


def test_the_same_run_packs_to_the_same_bytes_anywhere(demo: Path, tmp_path: Path) -> None:
    other = shutil.copytree(demo, tmp_path / "elsewhere" / demo.name)
    pack.pack(demo, public=True)
    shutil.copy(f"{demo}.pack.key", other.parent)  # its author's, without which salts are others
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o755 if path.is_dir() else 0o644)
    for public in (False, True):
        one, two = pack.pack(demo, public=public), pack.pack(other, public=public)
        assert one.read_bytes() == two.read_bytes()
    with tarfile.open(pack.pack(demo)) as tar:
        told = {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode) for m in tar.getmembers()}
    assert told == {(0, 0, "", "", 0, 0o644)}


def test_a_signed_run_packs_with_its_signatures(tmp_path: Path) -> None:
    run, key = Run().write(tmp_path / "run"), keys.Private(Ed25519PrivateKey.generate())
    attest.sign(run, key)
    trusted = Wanted(Trust({key.public: "alice"}, asked=True))
    assert judged(pack.pack(run), trusted).verdict.startswith("SIGNED by alice")


def test_what_is_not_as_the_record_lists_it_is_not_packed(tmp_path: Path) -> None:
    run = Run().write(tmp_path / "run")
    (run / "plan.json").write_text("{}")
    for public in (False, True):
        with pytest.raises(EvalkitError, match=r"plan\.json is not the file that record\.json"):
            pack.pack(run, public=public)
    (run / "record.json").unlink()
    with pytest.raises(EvalkitError, match="there is no finished run here"):
        pack.pack(run)
    assert not list(tmp_path.glob("*.tar.gz"))


def test_a_compressed_file_is_looked_through_in_blocks_and_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stranger's unpacked to any size, in memory."""
    monkeypatch.setattr(reading, "SLACK", 1000)
    run = Run()
    run.extra["events/b.jsonl.gz"] = gzip.compress(bytes(1 << 20))
    with pytest.raises(EvalkitError, match=r"events/b\.jsonl\.gz unpacks to more than"):
        pack.pack(run.write(tmp_path / "run"))
    monkeypatch.setattr(archive, "BLOCK", 16)
    monkeypatch.setenv("HF_TOKEN", "hf_planted123")
    for before in range(16):
        run.extra["events/b.jsonl.gz"] = gzip.compress(b"-" * before + b"hf_planted123-----")
        with pytest.raises(EvalkitError, match="the value of HF_TOKEN stands in"):
            pack.pack(run.write(tmp_path / "run"))


def test_secrets_and_paths_of_this_machine_are_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/somewhere/jane")
    monkeypatch.setenv("HF_TOKEN", "hf_planted123")
    for planted, words in (("/somewhere/jane/x", "a path of"), ("hf_planted123", "of HF_TOKEN")):
        run = Run()
        run.extra["events/a.jsonl"] = json.dumps({"event": planted}).encode() + b"\n"
        folder = run.write(tmp_path / words.replace(" ", ""))
        with pytest.raises(EvalkitError, match=f"{words}.* stands? in events/a.jsonl"):
            pack.pack(folder)
        assert not folder.with_name(f"{folder.name}.tar.gz").exists()


def test_texts_that_may_not_be_passed_on_are_packed_only_without_them(tmp_path: Path) -> None:
    run = Run()
    dataset = run.record["tasks"]["arc_challenge"]["dataset"]
    dataset["redistributable"] = run.lock["datasets"][dataset["repo"]]["redistributable"] = False
    folder = run.write(tmp_path / "run")
    ran = call("pack", folder)
    ran.refused(1, dataset["repo"], "may not be passed on", "--public")
    path = Path(call("pack", folder, "--public").done().out.strip())
    assert failed(judged(path)) == {}


# a public one


def sentences(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from sentences(item)
    elif isinstance(value, list):
        for item in value:
            yield from sentences(item)


def test_no_text_of_document_prompt_or_answer_is_in_a_public_pack(demo: Path) -> None:
    packed = members(pack.pack(demo, public=True))
    assert set(packed) == {"lock.yaml", "public.json", "public.jsonl.gz", "record.json"}
    text = b"\n".join(gzip.decompress(d) if n.endswith("gz") else d for n, d in packed.items())
    told: set[str] = set()
    for raw in gzip.decompress((demo / "samples.jsonl.gz").read_bytes()).splitlines():
        sample = json.loads(raw)
        for key in ("doc", "arguments", "target", "resps"):
            told |= {t for t in sentences(sample[key]) if len(t) > 16 and " " in t}
        for key in ("doc_hash", "prompt_hash", "target_hash"):
            told.add(sample[key])  # unsalted: they tell a short target
    assert len(told) > 500
    assert [each for each in told if each.encode() in text] == []
    names = json.loads((demo / "results.json").read_text())["configs"]
    shots = [t for t in sentences(names) if len(t) > 40 and t.encode() in text]
    assert shots == []


def test_a_public_pack_is_verified_and_its_texts_are_put_back(demo: Path) -> None:
    key = keys.Private(Ed25519PrivateKey.generate())
    attest.sign(demo, key)
    path = pack.pack(demo, public=True, key=key)
    trusted = Trust({key.public: "alice"}, asked=True)
    report = judged(path, Wanted(trusted, Deep("demo", offline=True)))
    assert failed(report) == {}
    passed = {c.name: c.detail for c in report.checks if c.status is Status.PASS}
    assert passed["answers"] == "648 answers have the digests in the record"
    assert passed["aggregates"].startswith("20 values and standard errors recomputed")
    assert passed["deep plan"].endswith("built again to the same ids")
    assert passed["deep texts"].endswith("162 scored again")
    assert report.verdict.startswith("SIGNED by alice")
    assert report.verdict.endswith(
        "a public pack: its texts are left out; the scores of 48 documents are their author's word"
    )


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    """An unpacked public pack of the small run."""
    path = pack.pack(Run().write(tmp_path / "run"), public=True)
    folder = tmp_path / "opened" / "run"
    folder.mkdir(parents=True)
    for name, data in members(path).items():
        (folder / name).write_bytes(data)
    return folder


def test_an_untouched_public_pack_is_consistent(opened: Path) -> None:
    assert failed(judged(opened)) == {}


def first_score(lines: list[Any]) -> None:
    wrong = next(line for line in lines if line["metrics"]["none"].get("acc") == 0.0)
    wrong["metrics"]["none"]["acc"] = 1.0


def swapped_scores(lines: list[Any]) -> None:
    """The mean stays; now a score contradicts that by the same choice, or two choices are right."""
    mine = [line for line in lines if line["task"] == "arc_challenge"]
    values = [line["metrics"]["none"]["acc"] for line in mine]
    for line, value in zip(mine, [*values[1:], values[0]], strict=True):
        line["metrics"]["none"]["acc"] = value


def first_answer(lines: list[Any]) -> None:
    lines[0]["answers"][0][0][0] -= 1.0


def drop(lines: list[Any]) -> None:
    del lines[1]


def double(lines: list[Any]) -> None:
    lines.insert(1, lines[0])


def extend(lines: list[Any]) -> None:
    lines[0]["doc"] = {"question": "?"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (first_score, "aggregates"),
        (swapped_scores, "scores"),
        (first_answer, "answers"),
        (drop, "completeness"),
        (double, "completeness"),
        (extend, "samples"),
    ],
)
def test_a_changed_public_pack_is_broken(
    opened: Path, change: Callable[[list[Any]], None], name: str
) -> None:
    path = opened / salted.LINES
    lines = [json.loads(raw) for raw in gzip.decompress(path.read_bytes()).splitlines()]
    change(lines)
    path.write_bytes(gzip.compress(b"".join(canon.dumps(x).encode() + b"\n" for x in lines)))
    assert name in failed(judged(opened))


def test_a_whole_run_does_not_pass_for_a_public_pack(opened: Path, tmp_path: Path) -> None:
    """Whose checks are fewer."""
    run = tmp_path / "run"
    for name in (salted.HEAD, salted.LINES):
        shutil.copy(opened / name, run / name)
    assert "files" in failed(judged(run))
    shutil.rmtree(run / "journal")
    assert "files" in failed(judged(run))


@pytest.mark.parametrize("name", [salted.HEAD, salted.LINES])
@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", gzip.compress(b"[]\n{}\n1\n", mtime=0), b"[" * 100_000]
)
def test_an_unreadable_public_pack_is_a_failure_and_not_a_crash(
    opened: Path, name: str, data: bytes
) -> None:
    (opened / name).write_bytes(data)
    assert failed(judged(opened))


# what a public pack tells


def test_right_answers_cannot_be_tried_out_without_the_authors_key(demo: Path) -> None:
    """The salt was the record's digest: with the question and four choices, 42 of 42 were told."""
    packed = members(pack.pack(demo, public=True))
    record = canon.digest_bytes(packed["record.json"])[7:]
    lines = [json.loads(raw) for raw in gzip.decompress(packed[salted.LINES]).splitlines()]
    known = {(line["task"], line["doc_id"]): line for line in lines}
    with gzip.open(demo / "samples.jsonl.gz", "rt") as samples:
        for raw in samples:
            sample = json.loads(raw)
            line = known[sample["task"], sample["doc_id"]]
            text = [sample["doc"], sample["arguments"], sample["target"]]
            assert salted.hidden(record, text) != line["sha256"]
            for filtered in line.get("filtered", {}).values():  # short ones stood there in plain
                assert all(each.keys() == {"sha256"} for each in filtered)
    key = Path(f"{demo}.pack.key")
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().strip().encode() not in b"".join(packed.values())


def test_an_author_opens_single_documents_to_a_reader(demo: Path, tmp_path: Path) -> None:
    path = pack.pack(demo, public=True)
    names = ["demo_qa/0", "demo_cot_counting/3"]
    opened = [Path(call("pack", demo, "--reveal", name).done().out.strip()) for name in names]
    ran = call("verify", path, *(w for f in opened for w in ("--revealed", f))).done()
    assert "2 documents have the digests in the pack" in ran.out
    salts = {json.loads(each.read_text())["salt"] for each in opened}
    assert len(salts) == 2, "one tells nothing of the other"
    body = json.loads(opened[1].read_text())
    for change in ({"answers": [["other"]]}, {"document": [{}, {}, "x"]}, {"doc_id": 4},
                   {"record": "0" * 64}, {"salt": "0" * 64}, {"task": "demo_qa"}):  # fmt: skip
        other = tmp_path / "other.json"
        other.write_text(json.dumps(body | change))
        ran = call("verify", path, "--revealed", other)
        assert ran.code == 1 and "FAIL  revealed" in ran.out, change
    other.write_text("{}")
    call("verify", path, "--revealed", other).refused(2, "it opens no document")
    for name in ("demo_qa/999", "none/0", "demo_qa", "demo_qa/x", "../x/0"):
        call("pack", demo, "--reveal", name).refused(2, f"the run has no document '{name}'")


def test_a_public_packs_own_files_are_signed_or_nobody_vouches_for_it(tmp_path: Path) -> None:
    """They were in no digest: anybody could alter which generations were right in a SIGNED pack."""
    run, key = Run().write(tmp_path / "run"), keys.Private(Ed25519PrivateKey.generate())
    attest.sign(run, key)
    trusted = Wanted(Trust({key.public: "alice"}, asked=True))
    unsigned = judged(pack.pack(run, public=True), trusted)
    assert "the public form of its samples by nobody" in failed(unsigned)["signer"]
    untold = judged(pack.pack(run, public=True))
    assert untold.verdict.startswith("CONSISTENT") and "SIGNED" not in untold.verdict
    path = pack.pack(run, public=True, key=key)
    assert judged(path, trusted).verdict.startswith("SIGNED by alice")
    assert not (run / "public.json").exists()
    for name in (salted.HEAD, salted.LINES):
        place = tmp_path / name / "run"
        place.mkdir(parents=True)
        for each, data in members(path).items():
            (place / each).write_bytes(data)
        data = (place / name).read_bytes()
        data = gzip.decompress(data) if name.endswith("gz") else data
        data = data.replace(b'"stop":"stop_string"', b'"stop":"length"').replace(b"}", b"} ", 1)
        (place / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        (report,) = judge([place], trusted).reports.values()
        assert "is about other files" in failed(report)["signature"]
        assert report.verdict.startswith("BROKEN")
    other = keys.Private(Ed25519PrivateKey.generate())
    theirs = pack.pack(run, public=True, key=other)
    assert "by nobody on your list" in failed(judged(theirs, trusted))["signer"]
    both = Wanted(Trust({key.public: "alice", other.public: "carol"}, asked=True))
    assert judged(theirs, both).verdict.count("its public form is the word of carol")
    with pytest.raises(EvalkitError, match="--key is for --public"):
        pack.pack(run, key=key)


def test_no_pack_holds_a_report_or_what_a_link_leads_to(tmp_path: Path) -> None:
    """A report.html that was a link to a private key went into a pack."""
    run = Run().write(tmp_path / "run")
    (tmp_path / "secret").write_text("private")
    (run / "report.html").symlink_to(tmp_path / "secret")
    assert "report.html" not in members(pack.pack(run))
    (run / "report.html").unlink()
    (run / "report.html").write_text("<b>97%</b>")
    path = pack.pack(run)
    assert "report.html" not in members(path)
    with_one = tmp_path / "forged.tar.gz"
    with_one.write_bytes(
        b"".join(archive.packed("run", {**members(path), "report.html": b"x"}.items()))
    )
    assert "no digest vouches for" in failed(judged(with_one))["pack"]
    for name in ("attestation.json", "plan.json", "record.json"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / "secret")
        with pytest.raises(EvalkitError):
            pack.pack(run)
        with pytest.raises(EvalkitError):
            pack.pack(run, public=True)


def test_a_broken_or_hostile_record_is_a_line_and_no_pack(tmp_path: Path) -> None:
    """`pack --public` of one ended in a traceback."""
    (tmp_path / "secret").write_text("private")
    changes: list[tuple[str, Callable[[Run], None]]] = [
        ("config", lambda run: run.results["configs"].pop("arc_challenge")),
        ("sample", lambda run: run.samples[0].pop("resps")),
        ("answers", lambda run: run.lines.pop()),
        ("configs", lambda run: run.results.update(configs=[])),
    ]
    for what, change in changes:
        run = Run()
        change(run)
        for options in (("--public",), ("--reveal", "arc_challenge/0")):
            ran = call("pack", run.write(tmp_path / what), *options)
            assert ran.code in (0, 1, 2), f"{what} {options}: {ran.traceback}"
    folder = Run().write(tmp_path / "run")
    record = runs.read_record(folder)
    entry = {"size": 7, "sha256": runs.sha256("private")}
    for name in ("../secret", "a/../../secret", "/etc/hostname"):
        (folder / "record.json").write_text(
            json.dumps(record | {"files": record["files"] | {name: entry}})
        )
        ran = call("pack", folder)
        assert ran.code in (1, 2) and len(ran.errors) == 1, ran.err
        assert not folder.with_name("run.tar.gz").exists()


# packs that mean harm


def tar(
    path: Path, *entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT
) -> Path:
    """A .tar.gz of these entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as made:
        for info, data in entries:
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(buffer.getvalue()))
    return path


def plain(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "entry",
    [
        plain("../out"),
        plain("/etc/out"),
        plain("run/../../out"),
        plain("run//out"),
        plain("out"),
        plain("run/\x1b[2J"),
        link("run/out", "/etc/passwd"),
        link("run/out", "record.json", tarfile.LNKTYPE),
        link("run/out", "", tarfile.DIRTYPE),
        link("run/out", "", tarfile.FIFOTYPE),
        link("run/out", "", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type!r}",
)
def test_an_entry_that_is_no_plain_file_of_its_folder_is_refused(
    tmp_path: Path, entry: tarfile.TarInfo
) -> None:
    path = tar(tmp_path / "bad.tar.gz", (plain("run/record.json"), b"{}"), (entry, b""))
    assert "not a pack of evalkit's" in failed(judged(path))["pack"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tar.gz"]


def test_a_file_that_stands_twice_or_a_name_that_must_be_believed_first_is_refused(
    tmp_path: Path,
) -> None:
    twice = tar(tmp_path / "a", (plain("run/a"), b"1"), (plain("run/a"), b"2"))
    assert "stands twice" in failed(judged(twice))["pack"]
    other = tar(tmp_path / "c", (plain("run/a"), b"1"), (plain("run/A"), b"2"))
    assert "stands twice" in failed(judged(other))["pack"], "where letters are all small"
    for names in (("run/a", "run/a/b"), ("run/a/b", "run/a")):
        both = tar(tmp_path / "d", *((plain(name), b"1") for name in names))
        assert "a file is a folder too" in failed(judged(both))["pack"]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        long = tar(tmp_path / "b", (plain("run/" + "x" * 300), b"1"), form=form)
        assert "no plain file" in failed(judged(long))["pack"]


def test_a_torn_or_altered_or_endless_pack_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = pack.pack(Run().write(tmp_path / "run")).read_bytes()
    path = tmp_path / "bad"
    texts = [b"", b"hello", good[:-1], good[: len(good) // 2], good + good, gzip.compress(b"")]
    raw = bytearray(gzip.decompress(good))
    raw[0] ^= 1
    texts.append(gzip.compress(bytes(raw)))
    texts.append(gzip.compress(gzip.decompress(good) + b"more"))
    for text in texts:
        path.write_bytes(text)
        assert failed(judged(path)), text[:20]
    monkeypatch.setattr(archive, "MAX_BYTES", 10_000)
    path.write_bytes(good)
    assert "over the limit of" in failed(judged(path))["pack"]


def test_a_negative_size_is_no_size(tmp_path: Path) -> None:
    info = plain("run/a")
    head = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    head[124:136] = b"-0000000001\0"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path = tmp_path / "bad"
    path.write_bytes(gzip.compress(bytes(head) + bytes(1024)))
    assert "a header is damaged" in failed(judged(path))["pack"]


def test_packs_are_refused_with_the_exit_code_of_a_broken_record(tmp_path: Path) -> None:
    (tmp_path / "bad.tar.gz").write_bytes(struct.pack("<I", 1))
    ran = call("verify", tmp_path / "bad.tar.gz")
    assert ran.code == Exit.FAILED and ran.out.splitlines()[-1].startswith("BROKEN")
    assert runs.sha256("") and "Traceback" not in ran.err


def test_no_room_to_unpack_into_is_told_with_what_says_where_that_is(tmp_path: Path) -> None:
    path = tmp_path / "run.tar.gz"
    path.write_bytes(b"".join(archive.packed("run", [("record.json", b"{}")])))
    (tmp_path / "place").touch()
    with pytest.raises(EvalkitError, match="set TMPDIR"):
        archive.unpack(path, tmp_path / "place")
