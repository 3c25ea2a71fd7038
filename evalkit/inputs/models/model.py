"""Which model: its files at one revision, digested.

A model is a local folder, a GGUF file (`gguf_model`), a Hub id whose revision is resolved to a
commit before anything runs, or one of two built-in names. Weights are safetensors unless pickles
are explicitly allowed (loading a pickle runs its code). Nothing here loads weights.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from evalkit.base import canon, kept
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs import hub
from evalkit.inputs.files import check_file, digests, sha256s
from evalkit.inputs.models import architecture, gguf
from evalkit.inputs.models.builtin import smollm2
from evalkit.inputs.types import FileEntry, Quantization

DEMO = "demo"
BUILT_IN = (DEMO, smollm2.NAME)
UNPACKED = "unpacked/"  # before the names of files that a GGUF file was unpacked into
WEIGHTS = ("*.safetensors",)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER = (
    "tokenizer*.json", "*.model", "vocab*", "merges.txt", "added_tokens.json", "*.tiktoken",
    "special_tokens_map.json", "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
CONFIG = ("config.json", "generation_config.json", "*.index.json")
CODE = ("*.py",)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class Model:
    """A model's files, by name; transformers loads it from `folder`. For a GGUF file that is where
    it was unpacked, `source` is the GGUF file's own folder, and `files` also holds what was
    unpacked, as unpacked/<name>."""

    reference: str
    revision: str | None  # 40 hex; None for a local folder
    folder: Path
    files: dict[str, FileEntry]
    trust_remote_code: bool = False
    source: str | None = None
    quantization: Quantization | None = None

    def sha256(self) -> dict[str, str]:
        """Return every file's digest by name: what the run id covers."""
        return sha256s(self.files)

    def tokenizer_files(self) -> dict[str, str]:
        """Return the digests of the tokenizer's files by name: what the plan id covers."""
        return {name: sha for name, sha in self.sha256().items() if _matches(name, TOKENIZER)}

    def weight_files(self) -> list[Path]:
        """Return the files that transformers loads weights from."""
        wanted = [name for name in self.files if _matches(name, (*WEIGHTS, *PICKLES))]
        return [self.folder / name.removeprefix(UNPACKED) for name in wanted]

    def own_files(self) -> dict[str, FileEntry]:
        """Return those of `files` that the model came in."""
        return {n: entry for n, entry in self.files.items() if not n.startswith(UNPACKED)}

    @property
    def has_safetensors(self) -> bool:
        """Whether its weights are safetensors, not pickles."""
        return any(path.suffix == ".safetensors" for path in self.weight_files())

    @property
    def weight_bytes(self) -> int:
        """The size of its weight files."""
        sizes = {name: entry["size"] for name, entry in self.files.items()}
        return sum(size for name, size in sizes.items() if _matches(name, (*WEIGHTS, *PICKLES)))

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of config.json."""
        value: Mapping[str, Any] = canon.read_json(self.folder / "config.json")
        return value

    @property
    def short_name(self) -> str:
        """The name that its results folder bears."""
        if self.reference in BUILT_IN or self.revision is not None:
            return self.reference.replace("/", "__")
        return Path(self.reference).resolve().name.removesuffix(gguf.SUFFIX)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(Path(name).match(pattern) for pattern in patterns)


def resolve(
    reference: str, *, revision: str | None = None, offline: bool = False,
    allow_pickle: bool = False, trust_remote_code: bool = False,
) -> Model:  # fmt: skip
    """Find a model and digest its files; EvalkitError in one line when it can't be run."""
    wanted = [*WEIGHTS, *TOKENIZER, *CONFIG]
    wanted += PICKLES if allow_pickle else ()
    wanted += CODE if trust_remote_code else ()
    if revision is not None and not is_on_hub(reference):
        raise EvalkitError("--revision is for Hub models", where=reference)
    if file := _gguf_file(reference, offline):
        return _unpacked(reference, file)
    if reference == DEMO:
        from evalkit.inputs.models.builtin.demo import model as demo

        folder, commit = demo.build(kept.folder() / "demo-model"), None
    elif Path(reference).is_dir():
        # a snapshot in the Hub's cache is the repo's, not a name of 40 digits
        folder = Path(reference)
        reference, commit = hub.snapshot(folder) or (reference, None)
    elif reference.startswith(("/", ".", "~")) or reference.count("/") > 1:
        raise EvalkitError("there is no such model folder", where=reference, code=Exit.MISSING)
    else:
        try:
            folder, commit = hub.model(
                reference, revision, offline=offline, wanted=wanted,
                look=lambda names: _check_weights(reference, names, allow_pickle),
            )  # fmt: skip
        except EvalkitError as error:
            if near := get_close_matches(reference, BUILT_IN, n=1, cutoff=0.8):
                error.fix = f"did you mean {near[0]}? Else {error.fix}"
            raise
    names = _names(folder, wanted, reference, allow_pickle)
    architecture.check(folder, reference, trust_remote_code)
    files = digests(folder, names)
    for name, entry in files.items() if commit else ():
        check_file(folder / name, entry["sha256"])
    return Model(reference, commit, folder, files, trust_remote_code)


def is_on_hub(reference: str) -> bool:
    """Whether a model's name is a Hub id: nothing built-in and nothing that lies here."""
    return reference not in BUILT_IN and not Path(reference).exists()


def _gguf_file(reference: str, offline: bool) -> Path | None:
    """The GGUF file that a model's name means; None where it means none."""
    path = Path(reference)
    if reference == smollm2.NAME:
        return smollm2.file(offline=offline)
    if path.suffix == gguf.SUFFIX and not path.is_dir():
        if not path.is_file():
            what = "there is no such GGUF file"
            raise EvalkitError(what, where=reference, code=Exit.MISSING)
        return path
    names = [child.name for child in path.iterdir()] if path.is_dir() else []
    return gguf.choose(path, reference) if _only_gguf(names) else None


