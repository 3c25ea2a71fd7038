"""Scores into the places where people follow experiments: MLflow and Weights & Biases.

Each takes the store that the reader has set up for it (`MLFLOW_TRACKING_URI`, `WANDB_MODE`, which
may be local ones); nothing that a record names decides where anything goes. A run there holds every
score and standard error, and as its settings the record's ids, verdict and what it ran with.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError, Exit, not_installed
from evalkit.record.reading import score_table
from evalkit.show.source import Source, facts, rows

PROJECT = "evalkit"


def _metrics(source: Source) -> Iterator[tuple[str, float]]:
    """Yield each score as `task/metric`, and its standard error beside it."""
    for row in rows(source.record, source.mark):
        score = row.score
        name = f"{score.task}/{score.name}".replace(",", "_")
        if math.isfinite(score.value):
            yield name, score.value
        if score.stderr is not None:
            yield f"{name}_stderr", score.stderr


def _settings(source: Source) -> dict[str, str]:
    record = source.record
    ids = {f"{name}_id": str(digest) for name, digest in record["ids"].items()}
    return (
        dict(facts(record))
        | ids
        | {
            "model": score_table.model_name(record),
            "suite": record["suite"]["name"],
            "verdict": source.report.verdict,
            "partial": str(record["suite"]["partial"]),
        }
    )


def _run_name(source: Source) -> str:
    name = f"{score_table.model_name(source.record)} on {source.record['suite']['name']}"
    return f"{source.mark}: {name}" if source.mark else name


def to_mlflow(source: Source) -> str:
    """Log a run to the reader's MLflow store, in the experiment `evalkit`; return its run id."""
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise not_installed("mlflow") from None
    try:
        client = MlflowClient()
        known = client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else client.create_experiment(PROJECT)
        run = client.create_run(experiment, run_name=_run_name(source)).info.run_id
        for name, value in _settings(source).items():
            client.set_tag(run, f"evalkit.{name}", value)
        for metric, score in _metrics(source):
            client.log_metric(run, metric, score)
        client.set_terminated(run)
    except MlflowException as error:
        raise EvalkitError(f"MLflow says: {error}", code=Exit.MISSING) from None
    return str(run)


def to_wandb(source: Source, folder: Path) -> str:
    """Log a run to Weights & Biases as the reader has set it up, in the project `evalkit`; return
    its folder in `folder`, which holds its files."""
    try:
        import wandb
    except ImportError:
        raise not_installed("wandb") from None
    settings: Any = wandb.Settings(silent=True, console="off")
    try:
        run = wandb.init(
            project=PROJECT, name=_run_name(source), dir=str(folder), config=_settings(source),
            settings=settings,
        )  # fmt: skip
        run.summary.update(dict(_metrics(source)))
        run.finish()
    except wandb.errors.Error as error:
        raise EvalkitError(f"Weights & Biases says: {error}", code=Exit.MISSING) from None
    return str(Path(run.dir).parent)
