"""Checks whether the blocks of plan.tokens are what plan.json says of them.

Each is zlib over little-endian unsigned 32-bit integers: a trunk's token ids; of a batch the number
of rows, the tokens and the branches of each row, where the branches start, what they hang on plus
1, and the token ids. Nothing here needs numpy.
"""

import struct
import zlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from evalkit.base import canon
from evalkit.plan.types import (
    BatchEntry,
    PlanBody,
    PolicyEntry,
    SettingsEntry,
    TargetEntry,
    TrunkEntry,
)
from evalkit.record.reading.folder import MiB, broken

MAX_BATCH = 64 * MiB  # of a batch's token ids, unpacked


def _unpacked(data: bytes, size: int) -> bytes:
    """Return the content of a block of at most `size` bytes; more is not unpacked."""
    if size > MAX_BATCH:
        raise broken(f"plan.tokens: a block of {size:,} bytes is claimed")
    stream = zlib.decompressobj()
    content = stream.decompress(data, size + 1)
    if len(content) <= size and (not stream.eof or stream.unused_data):
        raise broken("plan.tokens: a block is cut, or something stands behind it")
    return content


class Trunks:
    """The plan's trunks, whose shape has been checked: a parent stands before its children."""

    def __init__(self, entries: list[TrunkEntry]) -> None:
        self.entries = entries
        self._lengths: list[int] = []  # with their parents'
        for entry in entries:
            self._lengths.append(entry["length"] + self.length(entry["parent"]))

    def id(self, index: int | None) -> str | None:
        """Return a trunk's id; None for no trunk."""
        return None if index is None else str(self.entries[index]["id"])

    def length(self, index: int | None) -> int:
        """Return the number of tokens of a trunk and all above it."""
        return 0 if index is None else self._lengths[index]

    def problem(self, index: int, data: bytes) -> str:
        """Say what is wrong with a trunk's block; empty if nothing is."""
        entry = self.entries[index]
        content = _unpacked(data, 4 * entry["length"])
        if len(content) != 4 * entry["length"]:
            return "holds another number of tokens than its entry says"
        layout = {"parent": self.id(entry["parent"]), "tokens": canon.digest_bytes(content)}
        return "" if canon.digest(layout) == entry["id"] else "has another digest"


def batch_problem(
    entry: BatchEntry, data: bytes, body: PlanBody, trunks: Trunks,
    scored: Mapping[str, int],
) -> str:  # fmt: skip
    """Say what is wrong with a batch's block; empty if nothing is. `scored`: how many tokens each
    part's answer says it scored, where there is one."""
    rows, tokens = entry["rows"], entry["tokens"]
    # what it holds at most, as a branch has a token; guards against a bomb
    content = _unpacked(data, 4 * (1 + 2 * rows + 3 * tokens))
    found = _rows(content, rows, tokens)
    if not found or max(row.length for row in found) != entry["width"]:
        return "holds other rows than its entry says"
    index, policy, trunk = entry["settings"], body["policy"], entry["trunk"]
    settings = None if index is None else body["settings"][index]
    layout = {
        "kind": entry["kind"],
        "settings": settings,
        "trunk": trunks.id(trunk),
        "tokens": canon.digest_bytes(content),
        "targets": [[*target[:4], f"{entry['task']}/{target[4]}"] for target in entry["targets"]],
        "slots": _slots(entry, policy, settings, trunks.length(trunk)) if settings else 0,
        "chunk": policy["chunk"],
        **({"prefill": policy["prefill"]} if "prefill" in policy and settings else {}),
    }
    if canon.digest(layout) != entry["id"]:
        return "has another digest"
    new_tokens = len(entry["targets"]) * settings["max_gen_toks"] if settings else 0
    if entry["cost"] != rows * entry["width"] + new_tokens:
        return "costs something else than its entry says"
    if not _may_share(entry, found, body["level"]):
        return f"shares more than level {body['level']} does"
    length = trunks.length(trunk)
    problems = (_target_problem(target, entry, found, length, body, scored)
                for target in entry["targets"])  # fmt: skip
    idle = {target[0] for target in entry["targets"]} != set(range(rows))
    return next(filter(None, problems), "has a row that answers nothing" if idle else "")


def _target_problem(
    target: TargetEntry, entry: BatchEntry, found: "list[_Row]", trunk: int,
    body: PlanBody, scored: Mapping[str, int],
) -> str:  # fmt: skip
    """Say what is wrong with a target behind a trunk of that many tokens; empty if nothing is."""
    if not _target_fits(target, found, trunk, entry["settings"] is not None):
        return "has a target that its rows do not hold"
    end = trunk + found[target[0]].depth(target[1])
    if end >= body["max_length"]:
        return f"has a row of {end + 1:,} tokens, the context is {body['max_length']:,}"
    number = end - target[2] + 1
    part = f"{entry['task']}/{target[4]}"
    if entry["settings"] is None and scored.get(part, number) != number:
        return f"scores {number:,} tokens of {target[4]}, its answer says another number"
    return ""


def _slots(entry: BatchEntry, policy: PolicyEntry, settings: SettingsEntry, trunk: int) -> int:
    longest = max(int(target[2]) for target in entry["targets"]) - trunk
    tokens = max(1, longest + int(settings["max_gen_toks"]))
    return max(1, min(policy["max_slots"], policy["max_cache"] // tokens))


@dataclass(frozen=True, slots=True)
class _Row:
    """A row's shape: where its branches start, and how deep behind the trunk each one starts."""

    length: int
    starts: tuple[int, ...]
    depths: list[int]

    def depth(self, token: int) -> int:
        branch = bisect_right(self.starts, token) - 1
        return self.depths[branch] + token - self.starts[branch]


def _rows(content: bytes, rows: int, tokens: int) -> list[_Row]:
    """Return the rows of a batch's content; none where they are not `rows` rows of `tokens` tokens
    whose branches hang on tokens before them."""
    (count,) = struct.unpack_from("<I", content)
    if count != rows or not rows:
        return []
    shape = struct.unpack_from(f"<{2 * rows}I", content, 4)
    lengths, branches = shape[:rows], shape[rows:]
    number = sum(branches)
    if sum(lengths) != tokens or len(content) != 4 * (1 + 2 * rows + 2 * number + tokens):
        return []
    links = struct.unpack_from(f"<{2 * number}I", content, 4 * (1 + 2 * rows))
    found: list[_Row] = []
    first = 0
    for length, size in zip(lengths, branches, strict=True):
        part = slice(first, first + size)
        first += size
        row = _Row(length, links[:number][part], [])
        for start, parent in zip(row.starts, links[number:][part], strict=True):
            if parent > start:
                return []
            row.depths.append(row.depth(parent - 1) + 1 if parent else 0)
        ends = [*row.starts[1:], length]
        if row.starts[:1] != (0,) or any(s >= e for s, e in zip(row.starts, ends, strict=True)):
            return []
        found.append(row)
    return found


def _may_share(entry: BatchEntry, rows: list[_Row], level: str) -> bool:
    """Say whether the level allows what a batch shares."""
    return (level == "tree" or all(len(row.starts) == 1 for row in rows)) and (
        level in ("tree", "prefix") or entry["trunk"] is None
    )


def _target_fits(target: TargetEntry, rows: list[_Row], trunk: int, generates: bool) -> bool:
    """Say whether a target's path ends in its row and nothing inside the trunk is scored."""
    row, end, start, last, _ = target
    if row >= len(rows) or end >= rows[row].length:
        return False
    position = trunk + rows[row].depth(end)
    if generates:
        return bool(start == position + 1 and last == -1)
    return bool(trunk <= start <= position and last >= 0)
