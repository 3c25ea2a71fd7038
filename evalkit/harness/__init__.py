"""The one door to lm-eval: it builds the requests, and it scores the recorded answers.

lm-eval never calls our engine. `tasks.load` and `requests.build` let it make every request;
`score.score` lets it compute its own metrics from answers that are already there. No other package
imports lm_eval, and nothing here imports torch.
"""

import os

# Before lm-eval, datasets or huggingface_hub are imported: we show our own progress, and a harness
# that only reads has nothing to report home.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
