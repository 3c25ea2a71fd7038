"""The shipped JSON Schemas, which say what every file that evalkit writes looks like.

They are closed (no other keys are allowed) and versioned. Writers are tested against them, and
readers check a value with them before they use a key. A schema is loaded by its name from the
package (a wheel) or from beside it (a checkout), never by a path from a file.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator, TypeChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend, validator_for

from evalkit.base.machine import shipped

FOLDER = shipped.folder("schemas")
Schema = Mapping[str, Any]
_MAX_PROBLEMS = 100  # a hostile value may hold millions
_MAX_MESSAGE = 240


def names() -> list[str]:
    """Return the names of the shipped schemas."""
    return sorted(path.name.removesuffix(".schema.json") for path in FOLDER.glob("*.schema.json"))


def _is_integer(_: TypeChecker, value: object) -> bool:
    """JSON Schema calls 42.0 an integer; canonical JSON, and so every digest, does not."""
    return type(value) is int


@cache
def load(name: str) -> Schema:
    """Return a shipped schema by its name."""
    assert name in names(), f"no schema {name}; there are {', '.join(names())}"
    schema: Schema = json.loads((FOLDER / f"{name}.schema.json").read_text("utf-8"))
    return schema


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern as JSON Schema means it: `$` is the end of the text, not a place before a
    last line feed, and a digit is one of ten."""
    return re.compile(re.sub(r"(?<!\\)\$", r"\\Z", pattern), re.ASCII)


def _pattern(_: object, pattern: str, value: object, __: object) -> Iterator[ValidationError]:
    if isinstance(value, str) and not _compiled(pattern).search(value):
        yield ValidationError(f"{value[:_MAX_MESSAGE]!r} does not match {pattern!r}")


_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {"pattern": _pattern},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)


@cache
def _validator(name: str) -> Any:
    return _Validator(load(name))


def check(name: str, value: Any) -> list[str]:
    """Return the problems of a value, a line with its JSON path each; none where it is valid."""
    try:
        errors = list(islice(_validator(name).iter_errors(value), _MAX_PROBLEMS))
    except RecursionError:
        return ["$: nested too deep"]
    return [_line(error) for error in sorted(errors, key=lambda error: list(map(str, error.path)))]


def problems(schema: Schema, value: Any) -> list[str]:
    """Return the problems of a value under another schema, in the dialect that it names."""
    return [_line(error) for error in validator_for(schema)(schema).iter_errors(value)]


def _line(error: ValidationError) -> str:
    deepest = error
    while deepest.context:  # of a failed anyOf, the branch that failed deepest
        deepest = max(deepest.context, key=lambda branch: len(branch.absolute_path))
    path = "".join(_step(step) for step in deepest.absolute_path)
    message = " ".join(deepest.message.split())
    if len(message) > _MAX_MESSAGE:  # it may hold the whole value
        half = _MAX_MESSAGE // 2
        message = f"{message[:half]} ... {message[-half:]}"
    return f"${path}: {message}"


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if step.isidentifier() else f"[{step[:80]!r}]"
