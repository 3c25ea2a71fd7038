"""Which samples' texts go into a report, and in which form.

A report has all scores but only some texts, so that it stays small enough to mail. Each leaf task
gets an equal part of the room, and fills it in turn with its closest calls, with flagged documents
and with documents spread evenly over the task. The browser unpacks a task when it is opened.
"""

import base64
import gzip
import heapq
import json
from collections.abc import Mapping
from typing import Any

ROOM = 3_300_000  # bytes of base64 for all texts, of the 5 MB that a report may have
CANDIDATES = 500  # documents of each kind that are kept for a leaf task
LONGEST = 20_000  # characters of one text in a selection; the rest is counted

RULE = (
    "from each leaf task an equal part, taken in turn from its closest calls, from what was cut or"
    " had no answer, and from documents spread evenly over the task"
)


class Texts:
    """Collects texts of `num_leaves` leaf tasks; `everything`: every sample's, whole."""

    def __init__(self, num_leaves: int, *, everything: bool = False) -> None:
        self.everything = everything
        self._left, self._leaves = ROOM, max(num_leaves, 1)
        self._kept: list[bytes] = []
        self.begin(1)

    def begin(self, count: int) -> None:
        """Begin a leaf task of `count` documents."""
        self._stride, self._seen = max(1, -(-count // CANDIDATES)), 0
        self._kept = []
        self._spread: list[tuple[int, bytes]] = []
        self._close: list[tuple[float, int, bytes]] = []
        self._flagged: list[tuple[int, bytes]] = []

    def offer(self, margin: float | None, flagged: bool, text: Mapping[str, object]) -> None:
        """Consider the next document of the task."""
        position, self._seen = self._seen, self._seen + 1
        if self.everything:
            self._kept.append(_packed(text, None))
            return
        near = margin is not None and (len(self._close) < CANDIDATES or -margin > self._close[0][0])
        is_spread = position % self._stride == 0
        keep_flagged = flagged and len(self._flagged) < CANDIDATES
        if not (near or is_spread or keep_flagged):
            return
        packed = _packed(text, LONGEST)
        if near and margin is not None:
            add = heapq.heappushpop if len(self._close) == CANDIDATES else heapq.heappush
            add(self._close, (-margin, position, packed))
        if is_spread:
            self._spread.append((position, packed))
        if keep_flagged:
            self._flagged.append((position, packed))

    def end(self) -> tuple[str, int]:
        """Return the finished task's texts, compressed, and how many there are."""
        if self.everything:
            return _zipped(self._kept), len(self._kept)
        chosen = self._in_turn()
        room = self._left // self._leaves
        self._leaves = max(self._leaves - 1, 1)
        low, high, best = 0, len(chosen), _zipped([])
        while low < high:  # the most documents that fit
            middle = (low + high + 1) // 2
            packed = _zipped([text for _, text in sorted(chosen[:middle])])
            if len(packed) <= room:
                low, best = middle, packed
            else:
                high = middle - 1
        self._left -= len(best)
        return best, low

    def _in_turn(self) -> list[tuple[int, bytes]]:
        close = [(position, packed) for _, position, packed in sorted(self._close, reverse=True)]
        lists = [close, self._flagged, _spread_evenly(self._spread)]
        chosen: dict[int, bytes] = {}
        for index in range(max(map(len, lists))):
            for items in lists:
                if index < len(items):
                    chosen.setdefault(*items[index])
        return list(chosen.items())


def _spread_evenly(items: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Return the items in an order whose every beginning is spread over all: bit reversal."""
    width = max(len(items) - 1, 1).bit_length()
    order = (int(f"{index:0{width}b}"[::-1], 2) for index in range(1 << width))
    return [items[index] for index in order if index < len(items)]


def _packed(text: Mapping[str, object], longest: int | None) -> bytes:
    """Return JSON bytes; lone surrogates stay escaped, since UTF-8 has none."""
    body = text if longest is None else _shortened(text, longest)
    dumped = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return dumped.encode("utf-8", "backslashreplace")


def _shortened(value: Any, longest: int) -> Any:
    if isinstance(value, str) and len(value) > longest:
        return f"{value[:longest]}\n[{len(value) - longest:,} more characters]"
    if isinstance(value, list):
        return [_shortened(item, longest) for item in value]
    if isinstance(value, dict):
        return {key: _shortened(item, longest) for key, item in value.items()}
    return value


def _zipped(texts: list[bytes]) -> str:
    whole = b"[" + b",".join(texts) + b"]"
    return base64.b64encode(gzip.compress(whole, 6, mtime=0)).decode()
