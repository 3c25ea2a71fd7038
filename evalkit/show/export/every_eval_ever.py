"""Scores for a shared collection: Every Eval Ever 0.3.0.

Its schema is shipped beside this file, under its own licence, and what is made here is checked
against it before it is given out. What it has no field for (a dataset's revision, how a standard
error was made, that a record is BROKEN) goes where it allows further details, never left out.
"""

import json
import math
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs.suite import OWN_FILES
from evalkit.record.methods import BOOTSTRAP
from evalkit.record.reading.scores.score_table import model_name
from evalkit.show.scores.rows import Row, rows
from evalkit.show.source import Source

VERSION = "0.3.0"
SCHEMA = Path(__file__).parent / "schemas" / f"every_eval_ever-{VERSION}.json"


@cache
def eee_schema() -> dict[str, Any]:
    """Every Eval Ever's schema."""
    found: dict[str, Any] = json.loads(SCHEMA.read_text("utf-8"))
    return found


def every_eval_ever(source: Source) -> str:
    """A record as an Every Eval Ever file; scores that are not finite numbers are named in the
    source's details, as the format has no place for them."""
    record = source.record
    created = record["created"]  # lm-eval's own results may not say when
    stamp = str(int(datetime.fromisoformat(created).timestamp())) if created else "0"
    found = [row for row in rows(record) if math.isfinite(row.value)]
    left_out = sorted(f"{row.task} {row.name}" for row in rows(record) if row not in found)
    if not found:
        raise EvalkitError("no score is a finite number", code=Exit.FAILED)
    body = {
        "schema_version": VERSION,
        "evaluation_id": f"{record['suite']['name']}/{model_name(record)}/{stamp}",
        **({"evaluation_timestamp": created} if created else {}),
        "retrieved_timestamp": stamp,
        "source_metadata": _provenance(source, left_out),
        "eval_library": {
            "name": "lm_eval",
            "version": _package(record, "lm_eval"),
            "additional_details": _strings(
                {"driver": "evalkit", **record["environment"]["versions"]}
            ),
        },
        "model_info": _model(record),
        "evaluation_results": [_result(record, row) for row in found],
    }
    problems = schema.problems(eee_schema(), body)
    assert not problems, f"not as Every Eval Ever {VERSION} says: {problems[:3]}"
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def _provenance(source: Source, left_out: list[str]) -> dict[str, Any]:
    record = source.record
    details = {
        **{f"{name}_id": digest for name, digest in record["ids"].items()},
        "execution": record["execution"],
        "record_schema": record["schema"],
        "partial": record["suite"]["partial"],
        "left_out": left_out or None,
        "verdict": source.report.verdict,
    }
    return {
        "source_name": "evalkit record" if source.whole else "lm-eval results",
        "source_type": "evaluation_run",
        "source_organization_name": "unknown",
        "evaluator_relationship": "other",
        "additional_details": _strings(details),
    }


def _model(record: dict[str, Any]) -> dict[str, Any]:
    model, engine = record["model"], record["engine"]["name"]
    return {
        "name": model_name(record),
        "id": model_name(record),
        "inference_engine": {
            "name": engine,
            "version": str(record["environment"]["versions"].get("evalkit", "unknown")),
        },
        "additional_details": {
            "deployment_type": "self_deployed" if engine == "evalkit" else "unknown",
            "model_availability": "unknown",
            **_strings(
                {"revision": model["revision"], "dtype": record["numerics"]["dtype"],
                 "parameters": model["parameters"]}
            ),
        },
    }  # fmt: skip


def _package(record: dict[str, Any], name: str) -> str:
    found = record["environment"]["packages"]
    return str(found.get(name) or found.get(name.replace("_", "-")) or "unknown")


def _strings(values: dict[str, Any]) -> dict[str, str]:
    """Details, all of them text, as the format wants; what is None is left out."""
    return {
        key: value if isinstance(value, str) else canon.dumps(value)
        for key, value in values.items()
        if value is not None
    }


def _result(record: dict[str, Any], row: Row) -> dict[str, Any]:
    task = record["tasks"].get(row.task)
    uncertainty: dict[str, Any] = {"num_samples": row.documents}
    if row.stderr is not None:
        method = "bootstrap" if row.stderr_method == BOOTSTRAP else "analytic"
        uncertainty["standard_error"] = {"value": row.stderr, "method": method}
    return {
        "evaluation_result_id": f"{row.task}/{row.metric},{row.filter}",
        "evaluation_name": row.task,
        "source_data": _source(record, row, task),
        "metric_config": {
            "metric_id": row.metric,
            "metric_name": row.name,
            "lower_is_better": row.higher_is_better is False,
            "score_type": "continuous",
            **_bounds(row),
            "additional_details": _strings({"filter": row.filter, "num_fewshot": row.shots}),
        },
        "score_details": {
            "score": row.value,
            "details": _strings({"stderr_method": row.stderr_method}),
            "uncertainty": uncertainty,
        },
    }


def _bounds(row: Row) -> dict[str, Any]:
    """The least and the greatest possible score; None where the metric's name alone doesn't say."""
    if row.share:
        return {"min_score": 0, "max_score": 1}
    if row.higher_is_better is False:  # perplexities, bits and error rates
        return {"min_score": 0 if row.value >= 0 else None, "max_score": "Infinity"}
    return {"min_score": None, "max_score": None}


def _source(record: dict[str, Any], row: Row, task: dict[str, Any] | None) -> dict[str, Any]:
    if task is None:
        below = record["groups"][row.task]["subtasks"]
        return {"dataset_name": row.task, "source_type": "other",
                "additional_details": _strings({"made_of": below})}  # fmt: skip
    dataset = task["dataset"]
    details = _strings(
        {"revision": dataset["revision"], "config": dataset["config"], "rows": dataset["rows"],
         "task_version": task["version"], "licence": dataset["licence"]}
    )  # fmt: skip
    name, split = dataset["repo"], dataset["split"] or "unknown"
    if name.startswith(OWN_FILES):
        return {"dataset_name": name, "source_type": "other",
                "additional_details": details | {"split": split}}  # fmt: skip
    return {"dataset_name": name, "source_type": "hf_dataset", "hf_repo": name, "hf_split": split,
            "samples_number": task["documents"], "additional_details": details}  # fmt: skip
