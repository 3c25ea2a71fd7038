"""Which model: its files at one revision, digested.

A model is a local folder or a Hub id whose revision is resolved to a commit before anything runs.
Weights are safetensors unless pickles are allowed in so many words (loading a pickle runs its
code). Nothing here loads weights.
"""

import json
import math
import os
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit import architecture, canon, fetched, hub
from evalkit.errors import EvalkitError, Exit

DEMO = "demo"
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
    """A model's files. `files` maps names to {"sha256" (hex), "size" (bytes)}."""

    reference: str
    revision: str | None  # 40 hex; None for a local folder
    folder: Path
    files: dict[str, dict[str, Any]]
    trust_remote_code: bool = False

    def sha256(self) -> dict[str, str]:
        """Every file's digest by name: what the run id covers."""
        return {name: entry["sha256"] for name, entry in self.files.items()}

    def tokenizer_files(self) -> dict[str, str]:
        """The tokenizer's files' digests by name: what the plan id covers."""
        return {name: sha for name, sha in self.sha256().items() if _matches(name, TOKENIZER)}

    @property
    def weight_bytes(self) -> int:
        """The size of its weight files."""
        sizes = {name: entry["size"] for name, entry in self.files.items()}
        return sum(size for name, size in sizes.items() if _matches(name, (*WEIGHTS, *PICKLES)))

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        value: dict[str, Any] = canon.read_json(self.folder / "config.json")
        return value

    @property
    def short_name(self) -> str:
        """The name that its results folder bears."""
        if self.reference == DEMO or self.revision is not None:
            return self.reference.replace("/", "__")
        return Path(self.reference).resolve().name


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(Path(name).match(pattern) for pattern in patterns)


def resolve(
    reference: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Model:
    """Find a model and digest its files; EvalkitError in one line when it can't be run."""
    wanted = [*WEIGHTS, *TOKENIZER, *CONFIG]
    wanted += PICKLES if allow_pickle else ()
    wanted += CODE if trust_remote_code else ()
    if reference == DEMO and revision is not None:
        raise EvalkitError("--revision is for Hub models", where=reference)
    if reference == DEMO:
        from evalkit.demo import model as demo

        folder, commit = demo.build(cache_folder() / "demo-model"), None
    elif Path(reference).is_dir():
        if revision is not None:
            raise EvalkitError("--revision is for Hub models", where=reference)
        folder, commit = Path(reference), None
    elif reference.startswith(("/", ".", "~")) or reference.count("/") > 1:
        raise EvalkitError("there is no such model folder", where=reference, code=Exit.MISSING)
    else:
        folder, commit = hub.model(
            reference,
            revision,
            offline=offline,
            wanted=wanted,
            look=lambda names: _check_pickles(reference, names, allow_pickle),
        )
    names = _names(folder, wanted, reference, allow_pickle)
    architecture.check(folder, reference, trust_remote_code)
    files = _digest(folder, names)
    for name, entry in files.items() if commit else ():
        fetched.check_file(folder / name, entry["sha256"])
    return Model(reference, commit, folder, files, trust_remote_code)


def resolve_adapter(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest a LoRA adapter's files, as `Model.files` has them; EvalkitError when it is none.

    Whether it belongs to the model shows when the engine loads both.
    """
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
    return _digest(folder, list(ADAPTER))


def _names(folder: Path, wanted: list[str], reference: str, allow_pickle: bool) -> list[str]:
    found = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    names = [name for name in found if _matches(name, wanted) and _top_level(name)]
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


def _loaded(folder: Path, weights: list[str]) -> list[str]:
    """The weight files that transformers loads: model.safetensors, or the shards of its index,
    before whatever else lies beside them."""
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
    """Of a repo's files, by name, the sizes of those that `resolve` fetches unless it is told to
    take pickles or code."""
    wanted = (*WEIGHTS, *TOKENIZER, *CONFIG)
    return [
        size
        for name, size in sizes.items()
        if _matches(name, wanted) and "consolidated" not in name
    ]


def _check_pickles(reference: str, names: list[str], allow_pickle: bool) -> None:
    """Refuse a pickle-only model before gigabytes are fetched."""
    if allow_pickle or any(_matches(n, WEIGHTS) for n in names):
        return
    if any(_matches(name, PICKLES) for name in names):
        raise EvalkitError(
            f"'{reference}' has its weights as pickles only, and loading a pickle runs its code",
            fix="convert it to safetensors, or pass --allow-pickle if you trust it",
        )


def cache_folder() -> Path:
    """Where evalkit keeps what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "evalkit"


def _digest(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """sha256 of each file, on a thread pool; unchanged files (path, size, mtime, inode) are not
    read again."""
    cache = cache_folder() / "digests.json"
    known: dict[str, str] = {}
    with suppress(EvalkitError, TypeError, ValueError):  # none yet, or torn: it costs time only
        known = dict(canon.read_json(cache))

    def one(name: str) -> tuple[str, str, int]:
        path = (folder / name).resolve()
        stat = path.stat()
        key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        return key, known.get(key) or canon.sha256_file(path), stat.st_size

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(one, names))
    fresh = {key: sha for key, sha, _ in results if key not in known}
    if fresh:
        with suppress(EvalkitError):
            canon.make_folder(cache.parent)
            canon.write_json(cache, known | fresh)
    return {
        name: {"sha256": sha, "size": size}
        for name, (_, sha, size) in zip(names, results, strict=True)
    }


def num_parameters(model: Model) -> int | None:
    """Parameters, counted from the safetensors headers; None where the weights are pickles.

    Raises EvalkitError for a file without a readable header, long before the weights are loaded.
    """
    total = 0
    weights = [name for name in model.files if _matches(name, WEIGHTS)]
    for name in weights:
        try:
            with (model.folder / name).open("rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                header = json.loads(handle.read(length))
            shapes = [header[key]["shape"] for key in header if key != "__metadata__"]
            total += sum(math.prod(shape) for shape in shapes)
        except (OSError, struct.error, ValueError, TypeError, KeyError, MemoryError, OverflowError):
            raise EvalkitError(
                f"{name} of '{model.reference}' is not a whole safetensors file",
                where=str(model.folder),
                fix="fetch or save the model again",
            ) from None
    return total if weights else None
