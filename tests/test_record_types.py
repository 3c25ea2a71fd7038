"""The types of a run's files are those of their schemas, or, where a file has no schema, those of
what is written: the same keys, required alike, and values of the same kinds."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_types import Against

from evalkit.harness.samples import Sample
from evalkit.record import sections, types
from evalkit.record.reading.evidence.samples import FIELDS
from evalkit.record.signing import types as signing
from evalkit.run.preparing.prepare import Options

EXAMPLE = Path(__file__).parents[1] / "results" / "example"
MIRRORED = [
    (types.Record, "record"),
    (types.JournalLine, "journal"),
    (signing.StatementBody, "statement"),
    (signing.AttestationBody, "attestation"),
    (signing.SealStatement, "seal"),
]
# Where a schema takes any object and evalkit writes one with fixed keys.
WIDER_IN_THE_SCHEMA = ("$.command.config", "$.predicate.numerics")


@pytest.mark.parametrize(("hint", "name"), MIRRORED, ids=[name for _, name in MIRRORED])
def test_a_type_says_what_its_schema_says(hint: Any, name: str) -> None:
    against = Against(name)
    problems = sorted(against.unlike(hint, against.node("")))
    assert [each for each in problems if not each.startswith(WIDER_IN_THE_SCHEMA)] == []


def test_the_type_of_run_json_has_the_keys_that_a_run_writes() -> None:
    (path,) = EXAMPLE.glob("*/run.json")
    body = json.loads(path.read_text("utf-8"))
    assert body.keys() == types.RunBody.__required_keys__
    assert body["ids"].keys() == types.RunIds.__required_keys__


def test_the_type_of_options_has_a_key_for_each_option_that_is_published() -> None:
    assert Options("demo").published().keys() == sections.OptionsEntry.__required_keys__


def test_the_type_of_a_sample_has_the_fields_that_verify_asks_for() -> None:
    assert FIELDS.keys() == Sample.__required_keys__
