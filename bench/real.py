"""`make bench-real`: a real model through real tasks, by lm-eval and by evalkit, the same weights.

    python -m bench.real [--model smollm2] [--out FOLDER] [--minutes 180] [--again TASK] [--chat]

SmolLM2-135M-Instruct answers the first documents of HellaSwag, ARC-Challenge, MMLU, GSM8K and BBH,
in float32 and in bfloat16: by lm-eval's `hf` model at batch size 4 with a thread a core, and by
evalkit in a process a core; with `--chat`, GSM8K alone through the model's chat template. The Hub
is the one that HF_ENDPOINT names. A stopped command goes on where it was; docs/real.md gets the
tables of what is there when the command ends.
"""

import argparse
import os
import time
from pathlib import Path

from bench import data, real_figures, report_real, tables
from bench.real_pieces import CHAT, WORKS, Real

PAGE = data.ROOT / "docs" / "real.md"


def main() -> None:
    """Measure or go on measuring, and publish what is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=data.cache() / "real")
    parser.add_argument("--minutes", type=float, default=180.0, help="then stop, to be continued")
    parser.add_argument("--again", metavar="TASK", help="measure this task again")
    parser.add_argument("--chat", action="store_true", help="through the model's chat template")
    given = parser.parse_args()
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    name, works = ("bench-real-chat", CHAT) if given.chat else ("bench-real", WORKS)
    real = Real(given.model, given.out, works)
    real.measure(time.monotonic() + 60 * given.minutes, given.again)
    figures = real_figures.figures(real)
    text = report_real.text(figures)
    print(text)
    tables.publish(name, text, figures, PAGE)


if __name__ == "__main__":
    main()
