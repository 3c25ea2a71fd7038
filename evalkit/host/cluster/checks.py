"""What is looked at before jobs are sent: paths, the stage, the partition, and what Slurm says of
the options, before planning costs time; whether the longest batch fits, once there is a plan.
"""

from collections.abc import Callable
from pathlib import Path

from evalkit.base.errors import EvalkitError, Exit, one_of
from evalkit.host import stage_manifest
from evalkit.host.cluster import script, slurm
from evalkit.host.cluster import site as sites
from evalkit.host.cluster.site import Site
from evalkit.host.cluster.slurm import Partition
from evalkit.host.cluster.wanted import Wanted
from evalkit.inputs import suite as suites
from evalkit.inputs.models import model as models
from evalkit.plan import shards

Say = Callable[[str], None]


def before(wanted: Wanted, site: Site, say: Say) -> None:
    """EvalkitError for what can't work, whatever the plan is."""
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
    """Whether something has to be staged yet: a stage's folder that lacks a model or the suite."""
    if wanted.stage is None or wanted.packed:
        return False
    if not (wanted.stage / stage_manifest.NAME).is_file():
        return True
    there = stage_manifest.read(wanted.stage)
    suite = suites.load(wanted.suite).name
    on_hub = [model for model in wanted.models if models.is_on_hub(model)]
    return suite not in there["suites"] or any(model not in there["models"] for model in on_hub)


def stage(wanted: Wanted) -> None:
    """EvalkitError unless the stage is whole, as far as it can be seen from here."""
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
    """EvalkitError where a time limit is none, or leaves no time between start and warning."""
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
    """EvalkitError for a partition that is not there or is down, whose limit is shorter, or whose
    GPUs are not asked for."""
    there = {each.name: each for each in slurm.partitions()}
    default = next((each.name for each in there.values() if each.is_default), "")
    asked = [*(site.partition or default).split(","), *filter(None, [site.finish_partition])]
    for name in filter(None, asked):
        if name not in there:
            raise EvalkitError(f"there is no partition '{name}'", fix=one_of(name, [*there]))
        if not there[name].is_up:
            raise EvalkitError(f"partition {name} is down", fix=f"another of {', '.join(there)}")
    mine = [there[name] for name in (site.partition or default).split(",") if name in there]
    for each in mine:
        _gpu(each, site)
        limit, most = sites.seconds(site.time), sites.seconds(each.limit)
        if limit is not None and most is not None and limit > most:
            raise EvalkitError(
                f"partition {each.name} ends jobs after {each.limit}, --time is {site.time}",
                fix=f"--time {each.limit}: shards that are cut off go on by themselves",
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


def limits(count: int, models: int, asked: bool, site: Site, say: Say) -> int:
    """How many shards a run may have of `count`, by the size of arrays and the number of jobs that
    Slurm lets this user send; EvalkitError where so many were `asked` for, or not even one a run
    fits."""
    room, why = slurm.room(site.account, site.qos)
    if room is None or count * models <= room:
        return count
    most = room // models
    if asked or not most:
        raise EvalkitError(
            f"{models} runs of {count} shards are {models * count:,} tasks, and {why}",
            fix=f"--shards {most}" if most else "submit fewer models at once, or wait",
        )
    say(f"{most} shards a run, not {count}: {why}")
    return most


def fits(longest: int, speed: float | None, wanted: Wanted, site: Site, say: Say) -> None:
    """EvalkitError where the longest batch, of so many tokens, takes longer than there is time for
    it. `speed`: tokens a second, None where it is not known."""
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
