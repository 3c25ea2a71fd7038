"""The shipped JSON Schemas, which say what every file that evalkit writes looks like.

They are closed (nothing unnamed is allowed), versioned and the source of truth: writers are tested
against them and readers check with them before they trust a key. A schema is found by its name in
the package (a wheel) or beside it (a checkout), never by a path that some file brings.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator, TypeChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend, validator_for

from evalkit.base.machine import shipped

FOLDER = shipped.folder("schemas")
_MAX_PROBLEMS = 100  # a hostile value may hold millions
_MAX_MESSAGE = 240


def names() -> list[str]:
    """The names of the shipped schemas."""
    return sorted(path.name.removesuffix(".schema.json") for path in FOLDER.glob("*.schema.json"))


def _is_integer(_: TypeChecker, value: Any) -> bool:
    """JSON Schema calls 42.0 an integer; canonical JSON, and so every digest, does not."""
    return type(value) is int


@cache
def load(name: str) -> dict[str, Any]:
    """A shipped schema, by one of `names`."""
    assert name in names(), f"no schema {name}; there are {', '.join(names())}"
    schema: dict[str, Any] = json.loads((FOLDER / f"{name}.schema.json").read_text("utf-8"))
    return schema


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """A schema's pattern as JSON Schema means it: `$` is the text's end and nothing before a last
    line feed, and a digit is one of ten."""
    return re.compile(re.sub(r"(?<!\\)\$", r"\\Z", pattern), re.ASCII)


def _pattern(_: Any, pattern: str, value: Any, __: Any) -> Iterator[ValidationError]:
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
    """What is wrong with a value, a readable line each with its JSON path; empty when valid."""
    try:
        found = list(islice(_validator(name).iter_errors(value), _MAX_PROBLEMS))
    except RecursionError:
        return ["$: nested too deep"]
    return [_line(error) for error in sorted(found, key=lambda error: list(map(str, error.path)))]


def problems(shape: dict[str, Any], value: Any) -> list[str]:
    """The same for a schema that is not one of ours, in the dialect that it names."""
    return [_line(error) for error in validator_for(shape)(shape).iter_errors(value)]


def _line(error: ValidationError) -> str:
    deepest = error
    while deepest.context:  # of a failed anyOf, the branch that came furthest
        deepest = max(deepest.context, key=lambda branch: len(branch.absolute_path))
    path = "".join(_step(step) for step in deepest.absolute_path)
    message = " ".join(deepest.message.split())
    if len(message) > _MAX_MESSAGE:  # jsonschema puts the whole value in it
        half = _MAX_MESSAGE // 2
        message = f"{message[:half]} ... {message[-half:]}"
    return f"${path}: {message}"


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if step.isidentifier() else f"[{step[:80]!r}]"
