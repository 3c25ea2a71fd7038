"""What a user wants submitted, and the checks before jobs are sent: paths, the stage, the partition
and the options for Slurm, before planning costs time; whether the longest batch fits, once there is
a plan.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evalkit.base.errors import EvalkitError, Exit, one_of
from evalkit.host import stage_manifest
from evalkit.host.cluster import script, slurm
from evalkit.host.cluster import site as sites
from evalkit.host.cluster.site import Site
from evalkit.host.cluster.slurm import Partition
from evalkit.inputs import suite as suites
from evalkit.inputs.models import model as models
from evalkit.plan import shards

Say = Callable[[str], None]
PACKED = (".sqsh", ".squashfs", ".sqfs")  # a stage in one file, which only an image can read


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user wants submitted. `plan`: options of `evalkit plan`; `words`: settings of the site
    from the command line; `site`: a site file, or a site's name."""

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
        """The stage's folder on a node: a packed one is mounted in the image beside its file."""
        stage = self.stage.absolute() if self.stage else None
        return stage.with_suffix("") if stage and self.packed else stage

    @property
    def array_name(self) -> str:
        """The array's name; the model comes first, since the queue shows eight characters."""
        named = Path(self.models[0]).name if self.models else "none"
        more = f"+{len(self.models) - 1}" if len(self.models) > 1 else ""
        text = f"{named}{more}.{Path(self.suite).stem}"
        return re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII)


def before(wanted: Wanted, site: Site, say: Say) -> None:
    """Raise EvalkitError for what can't work, whatever the plan is."""
    for bind in site.binds:
        if not Path(bind).exists():
            raise EvalkitError(
                f"{bind} is to be bound and is not here", code=Exit.MISSING,
                fix="mend `binds`: what is bound must be where jobs are planned and where they run",
            )  # fmt: skip
    _times(wanted, site)
    if not slurm.is_here():
        if not wanted.dry_run:
            raise slurm.absent("sbatch")
        return say("there is no Slurm here: partition and options are not checked")
    _partition(site)
    for options in (site.options(), site.finishing()):
        slurm.would_take(options)


def lacks(wanted: Wanted) -> bool:
    """Return whether a stage's folder still lacks a model or the suite."""
    if wanted.stage is None or wanted.packed:
        return False
    if not (wanted.stage / stage_manifest.NAME).is_file():
        return True
    staged = stage_manifest.read(wanted.stage)
    suite = suites.load(wanted.suite).name
    on_hub = [model for model in wanted.models if models.is_on_hub(model)]
    return suite not in staged["suites"] or any(m not in staged["models"] for m in on_hub)


def stage(wanted: Wanted) -> None:
    """Raise EvalkitError unless the stage is whole, as far as this machine can see it."""
    if wanted.stage is None:
        return
    if not wanted.packed:
        stage_manifest.check(wanted.stage)
    elif not wanted.stage.is_file():
        raise EvalkitError("there is no such stage", where=str(wanted.stage), code=Exit.MISSING)
    elif wanted.sif is None:
        raise EvalkitError(
            "a stage in one file is seen in an image only",
            where=str(wanted.stage),
            fix="give --sif, or the stage's folder",
        )


def _times(wanted: Wanted, site: Site) -> None:
    """Raise EvalkitError where a time limit is no time, or too short."""
    for name in ("time", "max_walltime", "finish_time"):
        value = getattr(site, name)
        if value and value.lower() not in ("unlimited", "infinite") and not sites.seconds(value):
            raise EvalkitError(
                f"'{value}' is no time ({name})", fix="as Slurm's: minutes, or 1-12:00:00"
            )
    limit, needed = sites.seconds(site.time), wanted.grace_s + script.MARGIN_S + shards.START_S
    if limit is not None and limit <= needed:
        raise EvalkitError(
            f"a time limit of {limit:,} s leaves no time to work: a shard is warned"
            f" {wanted.grace_s + script.MARGIN_S:,} s before it and needs about"
            f" {shards.START_S:.0f} s to start",
            fix=f"--time {int(needed / 60) + 10} or more, or a shorter --grace",
        )


def _partition(site: Site) -> None:
    """Raise EvalkitError for a partition that is missing, down, too short, or without its GPUs."""
    known = {partition.name: partition for partition in slurm.partitions()}
    default = next((p.name for p in known.values() if p.is_default), "")
    names = [name for name in (site.partition or default).split(",") if name]
    for name in [*names, *filter(None, [site.finish_partition])]:
        if name not in known:
            raise EvalkitError(f"there is no partition '{name}'", fix=one_of(name, [*known]))
        if not known[name].is_up:
            raise EvalkitError(f"partition {name} is down", fix=f"another of {', '.join(known)}")
    for partition in (known[name] for name in names):
        _gpu(partition, site)
        limit, longest = sites.seconds(site.time), sites.seconds(partition.limit)
        if limit is not None and longest is not None and limit > longest:
            raise EvalkitError(
                f"partition {partition.name} ends jobs after {partition.limit}, --time is"
                f" {site.time}",
                fix=f"--time {partition.limit}: shards that are cut off go on by themselves",
            )


def _gpu(partition: Partition, site: Site) -> None:
    if not partition.gpus or site.wants_gpu() is not False:
        return
    example = partition.gpus.rpartition(":")[0] + ":1"
    raise EvalkitError(
        f"partition {partition.name} has GPUs ({partition.gpus}) and none is asked for: the shards"
        " would run on CPUs",
        fix=f'--gres {example} (or gres = "{example}" in the site file), or --gres none for CPUs',
    )


def allowed_shards(count: int, models: int, requested: bool, site: Site, say: Say) -> int:
    """Return how many of `count` shards a run may have by Slurm's limits on arrays and jobs.
    EvalkitError where the user `requested` that count, or not even one shard a run is allowed."""
    room, why = slurm.room(site.account, site.qos)
    if room is None or count * models <= room:
        return count
    most = room // models
    if requested or not most:
        raise EvalkitError(
            f"{models} runs of {count} shards are {models * count:,} tasks, and {why}",
            fix=f"--shards {most}" if most else "submit fewer models at once, or wait",
        )
    say(f"{most} shards a run, not {count}: {why}")
    return most


def fits(longest: int, speed: float | None, wanted: Wanted, site: Site, say: Say) -> None:
    """Raise EvalkitError where there is no time for the longest batch, of `longest` tokens.
    `speed`: tokens a second, None where it is not known."""
    if speed is None:
        say(f"the longest batch is of {longest:,} tokens; how long that takes is not known yet"
            " (--tokens-per-second states it)")  # fmt: skip
        return
    takes, limit = longest / speed, sites.seconds(site.time)
    if takes > wanted.grace_s:
        raise EvalkitError(
            f"the longest batch takes {takes:,.0f} s and would be lost whenever a shard is stopped,"
            f" which gives it {wanted.grace_s} s",
            fix=f"--grace {int(takes * 1.5) + 1}",
        )
    needed = takes + wanted.grace_s + script.MARGIN_S + shards.START_S
    if limit is not None and needed > limit:
        raise EvalkitError(
            f"a time limit of {limit:,} s has no room for the longest batch of {takes:,.0f} s, the"
            f" start and the warning ({needed:,.0f} s together)",
            fix=f"--time {int(needed / 60) + 1} or more",
        )