def _only_gguf(names: list[str]) -> bool:
    """Whether a folder's or a repo's weights are GGUF files alone."""
    has_others = any(_matches(name, (*WEIGHTS, *PICKLES)) for name in names)
    return not has_others and any(name.endswith(gguf.SUFFIX) for name in names)


def _unpacked(reference: str, file: Path) -> Model:
    files = digests(file.parent, [file.name])
    sha256 = files[file.name]["sha256"]
    if reference == smollm2.NAME:
        smollm2.check(file, sha256)
    unpacked = gguf.unpack(file, sha256)
    architecture.check(unpacked.folder, reference, trust_remote_code=False)
    files |= {UNPACKED + name: entry for name, entry in unpacked.files.items()}
    return Model(
        reference, None, unpacked.folder, files,
        source=os.fspath(file.parent.absolute()), quantization=unpacked.quantization,
    )  # fmt: skip


def resolve_adapter(folder: Path) -> dict[str, FileEntry]:
    """Digest a LoRA adapter's files, as `Model.files` has them; EvalkitError when it is none.
    Whether it belongs to the model shows when the engine loads both."""
    for name in ADAPTER:
        if not (folder / name).is_file():
            raise EvalkitError(
                f"'{folder}' is not an adapter: it has no {name}",
                fix="give a folder that peft's save_pretrained wrote",
                code=Exit.MISSING,
            )
    config = canon.read_json(folder / ADAPTER[0])
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise EvalkitError(f"the adapter's type is {kind}, not LORA", where=os.fspath(folder))
    return digests(folder, list(ADAPTER))


def _names(folder: Path, wanted: list[str], reference: str, allow_pickle: bool) -> list[str]:
    found = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    names = [name for name in found if _matches(name, wanted) and _top_level(name)]
    if ADAPTER[0] in found and "config.json" not in names:
        raise _is_adapter(folder, reference)
    if "config.json" not in names:
        raise EvalkitError(
            f"'{reference}' is not a model: it has no config.json",
            where=os.fspath(folder),
            fix="give a folder that transformers' save_pretrained wrote, or a Hub id",
        )
    if ADAPTER[0] in found:  # transformers would load it with the model, without a word
        raise EvalkitError(
            f"'{reference}' has an adapter in its folder",
            where=os.fspath(folder),
            fix="move adapter_config.json and its weights elsewhere and name that with --adapter",
        )
    weights = [name for name in names if _matches(name, (*WEIGHTS, *PICKLES))]
    if not weights and any(_matches(name, PICKLES) for name in found):
        raise EvalkitError(
            f"'{reference}' has its weights as pickles only, and loading a pickle runs its code",
            fix="convert it to safetensors, or pass --allow-pickle if you trust it",
        )
    if not weights:
        raise EvalkitError(f"'{reference}' has no weights (*.safetensors)", where=os.fspath(folder))
    loaded = _loaded(folder, weights)
    return [name for name in names if name in loaded or name not in weights]


def _is_adapter(folder: Path, reference: str) -> EvalkitError:
    config = canon.read_json(folder / ADAPTER[0])
    config = config if isinstance(config, dict) else {}
    base = config.get("base_model_name_or_path")
    kind = f"a {config['peft_type']} adapter" if config.get("peft_type") else "an adapter"
    return EvalkitError(
        f"'{reference}' is no model but {kind}" + (f" of '{base}'" if base else ""),
        where=os.fspath(folder),
        fix=f"give the model that it was trained on, and it with --adapter: --model"
        f" {base or 'MODEL'} --adapter {reference}",
    )


def _loaded(folder: Path, weights: list[str]) -> list[str]:
    """Return the weight files that transformers loads, which may not be all that lie there."""
    index = folder / "model.safetensors.index.json"
    if "model.safetensors" in weights:
        return ["model.safetensors"]
    if index.is_file():
        shards = canon.read_json(index)
        wanted = set(shards["weight_map"].values()) if "weight_map" in shards else set()
        missing = sorted(wanted - set(weights))
        if missing:
            raise EvalkitError(
                f"the weights lack {len(missing)} of their files, {missing[0]} first",
                where=os.fspath(folder),
                fix="fetch or save the model again",
                code=Exit.MISSING,
            )
        return sorted(wanted)
    return [name for name in weights if _matches(name, WEIGHTS)] or weights


def _top_level(name: str) -> bool:
    return "/" not in name or name.startswith("additional_chat_templates/")


def fetched_sizes(sizes: dict[str, int]) -> list[int]:
    """The sizes of a repo's files that `resolve` fetches without pickles or code, by name."""
    wanted = (*WEIGHTS, *TOKENIZER, *CONFIG)
    return [
        size
        for name, size in sizes.items()
        if _matches(name, wanted) and "consolidated" not in name
    ]


def _check_weights(reference: str, names: list[str], allow_pickle: bool) -> None:
    """Refuse a repo of pickles or GGUF files only before gigabytes are fetched."""
    if _only_gguf(names):
        raise EvalkitError(
            f"'{reference}' has its weights as GGUF files only",
            fix="download one of them and give its path: MODEL=path/to/model.gguf",
        )
    if allow_pickle or any(_matches(n, WEIGHTS) for n in names):
        return
    if any(_matches(name, PICKLES) for name in names):
        raise EvalkitError(
            f"'{reference}' has its weights as pickles only, and loading a pickle runs its code",
            fix="convert it to safetensors, or pass --allow-pickle if you trust it",
        )
