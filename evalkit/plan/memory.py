"""How much a GPU's memory holds: the policy for a class of GPUs, and what does not fit.

A plan is for a class, named by its gigabytes (24, 40, 80, 141, ...), never for what is free on some
host: the class is part of the identity, and so is the policy that follows from it, the model's
shape and the bytes of its weights. A model that needs several GPUs gets the policy of the fewest
that hold it, so that more of them change no batch. Estimates err upwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs.models.architecture import Shape
from evalkit.plan.batch import Policy
from evalkit.plan.types import BatchEntry, PlanBody, SettingsEntry

CLASSES = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 180)  # GB that GPUs are sold with
MOST_GPUS = 8
GIB = 1 << 30
SEEN = 0.9  # of a class's GiB that the least of its GPUs has, and that are used
OWN = 1.5 * GIB  # CUDA's context, kernels, cuBLAS's workspaces, graphs
UNEVEN = 1.05  # the fullest of several GPUs against their mean
PASSES, CACHES, TRUNKS = 0.3, 0.4, 0.3  # shares of what weights leave
LEAST = 1024  # tokens of a cache and of a trunk
TOKENS = (2048, 4096, 8192, 16384, 32768)  # of a pass
SLOTS, PREFILL, CHUNK = 256, 16384, 2048  # at most
IN_FLOAT32 = 512  # positions whose logits are in float32 at once, twice
PLAIN_KEYS = 2048  # that a token meets where scores have a place in memory


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model needs: its shape, the bytes of its weights in memory, and of a number that it
    computes with."""

    shape: Shape
    weights: int
    number: int

    @property
    def cache(self) -> int:
        """Bytes of a token's keys and values."""
        return self.shape.cache_bytes(self.number)

    def free(self, memory: int, gpus: int) -> float:
        """Bytes that the weights leave on each of so many GPUs of a class, less than none where
        they do not fit."""
        each = self.weights * UNEVEN / gpus if gpus > 1 else self.weights
        return SEEN * memory * GIB - OWN - each

    def passes(self, tokens: int, scored: int, memory: int) -> float:
        """Bytes of a forward pass over so many tokens, with logits at `scored` positions."""
        plain = self.shape.softcap or (memory == 16 and self.number == 2)
        logits = scored * self.number + min(scored, IN_FLOAT32) * 8
        each = self.shape.pass_bytes(self.number, PLAIN_KEYS if plain else 0)
        return tokens * each + logits * self.shape.vocabulary


@dataclass(frozen=True, slots=True)
class Fit:
    """A policy, and the fewest GPUs of its class that the model is for."""

    gpus: int
    policy: Policy


def class_of(total: int) -> int | None:
    """The class of a GPU with so many bytes; None for one smaller than any."""
    return max((c for c in CLASSES if total >= SEEN * c * GIB), default=None)


def fit(needs: Needs, memory: int) -> Fit | None:
    """The policy for a class, on the fewest GPUs; None where not even `MOST_GPUS` are enough."""
    for gpus in range(1, MOST_GPUS + 1):
        policy = _policy(needs, memory, gpus)
        if policy is not None:
            return Fit(gpus, policy)
    return None


