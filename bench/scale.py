"""How many shards pay: a plan's batches replayed on 1 to 1,024 shards, with what clusters do.

    python -m bench.scale        # or: make bench-scale; writes docs/cluster.md's tables

The batches are `core`'s by the committed lengths, dealt as `execute --shard` deals them, on nodes
that answer `SPEED` tokens a second. Each start of a shard costs `shards.START_S`; a part of the
nodes is slow; every running shard is preempted now and then, loses the batch in hand and waits to
start again; some fail at once for a reason of their own and are sent again when the others are
done. Nothing is computed, and the same seed gives the same table.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench import ROOT, lengths
from bench.tables import publish, table
from evalkit.plan import shards, store

SPEED = 1_000.0  # tokens a second of a node
COUNTS = [1 << power for power in range(11)]
NODES = 16  # of the second table
NEW_TOKENS = 160
SEED = 0


@dataclass(frozen=True)
class Weather:
    """What goes wrong. Shares of 1; times in seconds."""

    slow: float = 0.05
    slowness: float = 2.0
    preempted_each_s: float = 4 * 3600.0  # on the average, while it runs
    requeue_s: float = 120.0
    failing: float = 0.02


FAIR = Weather(slow=0.0, preempted_each_s=float("inf"), failing=0.0)
FOUL = Weather()


@dataclass(frozen=True)
class Outcome:
    """When all is done, in seconds, and the seconds of nodes' time in all and for lost batches."""

    wall_s: float
    busy_s: float
    lost_s: float


def replay(dealt: Sequence[Sequence[float]], nodes: int, weather: Weather, seed: int) -> Outcome:
    """Work through shards, each a list of batches' seconds, on so many nodes, in order."""
    source = random.Random(seed)
    free = [(0.0, source.random() < weather.slow) for _ in range(nodes)]
    heapq.heapify(free)
    failing = [source.random() < weather.failing for _ in dealt]
    busy = lost = 0.0
    for again in (False, True):
        for batches, fails in zip(dealt, failing, strict=True):
            if again and not fails:
                continue
            start, is_slow = heapq.heappop(free)
            factor = weather.slowness if is_slow else 1.0
            took, wasted = shards.START_S, 0.0
            if again or not fails:
                took, wasted = _shard([each * factor for each in batches], weather, source)
            busy, lost = busy + took, lost + wasted
            heapq.heappush(free, (start + took, is_slow))
        if any(failing) and not again:  # the finishing job sends them when the array has ended
            ended = max(time for time, _ in free)
            free = [(ended, is_slow) for _, is_slow in free]
    return Outcome(max(time for time, _ in free), busy, lost)


def _shard(
    batches: Sequence[float], weather: Weather, source: random.Random
) -> tuple[float, float]:
    """How long a shard takes with its restarts, and how much of that is lost batches."""
    took, lost = shards.START_S, 0.0
    left = weather.preempted_each_s * source.expovariate(1.0)
    for seconds in batches:
        while left < seconds:  # preempted in this batch
            took, lost = took + left + weather.requeue_s + shards.START_S, lost + left
            left = weather.preempted_each_s * source.expovariate(1.0)
        took, left = took + seconds, left - seconds
    return took, lost


def seconds_of(body: dict[str, object], count: int) -> list[list[float]]:
    """Each shard's batches, in seconds."""
    costs = shards.Costs(body)
    return [[cost / SPEED for cost in costs.each(shard)] for shard in shards.deal(body, count)]


def main() -> None:
    """The command."""
    rows = lengths.tokenised(lengths.read(), 32_000, NEW_TOKENS)
    body, _ = store.build(
        rows, store.Policy(), level="tree", suite_id="", tokenizer={}, max_length=4096
    )
    dealt = {count: seconds_of(body, count) for count in COUNTS}
    alone = sum(dealt[1][0])
    wide, narrow, figures = [], [], {}
    for count in COUNTS:
        fair = replay(dealt[count], count, FAIR, SEED)
        foul = replay(dealt[count], count, FOUL, SEED)
        wide.append([f"{count:,}", _time(max(map(sum, dealt[count]))), _time(fair.wall_s),
                     _share(alone, fair.busy_s), _time(foul.wall_s), _share(alone, foul.busy_s),
                     f"{100 * foul.lost_s / alone:.1f}%"])  # fmt: skip
        figures[str(count)] = {"fair": vars(fair), "foul": vars(foul)}
        if count >= NODES:
            foul = replay(dealt[count], NODES, FOUL, SEED)
            narrow.append([f"{count:,}", _time(foul.wall_s), _share(alone, foul.busy_s),
                           f"{100 * alone / (NODES * foul.wall_s):.0f}%"])  # fmt: skip
    chosen = shards.default_count(body, SPEED)
    head = (
        f"`core`: {len(body['batches']):,} batches, {_time(alone)} on one node of"
        f" {SPEED:,.0f} tokens a second; the default for it is {chosen} shards."
    )
    text = "\n".join([head, *_tables(wide, narrow)])
    publish("bench-scale", text, figures, ROOT / "docs" / "cluster.md")
    print(text)


def _tables(wide: list[list[str]], narrow: list[list[str]]) -> list[str]:
    """Both tables with what stands above them."""
    used = "of nodes' time used"
    first = ["shards", "longest shard", "fair: wall", used, "foul: wall", used, "computed twice"]
    second = ["shards", "wall", used, f"of {NODES} nodes until the end"]
    return [
        "",
        "A node for every shard:",
        "",
        table(first, wide),
        "",
        f"More shards than nodes, {NODES} nodes, foul:",
        "",
        table(second, narrow),
    ]


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _share(work: float, busy: float) -> str:
    return f"{100 * work / busy:.0f}%"


if __name__ == "__main__":
    main()
