"""A model in a GGUF file, unpacked once into a folder that transformers loads like any other.

transformers would read the file anew in every process, a minute for a large one. Here its weights
are dequantised once into the cache, by the file's digest, and each worker maps the same files. A
run's identity names the GGUF file itself.
"""

import io
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from evalkit.base import canon, kept
from evalkit.base.errors import EvalkitError, Exit, first_line
from evalkit.inputs.files import digests
from evalkit.inputs.models import architecture
from evalkit.inputs.types import FileEntry, Quantization

log = logging.getLogger(__name__)

SUFFIX = ".gguf"
NOTE = "unpacked.json"  # how the file is quantised, and the digests of what it was unpacked into
VARIABLE = ("config.json", "generation_config.json", "tokenizer_config.json")  # by version
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # not packed
# Of tokenizer.ggml.pre, those that split as GPT-2 does. smollm also splits digits, which no merge
# of its vocabulary joins again.
AS_GPT2 = ("gpt-2", "smollm")
OTHER = "give the checkpoint that it was made from"
TEXT = "Naïve words, 12345\n\n\tand a smile 😀"  # a tokenizer that was saved must still read it so


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A GGUF file's model in the form that transformers loads: `files` by name; `quantization` is
    None where the file's weights are not quantised."""

    folder: Path
    files: dict[str, FileEntry]
    quantization: Quantization | None


def choose(folder: Path, reference: str) -> Path:
    """Return a folder's only GGUF file; EvalkitError where there are several, or parts of one."""
    files = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    if len(files) != 1:
        names = ", ".join(path.name for path in files)
        raise EvalkitError(
            f"'{reference}' holds {len(files)} GGUF files: {names}",
            fix=f"give one of them, e.g. MODEL={Path(reference) / files[0].name}",
        )
    return files[0]


def unpack(file: Path, sha256: str) -> Unpacked:
    """Return the model in a GGUF file of this `sha256` (hex), unpacked into the cache unless it
    lies there. Raises EvalkitError for another kind of file or architecture, missing weights, a
    full disk, and an altered cache."""
    try:
        by = [f"{name}-{metadata.version(name)}" for name in ("transformers", "gguf")]
    except metadata.PackageNotFoundError as error:
        raise EvalkitError(
            f"GGUF models need the package {error.name}, which is not installed",
            where=os.fspath(file),
            fix="pip install 'evalkit-lm[run]'",
            code=Exit.MISSING,
        ) from None
    place = kept.folder() / "gguf" / "-".join([sha256[:32], *by])
    if not (place / NOTE).is_file():
        _make(file, place)
    note = canon.read_json(place / NOTE)
    known: dict[str, str] = note["files"]
    files = digests(place, [name for name in known if (place / name).is_file()])
    altered = [n for n, sha in known.items() if n not in files or files[n]["sha256"] != sha]
    if altered:
        raise EvalkitError(
            f"the unpacked copy of {file.name} was altered: {altered[0]} is not what it was",
            where=os.fspath(place),
            fix="delete that folder, and the same command makes it anew",
            code=Exit.FAILED,
        )
    fixed = {name: entry for name, entry in files.items() if name not in VARIABLE}
    return Unpacked(place, fixed, note["quantization"])


def _make(file: Path, place: Path) -> None:
    """Unpack a file into its place, which appears when it is whole."""
    types = _types(file)
    kept.make_folder(place.parent)
    free, needed = shutil.disk_usage(place.parent).free, 4 * sum(types.values())
    if needed > free:
        raise EvalkitError(
            f"{file.name} takes {needed / 1e9:.1f} GB unpacked, and {free / 1e9:.1f} GB are free",
            where=os.fspath(place.parent),
            fix="free space, or set XDG_CACHE_HOME to a larger disk",
            code=Exit.MISSING,
        )
    log.warning("unpacking %s, once", file.name)
    quantised = Counter({name: count for name, count in types.items() if name not in PLAIN})
    stored = {PLAIN[name] for name in types if name != "F32" and not quantised}
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".unpacking-") as made:
        _convert(file, Path(made), stored.pop() if len(stored) == 1 else "float32")
        files = {path.name: canon.sha256_file(path) for path in sorted(Path(made).iterdir())}
        note = {"quantization": _described(quantised), "files": files}
        canon.write_json(Path(made) / NOTE, note)
        if not place.exists():
            Path(made).rename(place)
            Path(made).mkdir()  # for the context to remove


def _types(file: Path) -> Counter[str]:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        parts = _stated(reader, "split.count")
        counted = Counter[str]()
        for tensor in reader.tensors:
            counted[tensor.tensor_type.name] += int(tensor.n_elements)
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise EvalkitError(
            f"{file.name} is not a readable GGUF file: {first_line(error)}",
            where=os.fspath(file.parent),
            fix="fetch it again",
        ) from None
    if parts not in (None, 0, 1):
        raise EvalkitError(
            f"{file.name} is one part of a model that is split into several GGUF files",
            where=os.fspath(file.parent),
            fix="merge them with llama.cpp's `llama-gguf-split --merge` and give that file",
        )
    _check_split(file, reader)
    return counted


def _check_split(file: Path, reader: Any) -> None:
    """Raise EvalkitError where transformers would split text by GPT-2's rule instead."""
    from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

    stated = {name: _stated(reader, f"tokenizer.ggml.{name}") for name in ("model", "pre")}
    known = {*theirs.GGUF_PRE_TOKENIZER_SPLITS, *AS_GPT2}
    if stated["model"] == "gpt2" and str(stated["pre"]) not in known:
        raise EvalkitError(
            f"transformers has no rule for how the tokenizer of {file.name} splits text"
            f" (tokenizer.ggml.pre is {stated['pre']})",
            where=os.fspath(file.parent),
            fix=OTHER,
        )


def _stated(reader: Any, name: str) -> Any:
    field = reader.fields.get(name)
    return None if field is None else field.contents()


def _described(quantised: Counter[str]) -> Quantization | None:
    if not quantised:
        return None
    name = quantised.most_common(1)[0][0]
    bits = "".join(filter(str.isdigit, name.partition("_")[0]))
    return {"method": "gguf", "bits": int(bits), "dequantized": True}


def _convert(file: Path, folder: Path, dtype: str) -> None:
    """Let transformers dequantise a file and save what it made of it in `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    causal: Any = AutoModelForCausalLM  # untyped
    read: Any = AutoTokenizer
    named: Any = {"gguf_file": file.name, "local_files_only": True}
    what, where = f"transformers can't convert {file.name}", os.fspath(file.parent)
    told = architecture.Loading(lambda why: EvalkitError(f"{what}: {why}", where=where, fix=OTHER))
    with told, _quiet():
        tokenizer = read.from_pretrained(file.parent, **named)
        model, loading = causal.from_pretrained(
            file.parent, **named, dtype=dtype, output_loading_info=True,
            quantization_config=GgufConfig(dequantize=True),
        )  # fmt: skip
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise ValueError(f"it lacks {len(missing)} weights, {missing[0]} first")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again = read.from_pretrained(folder)
    if again.encode(TEXT) != tokenizer.encode(TEXT):
        raise EvalkitError(
            f"the tokenizer of {file.name} reads text otherwise once it is saved",
            where=os.fspath(file.parent),
            fix=OTHER,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block, transformers and its progress bars write nothing on stderr."""
    from transformers.utils import logging

    theirs: Any = logging  # untyped
    before = theirs.get_verbosity()
    theirs.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        theirs.set_verbosity(before)