def _policy(needs: Needs, memory: int, gpus: int) -> Policy | None:
    free = needs.free(memory, gpus)
    fitting = [t for t in TOKENS if needs.passes(t, t // 4, memory) <= PASSES * free]
    caches, trunk = int(CACHES * free / needs.cache), int(TRUNKS * free / (2 * needs.cache))
    if not fitting or min(caches, trunk) < LEAST:
        return None
    tokens = fitting[-1]
    held = [t for t in TOKENS if t * needs.cache + needs.passes(t, 0, memory) <= PASSES * free]
    prefill = min(PREFILL, tokens, max(held, default=TOKENS[0] // 2))
    return Policy(
        max_tokens=tokens, max_scored=tokens // 4, max_slots=SLOTS, max_cache=_rounded(caches),
        chunk=min(CHUNK, prefill), prefill=prefill, max_trunk=_rounded(trunk), memory=memory,
    )  # fmt: skip


def _rounded(tokens: int) -> int:
    """Down to a multiple of 1,024: no last bit of an estimate is in an identity."""
    return tokens // LEAST * LEAST


def worst(needs: Needs, policy: Policy, gpus: int) -> float:
    """Bytes that a GPU of so many holds at the worst moment of any plan by this policy. With
    several, as many batches are under way as there are GPUs, and each GPU has its part of each."""
    weights = SEEN * policy.memory * GIB - OWN - needs.free(policy.memory, gpus)
    passing = max(
        needs.passes(policy.max_tokens, policy.max_scored, policy.memory),
        needs.passes(policy.prefill, 0, policy.memory) + policy.prefill * needs.cache,
    )
    kept = (policy.max_cache + 2 * policy.max_trunk) * needs.cache
    return weights + OWN + passing + kept


def fitting(needs: Needs) -> Iterator[tuple[int, int]]:
    """(class, fewest GPUs) of every class that holds the model."""
    for memory in CLASSES:
        found = fit(needs, memory)
        if found is not None:
            yield memory, found.gpus


@dataclass(frozen=True, slots=True)
class Room:
    """What a plan for GPUs has to keep to: the model's needs, and so many GPUs for one model."""

    needs: Needs
    policy: Policy
    gpus: int


def require(needs: Needs, memory: int, gpus: int | None, reference: str) -> Room:
    """The room on GPUs of a class. `gpus`: how many one model may lie on, None where that isn't
    known.

    Raises EvalkitError that says what would fit where this does not.
    """
    found = fit(needs, memory)
    if found is not None and (gpus is None or found.gpus <= gpus):
        return Room(needs, found.policy, gpus or found.gpus)
    have = "one GPU" if gpus == 1 else f"{gpus or MOST_GPUS} GPUs"
    fewer: dict[int, int] = {}  # by number of GPUs, the smallest class
    for size, number in fitting(needs):
        fewer.setdefault(number, size)
    would = [f"{n if n > 1 else 'one'} of {size} GB" for n, size in fewer.items()]
    auto = " (--device auto lays a model over several)" if gpus == 1 and found else ""
    raise EvalkitError(
        f"'{reference}' does not fit into {have} of {memory} GB: {needs.weights / 1e9:.1f} GB of"
        f" weights, {needs.cache / 1e3:,.0f} kB for each token that is kept",
        fix=f"what would: {', '.join(would) or f'nothing up to {MOST_GPUS} GPUs'}{auto}",
        code=Exit.MISSING,
    )


def check(body: PlanBody, room: Room) -> None:
    """Hold a plan's batches against the class that it is for, before weights are loaded.

    Raises EvalkitError that names the first batch which can't fit, and what its task has too much.
    """
    needs, policy, gpus = room.needs, room.policy, room.gpus
    free = needs.free(policy.memory, gpus)
    lengths: list[int] = []  # of each trunk's whole chain
    for chained in body["trunks"]:
        above = chained["parent"]
        lengths.append(chained["length"] + (lengths[above] if above is not None else 0))
    for entry in body["batches"]:
        trunk = lengths[entry["trunk"]] if entry["trunk"] is not None else 0
        found = _batch_bytes(entry, body["settings"], trunk, needs, policy)
        if found > free:
            raise EvalkitError(
                f"a batch of {entry['task']} needs {found / 1e9:.1f} GB beside the weights, and"
                f" {gpus} GPUs of {policy.memory} GB have {free / 1e9:.1f} each: rows of"
                f" {entry['width']:,} tokens behind {trunk:,}",
                fix="--memory with a larger class, --device auto over more GPUs, or a --dtype of"
                " fewer bytes",
                code=Exit.MISSING,
            )


def _batch_bytes(
    entry: BatchEntry, settings: list[SettingsEntry], trunk: int, needs: Needs, policy: Policy
) -> float:
    """Bytes that a batch takes beside the weights, at most. `trunk`: its tokens."""
    width = entry["width"]
    tokens = entry["rows"] * width
    if entry["settings"] is None:
        scored = needs.passes(tokens, policy.max_scored, policy.memory)
        return scored + 2 * trunk * needs.cache
    longest = max(target[2] for target in entry["targets"]) - trunk
    grown = longest + settings[entry["settings"]]["max_gen_toks"]
    tokens = max(width, min(policy.prefill, tokens))
    kept = policy.slots(grown) * grown + 2 * trunk + tokens
    return needs.passes(tokens, 0, policy.memory) + kept * needs.cache
