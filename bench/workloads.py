"""What `make bench` asks: real documents of the four benchmarks, few enough to be asked often."""

from dataclasses import dataclass

from bench import data
from evalkit.request import Request
from evalkit.suite import Suite, SuiteTask

# Of all subjects, whose prompts have 121 tokens on average and 88 in the middle: 92 and 134.
SUBJECTS = ("mmlu_high_school_biology", "mmlu_high_school_statistics")
# Near the average prompt of 850 tokens: 746, 777 and 890.
REASONING = ("reasoning_about_colored_objects", "word_sorting",
             "tracking_shuffled_objects_seven_objects")  # fmt: skip
NEW_TOKENS = 160


@dataclass(frozen=True)
class Workload:
    """Some documents of a benchmark; `goal` is the ratio to lm-eval at batch size 4 asked for."""

    name: str
    suite: Suite
    goal: float


WORKLOADS = (
    Workload("MMLU 5-shot, 64", data.suite([SuiteTask(n, 5) for n in SUBJECTS], limit=32), 10.0),
    Workload("MMLU 0-shot, 64", data.suite([SuiteTask(n) for n in SUBJECTS], limit=32), 1.8),
    Workload("HellaSwag, 48", data.suite([SuiteTask("hellaswag")], limit=48), 2.7),
    Workload("ARC-challenge, 64", data.suite([SuiteTask("arc_challenge")], limit=64), 3.5),
    Workload(
        "BBH, 24",
        data.suite(
            [SuiteTask(f"bbh_cot_fewshot_{name}") for name in REASONING],
            limit=8,
            gen_kwargs={"max_gen_toks": NEW_TOKENS},
        ),
        4.0,
    ),
)


def requests() -> dict[str, list[Request]]:
    """The requests of every workload, by its name. Needs `data.served`."""
    return {work.name: data.requests(data.load(work.suite)) for work in WORKLOADS}
