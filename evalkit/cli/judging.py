"""The commands that judge records."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from evalkit.cli.common import (
    FILE,
    PATH,
    json_option,
    private_key,
    say,
    stamp,
    tell,
    timestamp_option,
)
from evalkit.inputs import hub


@click.command("verify")
@click.argument("paths", metavar="RUN...", type=FILE, nargs=-1, required=True)
@click.option(
    "--key",
    "keys",
    metavar="PUB",
    multiple=True,
    type=FILE,
    help="A public key; the owner of one of these must have signed.",
)
@click.option(
    "--allowed-signers",
    "allowed",
    metavar="FILE",
    type=FILE,
    help="Names and keys, in ssh-keygen's format.",
)
@click.option(
    "--policy", metavar="FILE", type=FILE, help="Further conditions that the record must meet."
)
@click.option(
    "--revealed", metavar="FILE", multiple=True, type=FILE,
    help="A file that opens one document of a public pack.",
)  # fmt: skip
@click.option(
    "--tsa", "authorities", metavar="FILE", type=FILE,
    help="Certificates (PEM) of the timestamp authorities that you trust.",
)  # fmt: skip
@click.option("--deep", is_flag=True, help="Load the pinned data; plan and score again.")
@click.option("--model", help="As --deep, with this model's tokenizer too.")
@click.option("--suite", help="As --deep, with this suite file.")
@click.option("--offline", is_flag=True, help="With --deep: use no network.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def verify_command(
    paths: tuple[Path, ...], deep: bool, model: str | None, suite: str | None, offline: bool,
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Check a record against itself, in seconds.

    \b
    evalkit verify results/demo/demo-0123456789ab
    evalkit verify results/ --policy policies/leaderboard.yaml --allowed-signers signers

    RUN is a run's folder, a pack of one, a results folder with all its runs and their log, or a
    folder that plain lm-eval wrote. No GPU, network, dataset or model is needed.
    """
    from evalkit.base import bounded
    from evalkit.judge import verify
    from evalkit.judge.verify import Deep

    if offline:
        hub.go_offline()
    deeper = Deep(model, suite, offline) if deep or model or suite else None
    bound = bounded.run if deeper is None else verify.unbounded  # the reader's own model
    judged = verify.judge(paths, verify.wanted(**given, deep=deeper), bound)
    say(judged.to_json() if as_json else "\n".join(judged.lines()), as_json=as_json)
    sys.exit(judged.exit_code)


