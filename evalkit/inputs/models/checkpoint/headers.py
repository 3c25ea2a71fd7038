"""What the safetensors headers of a model's weight files say of them; no weight is read."""

import json
import math
import struct
from collections.abc import Iterator
from typing import Any

from evalkit.base.errors import EvalkitError
from evalkit.inputs.models.model import Model

# Of safetensors' names for floating-point numbers, those of torch's dtypes.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def num_parameters(model: Model) -> int | None:
    """Parameters, counted; None where the weights are pickles.

    Raises EvalkitError for a file without a readable header, long before the weights are loaded.
    """
    if not model.has_safetensors:
        return None
    return sum(int(math.prod(entry["shape"])) for _, entry in _entries(model))


def dtype(model: Model) -> str | None:
    """What the weights are stored in, as transformers finds it where config.json does not say: the
    first floating-point one's; None where the weights are pickles, or packed."""
    if not model.has_safetensors:
        return None
    found = (DTYPES.get(entry["dtype"]) for _, entry in _entries(model))
    return next((name for name in found if name), None)


def _entries(model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each weight's name with its dtype and shape, in the files' order."""
    for path in model.weight_files():
        try:
            with path.open("rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                header = json.loads(handle.read(length))
            entries = {key: header[key] for key in header if key != "__metadata__"}
            _ = [(math.prod(entry["shape"]), entry["dtype"]) for entry in entries.values()]
        except (OSError, struct.error, ValueError, TypeError, KeyError, MemoryError, OverflowError):
            raise EvalkitError(
                f"{path.name} of '{model.reference}' is not a whole safetensors file",
                where=str(model.folder),
                fix="fetch or save the model again",
            ) from None
        yield from entries.items()
