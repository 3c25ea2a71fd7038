"""The engine: executes one batch, and nothing in its answers depends on anything else.

The one door to torch. It speaks token ids; what it knows of text is a tokenizer to decode with,
because lm-eval's stop conditions are strings. Policy lives in the plan: no batch is split, merged
or resized here.
"""

from evalkit.engine.core import Engine, Numerics, load, numerics_for, quantization
from evalkit.engine.hardware.device import hardware
from evalkit.engine.hardware.weights import import_all

__all__ = ["Engine", "Numerics", "hardware", "import_all", "load", "numerics_for", "quantization"]