@click.command("compare")
@click.argument("runs", metavar="A B [C ...]", nargs=-1, type=PATH)
@click.option("--teacher", is_flag=True, help="A is a teacher: show what share the others kept.")
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap over clusters.")
@click.option("--gate", type=PATH, help="A policy file; exit code 1 if it is not met.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def compare_command(runs: tuple[Path, ...], gate: Path | None, as_json: bool, **how: Any) -> None:
    """Compare evaluations, document by document.

    \b
    evalkit compare results/demo/demo-0123456789ab lm_eval_results/other-model
    """
    from evalkit.base import bounded
    from evalkit.judge import compare
    from evalkit.judge.compare import gate as gates
    from evalkit.judge.compare import text
    from evalkit.record.packs import archive

    policy = gates.read(gate) if gate else None
    with archive.opened(runs) as folders:
        work = partial(compare.compare, folders, names=list(map(str, runs)), **how)
        compared = bounded.run(work, runs)
        reports = bounded.run(partial(gates.verdicts, folders), runs) if gate else []
    say(text.to_json(compared) if as_json else text.markdown(compared), as_json=as_json)
    if policy is not None:
        judged = gates.check(compared, policy, reports)
        say("\n".join(judged.lines()), err=as_json)
        sys.exit(judged.exit_code)


def model_options(command: Any) -> Any:
    """Add the options for the model that a record names: where it is and what it may do."""
    for option in (
        click.option(
            "--trust-remote-code", is_flag=True, help="Allow the model's own Python code."
        ),
        click.option(
            "--allow-pickle", is_flag=True, help="Allow pickled weights, which can run code."
        ),
        click.option("--offline", is_flag=True, help="Use no network."),
        click.option("--device", help="cpu, cuda, cuda:N, or auto."),
        click.option("--adapter", type=FILE, help="The adapter's folder, if it has moved."),
        click.option("--model", help="The model's folder, if it has moved."),
    ):
        command = option(command)
    return command


@click.command("audit")
@click.argument("folder", metavar="RUN", type=FILE)
@click.option(
    "--sample", "samples", default=300, show_default=True, help="Number of samples to replay."
)
@click.option("--seed", type=int, help="Seed of the draw (default: random, and shown).")
@model_options
@click.option("--key", type=FILE, help="Sign the outcome as a witness with this key.")
@timestamp_option
@json_option
def audit_command(
    folder: Path, key: Path | None, timestamp: str | None, as_json: bool, **given: Any
) -> None:
    """Replay recorded answers on the model, without generating.

    \b
    evalkit audit results/demo/demo-0123456789ab --sample 100
    """
    private = private_key(key) if key else None
    from evalkit.base.events import Events
    from evalkit.judge import audit

    audited = audit.audit(folder, audit.AuditOptions(**given), Events(), private)
    stamp(folder, private, timestamp)
    more = {"problems": audited.problems, "together": audited.together}
    tell(as_json, "\n".join(audited.lines()), **audited.claim, **more)
    sys.exit(audited.exit_code)


@click.command("reproduce")
@click.argument("where", metavar="RUN")
@click.option(
    "--out",
    type=FILE,
    default=Path("reproduced"),
    show_default=True,
    help="Folder for the second run.",
)
@click.option(
    "--plan",
    "only_plan",
    is_flag=True,
    help="Show what would run and what would differ; run nothing.",
)
@click.option("--sample", type=click.IntRange(min=1), help="Run only N batches of its plan.")
@click.option("--seed", default=0, show_default=True, help="Seed of the sample.")
@click.option("--suite", help="The suite's file, unless evalkit ships it.")
@click.option("--engine", help="lm-eval:NAME, as in the record.")
@click.option(
    "--engine-arg",
    "engine_args",
    multiple=True,
    metavar="KEY=VALUE",
    help="An argument of that engine.",
)
@click.option("--dtype", help="Other than recorded.")
@click.option("--profile", help="Other than recorded.")
@click.option("--level", help="Other than recorded.")
@click.option("--threads", type=int, help="Other than recorded.")
@click.option("--workers", type=click.IntRange(min=0), help="Worker processes, as for eval.")
@model_options
@click.option("--key", type=FILE, help="Sign the verdict with this key, for the original.")
@timestamp_option
@json_option
def reproduce_command(
    where: str, only_plan: bool, key: Path | None, out: Path, sample: int | None, seed: int,
    workers: int | None, timestamp: str | None, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Run a record's suite again and compare the outcome.

    RUN is a run's folder, a pack of one, or the address of a pack.

    \b
    evalkit reproduce results/demo/demo-0123456789ab
    """
    private = private_key(key) if key else None
    from evalkit.judge.reproduce import command

    wanted = command.Wanted(out, given, workers, sample, seed)
    outcome = command.run(where, wanted, sys.argv, private, only_plan=only_plan)
    stamp(Path(where), None if only_plan else private, timestamp)
    tell(as_json, "\n".join(outcome.lines), **outcome.body)
    sys.exit(outcome.exit_code)


@click.command("validate")
@click.argument("folder", metavar="RUN", type=FILE)
@json_option
def validate_command(folder: Path, as_json: bool) -> None:
    """Compare a run's scores with published ones.

    \b
    evalkit validate results/EleutherAI--pythia-70m/core-0123456789ab
    """
    from evalkit.base import bounded
    from evalkit.show import published

    validation = bounded.run(lambda: published.check(folder), [folder])
    tell(as_json, "\n".join(validation.lines()), figures=validation.to_json())
    sys.exit(validation.exit_code)
