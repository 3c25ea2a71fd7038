"""What planning a whole suite costs, and what its plan makes an engine compute.

    python -m bench.plan_figures [core | leaderboard] [--level tree] [--limit N]

Builds the suite's real requests, then tokenises and plans them, and prints the seconds and the
memory of both, and for each of the suite's members and the whole: the tokens of all prompts, those
that differ (the trie's), those that one uninterrupted worker computes with padding, and how many
batches and trunks there are.
"""

import argparse
import resource
import time
from collections import Counter
from typing import Any

from bench import data, model
from evalkit.inputs import suite as suites
from evalkit.plan import grouping, store
from evalkit.plan.tokenise import Tokenised


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suite", nargs="?", default="core")
    parser.add_argument("--level", choices=store.LEVELS, default="tree")
    parser.add_argument("--limit", type=int)
    chosen = parser.parse_args()
    with data.served():
        from evalkit.inputs.models import model as models
        from evalkit.inputs.models.tokenizer import Tokenizer
        from evalkit.plan.tokenise import tokenise

        tokenizer = Tokenizer(models.resolve(str(model.folder())))
        requests = data.requests(data.load(suites.load(chosen.suite, limit=chosen.limit)))
    print(f"{chosen.suite}, level {chosen.level}: {len(requests):,} requests; {memory()} so far")
    started, used = time.perf_counter(), time.process_time()
    tokenised = tokenise(requests, tokenizer)
    say("tokenised", started, used)
    started, used = time.perf_counter(), time.process_time()
    body, _ = store.build(
        tokenised, store.Policy(), level=chosen.level, suite_id="", tokenizer={},
        max_length=tokenizer.max_length,
    )  # fmt: skip
    say("planned", started, used)
    table(tokenised, body)


def say(what: str, started: float, used: float) -> None:
    """How long a stage took; processor seconds count both cores and hold on a busy machine, too."""
    seconds, busy = time.perf_counter() - started, time.process_time() - used
    print(f"{what} in {seconds:.1f} s ({busy:.1f} processor seconds), {memory()} at most")


def memory() -> str:
    """The most that this process has held."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB"


def table(tokenised: Tokenised, body: dict[str, Any]) -> None:
    """A line for each member of the suite, then the whole."""
    every, unique = Counter[str](), Counter[str]()
    for group in grouping.groups(tokenised):
        trie = group.trie()
        for name in (member(group.task), "all"):
            every[name] += int(trie.lengths.sum())
            unique[name] += trie.unique(trie.whole)
    print(f"{'':14}{'prompts':>12}{'unique':>12}{'computed':>12}{'ratio':>8}{'padding':>9}"
          f"{'batches':>9}{'trunks':>8}{'longest':>10}")  # fmt: skip
    for name in sorted(every, key=lambda name: (name == "all", name)):
        found = store.figures(part(body, name))
        print(f"{name:14}{every[name]:12,}{unique[name]:12,}{found.computed:12,}"
              f"{found.computed / unique[name]:8.3f}{found.padding / found.computed:9.1%}"
              f"{found.batches:9,}{found.trunks:8,}{found.longest:10,}")  # fmt: skip


def member(task: str) -> str:
    """The member of the suite that a leaf task belongs to, by its name."""
    return "arc_challenge" if task == "arc_challenge" else task.split("_")[0]


def part(body: dict[str, Any], name: str) -> dict[str, Any]:
    """The plan of one member alone; all of it for `all`."""
    batches: list[dict[str, Any]] = body["batches"]
    trunks: list[dict[str, Any]] = body["trunks"]
    chosen = [entry for entry in batches if name in ("all", member(str(entry["task"])))]
    used: set[int] = set()
    for entry in chosen:
        index = entry["trunk"]
        while index is not None and index not in used:
            used.add(index)
            index = trunks[index]["parent"]
    return {"batches": chosen, "trunks": [t for n, t in enumerate(trunks) if n in used]}


if __name__ == "__main__":
    main()
