"""The shipped schemas: closed, described, versioned; and problems that a person can read."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from runs import Run

from evalkit.base import schema
from evalkit.inputs import suite as suites

VERSIONED = {
    "lock": 2,
    "rows": 1,
    "plan": 2,
    "journal": 1,
    "record": 4,
    "attestation": 1,
    "stage": 1,
}


def nodes(value: Any, path: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every subschema with its path."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            if key not in ("const", "enum", "required"):
                yield from nodes(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from nodes(item, f"{path}[{index}]")


@pytest.mark.parametrize("name", schema.names())
def test_a_schema_is_itself_valid_and_names_its_version(name: str) -> None:
    loaded = schema.load(name)
    Draft202012Validator.check_schema(loaded)
    assert loaded["$schema"].endswith("draft/2020-12/schema")
    if name in VERSIONED:
        assert loaded["properties"]["schema"]["const"] == f"evalkit/{name}/{VERSIONED[name]}"
        assert "schema" in loaded["required"]


@pytest.mark.parametrize("name", schema.names())
def test_every_property_is_described(name: str) -> None:
    loaded = schema.load(name)
    for path, node in nodes(loaded):
        for key, item in node.get("properties", {}).items() if "properties" in node else ():
            target = item
            if "$ref" in item:
                target = loaded["$defs"][item["$ref"].rsplit("/", 1)[1]]
            assert item.get("description") or target.get("description"), f"{path}.{key}"


@pytest.mark.parametrize("name", schema.names())
def test_every_object_with_fixed_keys_is_closed(name: str) -> None:
    for path, node in nodes(schema.load(name)):
        if "properties" in node and node.get("type") == "object":
            assert node.get("additionalProperties") is False, path


@pytest.mark.parametrize("name", schema.names())
def test_every_required_key_exists(name: str) -> None:
    for path, node in nodes(schema.load(name)):
        if "required" in node and "properties" in node:
            assert set(node["required"]) <= set(node["properties"]), path


def test_a_finished_run_fits_its_schemas() -> None:
    run = Run()
    run.record["files"] = {"plan.json": {"size": 1, "sha256": "0" * 64}}
    for name, value in (
        ("record", run.record),
        ("plan", run.plan),
        ("lock", run.lock),
        *(("journal", line) for line in run.lines),
    ):
        assert schema.check(name, value) == []


@pytest.mark.parametrize("path", sorted(schema.FOLDER.parent.glob("suites/*.yaml")), ids=str)
def test_the_shipped_suites_and_locks_fit_their_schemas(path: Any) -> None:
    kind = "lock" if path.name.endswith(".lock.yaml") else "suite"
    kind = "published" if path.name == suites.PUBLISHED else kind
    assert schema.check(kind, yaml.safe_load(path.read_text())) == []


def test_a_problem_is_one_line_with_the_json_path() -> None:
    run = Run()
    run.record["files"] = {"plan.json": {"size": 1, "sha256": "0" * 64}}
    run.record["tasks"]["arc_challenge"]["n"] = "four"
    run.record["groups"]["science"]["surprise"] = 1
    problems = schema.check("record", run.record)
    assert problems == [
        "$.groups.science: Additional properties are not allowed ('surprise' was unexpected)",
        "$.tasks.arc_challenge.n: 'four' is not of type 'integer'",
    ]


def test_of_several_forms_the_nearest_is_explained() -> None:
    value = {"name": "mine", "tasks": ["mmlu", {"task": "bbh", "num_fewshot": "3"}]}
    assert schema.check("suite", value) == [
        "$.tasks[1].num_fewshot: '3' is not of type 'integer', 'null'"
    ]


def test_a_key_that_is_no_identifier_is_quoted_in_the_path() -> None:
    lock = Run().lock
    lock["datasets"]["a b/c"] = {"revision": "main", "licence": "mit", "redistributable": True}
    (problem,) = schema.check("lock", lock)
    assert problem.startswith("$.datasets['a b/c'].revision: 'main' does not match")


def test_a_huge_value_does_not_make_a_huge_problem() -> None:
    problems = schema.check("suite", {"name": "x" * 1_000_000, "tasks": ["mmlu"]})
    assert len(problems) == 1
    assert len(problems[0]) < 400


def test_deep_nesting_is_a_problem_and_not_a_crash() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert schema.check("suite", {"name": "a", "tasks": value}) != []
    assert schema.check("record", {"command": {"argv": value, "config": {"a": value}}}) != []


def test_an_unknown_schema_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="there are attestation, gate, journal"):
        schema.load("../../etc/passwd")
