"""Reads the numbers of a cell: a score, its error, a difference from another row. Any other cell is
a text, or can't be read.
"""

import math
import re
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

MAX_DIGITS = 60
PRECISION = 400  # digits of all sums here: the largest float in per cent has 311 before the point
_NUMBER = r"[-+\u2013]?\s?(?:\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d*\.?\d+)"
_WORDS = re.compile(r"(?:%|pp|pts?|p\.p\.|points?|ppt)(?![a-zA-Z])|[^\W\d_]+")
_UNITS = re.compile(r"(?:%|pp|pts?|p\.p\.|points?|ppt)")
_UNIT = r"(?:\s*(?:%|pp|pts?|p\.p\.|points?|ppt)(?![a-zA-Z]))?"
_TOKEN = re.compile(
    rf"\s*(?:(?P<error>±)|(?P<arrow>[↑↓⇑⇓▲▼△▽Δ])|(?P<lower>_\()|(?P<upper>\^\()|(?P<open>[(\[{{])"
    rf"|(?P<close>[)\]}}])|(?P<number>{_NUMBER})(?P<unit>{_UNIT})|(?P<mark>[†‡*\u2217⋆★☆§¶♠♣♡♢✓✗✔✘°~≈/|%])"
    r"|(?P<slash>[,;:])|(?P<rest>.))"
)
_STARTS_AS_SCORE = re.compile(r"[-+]?\d*\.\d+(?!\w)")  # 71.2 with words, not 1.2M
_EMPTY = re.compile(r"[\s\-\u2013—\u2212.?]*|n/?a|none|tbd|oom|x", re.I)


@dataclass(frozen=True, slots=True)
class Number:
    """A number as the table shows it: a score, the error of that before it, or a difference."""

    text: str
    kind: str

    @property
    def value(self) -> Decimal:
        """Its value."""
        return Decimal(self.text)

    @property
    def digits(self) -> int:
        """Its decimals."""
        return len(self.text.partition(".")[2])

    @property
    def half(self) -> Decimal:
        """Half a unit of its last digit: the largest change by rounding."""
        return Decimal(1).scaleb(-self.digits) / 2

    def is_rounded(self, value: float, shift: int) -> bool:
        """Return whether it is a value, times 10 to the power of `shift`, correctly rounded to its
        digits: half to even, or half up."""
        if not math.isfinite(value):
            return False
        exact = Decimal(repr(value)).scaleb(shift)
        step = Decimal(1).scaleb(-self.digits)
        hows = (ROUND_HALF_EVEN, ROUND_HALF_UP)
        return any(self.value == exact.quantize(step, how) for how in hows)

    def rounded(self, value: float, shift: int) -> str:
        """Return a value, rounded as this number should show it."""
        if not math.isfinite(value):
            return str(value)
        exact = Decimal(repr(value)).scaleb(shift)
        return str(exact.quantize(Decimal(1).scaleb(-self.digits), ROUND_HALF_EVEN))


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a cell: its numbers, or that it `is_text`; with neither it can't be read."""

    numbers: tuple[Number, ...] = ()
    is_text: bool = False


TEXT, UNREADABLE = Content(is_text=True), Content()


def read(text: str) -> Content:
    """Return the content of a cell's plain text."""
    if not any(char.isdigit() for char in text) or _EMPTY.fullmatch(text):
        return TEXT
    if any(not _UNITS.fullmatch(word) for word in _WORDS.findall(text)):
        return UNREADABLE if _STARTS_AS_SCORE.match(text) else TEXT
    numbers: list[Number] = []
    depth: list[str] = []
    before = ""  # the sign before the next number: error or arrow
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup or ""
        if token["number"]:
            number = _number(token, numbers, depth, before)
            if number is None:
                return UNREADABLE
            numbers += [number] if number.text else []
            before = ""
        elif kind in ("lower", "upper", "open"):
            depth.append(kind)
        elif kind == "close":
            del depth[-1:]
        elif kind in ("error", "arrow"):
            before = kind
        elif kind == "rest" and not token["rest"].isspace():
            return UNREADABLE
    return Content(tuple(numbers)) if numbers else TEXT


def _number(
    token: re.Match[str], numbers: list[Number], depth: list[str], before: str
) -> Number | None:
    """Return a token's number; one without text for a footnote's mark; None for neither."""
    text = token["number"].replace(",", "").replace("\u2013", "-").replace(" ", "")
    if len(text) > MAX_DIGITS:
        return None
    unit = (token["unit"] or "").strip()
    if "upper" in depth and not before and "." not in text:
        return Number("", "")
    if before == "error":
        return Number(text.lstrip("+"), "error") if numbers else None
    if before == "arrow" or (unit and unit != "%") or text[0] == "+":
        is_difference = numbers or before or text[0] in "+-"
        return Number(text, "difference" if is_difference else "score")
    if not numbers:
        return Number(text, "score")
    if depth:  # in brackets, lower or smaller: an error, or with a sign a difference
        return Number(text, "difference" if text[0] == "-" else "error")
    return Number(text, "score") if numbers[-1].kind != "score" or "/" in token.string else None
