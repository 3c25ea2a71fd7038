"""The types of evalkit's JSON are those of its schemas: the same keys, required alike, and values
of the same kinds, however deep."""

import types
from collections.abc import Iterator
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints
from typing import is_typeddict as is_typed

import pytest

from evalkit.base import schema
from evalkit.host import stage_manifest
from evalkit.inputs import types as inputs
from evalkit.inputs.chat.texts import TextsEntry
from evalkit.plan import types as plan

KINDS = {"string": str, "integer": int, "number": float, "boolean": bool, "null": type(None)}
# Types by the schema that says the same, and by the path to it.
MIRRORED = [
    (inputs.LockBody, "lock", ""),
    (inputs.SuiteFile, "suite", ""),
    (TextsEntry, "record", "$defs/task/properties/texts"),
    (inputs.FileEntry, "record", "$defs/file"),
    (inputs.Quantization, "record", "$defs/quantization"),
    (inputs.AdapterEntry, "record", "$defs/adapter"),
    (inputs.NumericsEntry, "record", "$defs/numerics"),
    (inputs.EngineEntry, "record", "properties/engine"),
    (inputs.Versions, "record", "$defs/environment/properties/versions"),
    (plan.PlanBody, "plan", ""),
    (stage_manifest.Manifest, "stage", ""),
]


class Against:
    """One schema, and the places where a type says otherwise than it."""

    def __init__(self, name: str) -> None:
        self.root = schema.load(name)

    def node(self, path: str) -> dict[str, Any]:
        """The part of the schema at a path."""
        node = self.root
        for step in filter(None, path.split("/")):
            node = node[step]
        return self.resolved(node)

    def resolved(self, node: dict[str, Any]) -> dict[str, Any]:
        """A part of the schema, where it refers to another that one."""
        while "$ref" in node:
            node = self.node(node["$ref"].removeprefix("#/"))
        return node

    def unlike(self, hint: Any, node: dict[str, Any], path: str = "$") -> Iterator[str]:
        """Where a type and a part of the schema differ."""
        choices = self.choices(node)
        hints = [*get_args(hint)] if get_origin(hint) in (Union, types.UnionType) else [hint]
        wanted, stated = {self.form(choice) for choice in choices}, {self.form_of(h) for h in hints}
        for forms in (wanted, stated):
            forms -= {"integer"} if "number" in forms else set()  # an integer is a number, too
        yield from (f"{path} is {form} in one only" for form in wanted ^ stated)
        for inner in hints:
            same = [c for c in choices if self.form(c) == self.form_of(inner)]
            if same:
                yield from self.inside(inner, same[0], path)

    def choices(self, node: dict[str, Any]) -> list[dict[str, Any]]:
        """What a value may be, one kind each."""
        node = self.resolved(node)
        if "anyOf" in node:
            return [inner for each in node["anyOf"] for inner in self.choices(each)]
        if isinstance(node.get("type"), list):
            return [node | {"type": kind} for kind in node["type"]]
        if None in node.get("enum", ()):
            some = [value for value in node["enum"] if value is not None]
            return [node | {"enum": some}, {"type": "null"}]
        return [node]

    def form(self, node: dict[str, Any]) -> str:
        """A part's kind of value; of an object also which keys it must have."""
        if "properties" in node:
            return f"object {sorted(node['required']) if 'required' in node else []}"
        values = [node["const"]] if "const" in node else node.get("enum", [])
        if "type" not in node and values:
            return next(kind for kind, known in KINDS.items() if isinstance(values[0], known))
        return str(node.get("type", "anything"))

    def form_of(self, hint: Any) -> str:
        """The same of a type."""
        if is_typed(hint):
            return f"object {sorted(hint.__required_keys__)}"
        origin = get_origin(hint)
        if origin is Literal:
            return "string"
        if origin in (list, tuple, dict):
            return "object" if origin is dict else "array"
        return next((kind for kind, known in KINDS.items() if known is hint), "anything")

    def inside(self, hint: Any, node: dict[str, Any], path: str) -> Iterator[str]:
        """Where the parts of a type of the right kind differ."""
        origin, inner = get_origin(hint), get_args(hint)
        if is_typed(hint):
            hints = get_type_hints(hint, include_extras=True)
            known = node["properties"]
            yield from (f"{path}.{key} stands in one only" for key in hints.keys() ^ known.keys())
            for key in hints.keys() & known.keys():
                part = hints[key]
                part = get_args(part)[0] if get_origin(part) is NotRequired else part
                yield from self.unlike(part, known[key], f"{path}.{key}")
        elif origin is Literal and set(inner) != set(node.get("enum", ())):
            yield f"{path} has other values"
        elif origin is tuple:
            for index, part in enumerate(inner):
                yield from self.unlike(part, node["prefixItems"][index], f"{path}[{index}]")
        elif origin is list:
            yield from self.unlike(inner[0], node["items"], f"{path}[]")
        elif origin is dict and isinstance(node.get("additionalProperties"), dict):
            yield from self.unlike(inner[1], node["additionalProperties"], f"{path}.*")


@pytest.mark.parametrize(
    ("hint", "name", "path"), MIRRORED, ids=[mirrored[0].__name__ for mirrored in MIRRORED]
)
def test_a_type_says_what_its_schema_says(hint: Any, name: str, path: str) -> None:
    against = Against(name)
    assert sorted(against.unlike(hint, against.node(path))) == []


def test_the_suite_id_covers_the_records_suite_but_for_its_name_and_whether_it_is_partial() -> None:
    against = Against("record")
    node = against.node("$defs/suite")
    known = {k: part for k, part in node["properties"].items() if k not in ("name", "partial")}
    required = [key for key in node["required"] if key not in ("name", "partial")]
    shape = node | {"properties": known, "required": required}
    assert sorted(against.unlike(inputs.SuiteIdentity, shape)) == []


def test_a_type_that_says_otherwise_is_found() -> None:
    against = Against("record")
    node = against.node("$defs/file")
    assert [*against.unlike(inputs.Quantization, node)] != []
    shape = node | {"properties": node["properties"] | {"size": {"type": "string"}}}
    assert sorted(against.unlike(inputs.FileEntry, shape)) == [
        "$.size is integer in one only",
        "$.size is string in one only",
    ]
