"""The scores of a run as a PNG, for sites that show a picture beside a link (`og:image`).

Pillow draws it, with the font that Pillow brings, which has Latin letters only. It is an extra
(`picture`): a page needs no picture.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.record.reading.score_table import Score
from evalkit.show.report.page import percent, visible

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

WIDTH, HEIGHT, MARGIN = 1200, 630, 64  # pixels; the size that most such sites ask for
ROWS = 6  # tasks that find room
TRACK, TRACK_WIDTH = 470, 480  # of a task's bar, in pixels
INK, GREY, LINE, BLUE, BAND = "#14171c", "#5b6470", "#e6e9ed", "#2456c5", "#8fb0ee"


def write(
    path: Path, model: str, suite: str, words: str, colour: str, scores: Sequence[Score]
) -> None:
    """Write the picture of a run. `words`: what is said of its record, on a ground of `colour`; of
    the `scores`, the headline of each of the suite's tasks is drawn. Raises EvalkitError (3) where
    Pillow is not installed."""
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError as error:
        raise EvalkitError(
            "Pillow, which draws the picture, is not installed",
            fix="pip install 'evalkit-lm[picture]', or leave --address out",
            code=Exit.MISSING,
        ) from error
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    _text(draw, MARGIN, 60, model, 58, INK, WIDTH - 2 * MARGIN)
    _text(draw, MARGIN, 134, f"on {suite}", 34, GREY, WIDTH - 2 * MARGIN)
    _text(draw, MARGIN + 18, 198, words, 26, "white", WIDTH - 2 * MARGIN - 36, ground=colour)
    drawn = [score for score in scores if score.depth == 0 and score.headline]
    for index, score in enumerate(drawn[:ROWS]):
        _row(draw, 272 + 52 * index, score)
    more = f"and {len(drawn) - ROWS} tasks more" if len(drawn) > ROWS else ""
    _text(draw, MARGIN, HEIGHT - 44, more, 22, GREY, 500)
    _text(draw, WIDTH - MARGIN - 74, HEIGHT - 44, "evalkit", 22, GREY, 80)
    held = io.BytesIO()
    image.save(held, "PNG", optimize=True)
    canon.write_atomic(path, held.getvalue())


def _row(draw: "ImageDraw", top: int, score: Score) -> None:
    _text(draw, MARGIN, top, score.alias, 30, INK, TRACK - MARGIN - 24)
    shown = f"{percent(score.value)}%" if score.share else f"{score.value:.3f}"
    _text(draw, TRACK + TRACK_WIDTH + 36, top, shown, 30, INK, WIDTH - TRACK - TRACK_WIDTH - 60)
    if not score.share or not math.isfinite(score.value):
        return
    middle = top + 18
    draw.line((TRACK, middle, TRACK + TRACK_WIDTH, middle), fill=LINE, width=8)
    if score.low is not None and score.high is not None:
        low, high = (TRACK + TRACK_WIDTH * end for end in (score.low, score.high))
        draw.line((low, middle, high, middle), fill=BAND, width=8)
    at = TRACK + TRACK_WIDTH * score.value
    draw.ellipse((at - 9, middle - 9, at + 9, middle + 9), fill=BLUE)


def _text(
    draw: "ImageDraw", left: int, top: int, text: str, size: int, colour: str, room: int,
    ground: str = "",
) -> None:  # fmt: skip
    """Write a line of text, cut to `room` pixels, on a box of the colour `ground`."""
    from PIL import ImageFont

    font: Any = ImageFont.load_default(size)
    shown = visible(text).striptags().encode("ascii", "replace").decode()
    if draw.textlength(shown, font=font) > room:
        while shown and draw.textlength(f"{shown}...", font=font) > room:
            shown = shown[:-1]
        shown += "..."
    if ground:
        end = left + draw.textlength(shown, font=font)
        draw.rounded_rectangle((left - 18, top - 8, end + 18, top + size + 12), 10, fill=ground)
    draw.text((left, top), shown, font=font, fill=colour)
