"""Scores for a shared collection: Every Eval Ever 0.3.0.

Its schema is shipped beside this file, under its own licence, and what is made here is checked
against it before it is written. What it has no field for (a dataset's revision, how a standard
error was computed, that a record is BROKEN) goes into its further details.
"""

import json
import math
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs.suite import OWN_FILES
from evalkit.record.reading.score_table import Score, model_name
from evalkit.record.sections import BOOTSTRAP
from evalkit.record.types import AnyRecord
from evalkit.show.source import Source, rows

VERSION = "0.3.0"
SCHEMA = Path(__file__).parent / "schemas" / f"every_eval_ever-{VERSION}.json"


@cache
def eee_schema() -> canon.Json:
    """Return Every Eval Ever's schema."""
    return json.loads(SCHEMA.read_text("utf-8"))


def every_eval_ever(source: Source) -> str:
    """Return a record as an Every Eval Ever file. The format has no place for scores that are not
    finite; the source's details name them."""
    record = source.record
    created = record["created"]  # lm-eval's own results may not say when
    stamp = str(int(datetime.fromisoformat(created).timestamp())) if created else "0"
    scores = [row.score for row in rows(record)]
    finite = [score for score in scores if math.isfinite(score.value)]
    left_out = sorted(f"{s.task} {s.name}" for s in scores if not math.isfinite(s.value))
    if not finite:
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
        "evaluation_results": [_result(record, score) for score in finite],
    }
    if problems := schema.problems(eee_schema(), body):  # of what a stranger's folder says
        what = f"it can't be said as Every Eval Ever {VERSION}: {problems[0]}"
        raise EvalkitError(what, code=Exit.FAILED)
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def _provenance(source: Source, left_out: list[str]) -> dict[str, object]:
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


def _model(record: AnyRecord) -> dict[str, object]:
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


def _package(record: AnyRecord, name: str) -> str:
    packages = record["environment"]["packages"]
    return str(packages.get(name) or packages.get(name.replace("_", "-")) or "unknown")


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    """Return details as texts, which the format wants; None is left out."""
    return {
        key: value if isinstance(value, str) else canon.dumps(value)
        for key, value in values.items()
        if value is not None
    }


def _result(record: AnyRecord, score: Score) -> dict[str, object]:
    uncertainty: dict[str, object] = {"num_samples": score.count}
    if score.stderr is not None:
        method = "bootstrap" if score.stderr_method == BOOTSTRAP else "analytic"
        uncertainty["standard_error"] = {"value": score.stderr, "method": method}
    return {
        "evaluation_result_id": f"{score.task}/{score.metric}",
        "evaluation_name": score.task,
        "source_data": _source(record, score.task),
        "metric_config": {
            "metric_id": score.metric_name,
            "metric_name": score.name,
            "lower_is_better": score.higher_is_better is False,
            "score_type": "continuous",
            **_bounds(score),
            "additional_details": _strings({"filter": score.filter, "num_fewshot": score.shots}),
        },
        "score_details": {
            "score": score.value,
            "details": _strings({"stderr_method": score.stderr_method}),
            "uncertainty": uncertainty,
        },
    }


def _bounds(score: Score) -> dict[str, int | str | None]:
    """Return the least and greatest possible score; None where the metric's name doesn't say."""
    if score.share:
        return {"min_score": 0, "max_score": 1}
    if score.higher_is_better is False:  # perplexities, bits and error rates
        return {"min_score": 0 if score.value >= 0 else None, "max_score": "Infinity"}
    return {"min_score": None, "max_score": None}


def _source(record: AnyRecord, name: str) -> dict[str, object]:
    task = record["tasks"].get(name)
    if task is None:
        below = record["groups"][name]["subtasks"]
        return {"dataset_name": name, "source_type": "other",
                "additional_details": _strings({"made_of": below})}  # fmt: skip
    dataset = task["dataset"]
    details = _strings(
        {"revision": dataset["revision"], "config": dataset["config"], "rows": dataset["rows"],
         "task_version": task["version"], "licence": dataset["licence"]}
    )  # fmt: skip
    repo, split = dataset["repo"], dataset["split"] or "unknown"
    if repo.startswith(OWN_FILES):
        return {"dataset_name": repo, "source_type": "other",
                "additional_details": details | {"split": split}}  # fmt: skip
    return {"dataset_name": repo, "source_type": "hf_dataset", "hf_repo": repo, "hf_split": split,
            "samples_number": task["documents"], "additional_details": details}  # fmt: skip
