"""Documents as samples hold them: JSON has no NaN and no infinity, and data fields have.

A document's hash and its score follow from what the field was, so a non-finite number is told from
the text of that name.
"""

import math
from typing import Any

from evalkit.base import canon


def marked(value: Any) -> Any:
    """The value with every non-finite float as `{"float": its string}`, so that it can be told from
    a text; `unmarked` gives it back. A mapping of that form is put in a list."""
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, dict):
        made = {key: marked(item) for key, item in value.items()}
        return {"float": [made["float"]]} if made.keys() == {"float"} else made
    return [marked(item) for item in value] if isinstance(value, (list, tuple)) else value


def unmarked(value: Any) -> Any:
    """What was `marked`."""
    if isinstance(value, dict):
        if value.keys() == {"float"}:
            inner = value["float"]
            if isinstance(inner, list) and len(inner) == 1:
                return {"float": unmarked(inner[0])}
            return canon.number(inner)
        return {key: unmarked(item) for key, item in value.items()}
    return [unmarked(item) for item in value] if isinstance(value, list) else value
