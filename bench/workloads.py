"""What `make bench` asks: real documents of the four benchmarks, few enough to be asked often."""

from dataclasses import dataclass

from bench import data
from evalkit.inputs.suite import Suite, SuiteTask
from evalkit.plan.requests.request import Request

# The subject and the task whose prompts are nearest to the average ones in length (lengths.json):
# 123 tokens of 116 without shots, 848 of 867. One of each, since all documents of a leaf share its
# shots, 246 on average in mmlu and 241 in bbh.
SUBJECT = "mmlu_professional_accounting"
REASONING = "bbh_cot_fewshot_tracking_shuffled_objects_five_objects"
NEW_TOKENS = 160


@dataclass(frozen=True)
class Workload:
    """Some documents of a benchmark; `goal` is the ratio to lm-eval at batch size 4 asked for."""

    name: str
    suite: Suite
    goal: float


WORKLOADS = (
    Workload("MMLU 5-shot, 64", data.suite([SuiteTask(SUBJECT, 5)], limit=64), 10.0),
    Workload("MMLU 0-shot, 64", data.suite([SuiteTask(SUBJECT)], limit=64), 1.8),
    Workload("HellaSwag, 48", data.suite([SuiteTask("hellaswag")], limit=48), 2.7),
    Workload("ARC-challenge, 64", data.suite([SuiteTask("arc_challenge")], limit=64), 3.5),
    Workload(
        "BBH, 24",
        data.suite(
            [SuiteTask(REASONING)],
            limit=24,
            gen_kwargs={"max_gen_toks": NEW_TOKENS},
        ),
        4.0,
    ),
)


def requests() -> dict[str, list[Request]]:
    """The requests of every workload, by its name. Needs `data.served`."""
    return {work.name: data.requests(data.load(work.suite)) for work in WORKLOADS}
