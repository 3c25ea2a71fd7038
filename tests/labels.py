"""A metric of labels on the own base class of `evaluate`, which turns labels into columns of 32
bits: what the Hub's metrics are, without the Hub."""

from functools import cache
from typing import Any

from evalkit.harness.data import metrics


@cache
def metric(name: str) -> Any:
    """What `evaluate.load` gives for a metric of labels."""
    import datasets
    import evaluate
    import sklearn.metrics

    class Metric(evaluate.Metric):  # type: ignore[misc]
        def _info(self) -> Any:
            kinds = {key: datasets.Value("int32") for key in ("predictions", "references")}
            return evaluate.MetricInfo(
                description="", citation="", inputs_description="",
                features=datasets.Features(kinds),
            )  # fmt: skip

        def _compute(self, predictions: Any, references: Any, **settings: Any) -> Any:
            function = getattr(sklearn.metrics, metrics.FUNCTIONS[name])
            return function(references, predictions, **settings)

    return Metric(keep_in_memory=True)
