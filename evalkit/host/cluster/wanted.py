"""What a user wants submitted, as the command line has it."""

import re
from dataclasses import dataclass
from pathlib import Path

PACKED = (".sqsh", ".squashfs", ".sqfs")  # a stage in one file, which only an image can see into


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user wants submitted. `plan`: options that decide what the runs are, as `evalkit plan`
    takes them; `words`: the site file's settings as the command line has them; `site`: a site file,
    or a site's name."""

    models: tuple[str, ...]
    suite: str
    out: Path
    plan: tuple[str, ...] = ()
    adapter: Path | None = None
    shards: int | None = None
    max_running: int | None = None
    words: tuple[tuple[str, str | None], ...] = ()
    site: str | None = None
    stage: Path | None = None
    sif: Path | None = None
    gpus_per_shard: int | None = None
    grace_s: int = 120
    tokens_per_second: float | None = None
    workers: int | None = None
    dry_run: bool = False

    @property
    def packed(self) -> bool:
        """Whether the stage is one file."""
        return self.stage is not None and self.stage.suffix in PACKED

    @property
    def mount(self) -> Path | None:
        """Where the stage is seen: a packed one, in the image, beside its file."""
        stage = self.stage.absolute() if self.stage else None
        return stage.with_suffix("") if stage and self.packed else stage

    @property
    def array_name(self) -> str:
        """What the queue shows of it: model and suite, the model first, since it shows eight
        characters."""
        named = Path(self.models[0]).name if self.models else "none"
        more = f"+{len(self.models) - 1}" if len(self.models) > 1 else ""
        text = f"{named}{more}.{Path(self.suite).stem}"
        return re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII)
