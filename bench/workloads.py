"""What `make bench` asks: real documents of the four benchmarks, few enough to be asked often."""

from dataclasses import dataclass

from bench import data
from evalkit.request import Request
from evalkit.suite import Suite, SuiteTask

# The leaf tasks whose prompts are nearest to their group's average, in the bench's tokens: of mmlu
# 103 and, with 5 shots, 589, 501 of them shared, where its 57 subjects have 107, 610 and 520; of
# bbh 897, 822 of them shared, where its 27 tasks have 869 and 783. A batch holds one leaf's
# documents, of which a whole run has 246 and 241 on average.
SUBJECT = "mmlu_professional_psychology"
REASONING = "bbh_cot_fewshot_penguins_in_a_table"
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
        data.suite([SuiteTask(REASONING)], limit=24, gen_kwargs={"max_gen_toks": NEW_TOKENS}),
        4.0,
    ),
)


def requests() -> dict[str, list[Request]]:
    """The requests of every workload, by its name. Needs `data.served`."""
    return {work.name: data.requests(data.load(work.suite)) for work in WORKLOADS}
