"""The commands that look at what runs left, and judge it."""

import sys
from pathlib import Path
from typing import Any

import click

from evalkit.base.errors import EvalkitError
from evalkit.cli.telling import json_option, tell
from evalkit.inputs import hub

FILE = click.Path(path_type=Path)


@click.command("verify")
@click.argument("paths", metavar="RUN...", type=FILE, nargs=-1, required=True)
@click.option(
    "--key",
    "keys",
    metavar="PUB",
    multiple=True,
    type=FILE,
    help="A signer's public key: one of yours must have signed it.",
)
@click.option(
    "--allowed-signers",
    "allowed",
    metavar="FILE",
    type=FILE,
    help="The same, as ssh-keygen's list of names and keys.",
)
@click.option("--policy", metavar="FILE", type=FILE, help="What else it must hold.")
@click.option("--deep", is_flag=True, help="Plan and score again, from the pinned data.")
@click.option("--model", help="The same, and the plan with this model's tokenizer.")
@click.option("--suite", help="The same, by your suite's file.")
@click.option("--offline", is_flag=True, help="With --deep: ask no network for anything.")
@click.option("--json", "as_json", is_flag=True, help="The checks as JSON on stdout.")
def verify_command(
    paths: tuple[Path, ...], deep: bool, model: str | None, suite: str | None, offline: bool,
    as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Check a record against itself: no GPU, no network, no dataset, no model.

    RUN is a run's folder, a pack of one, a results folder with all its runs and their log, or a
    folder that plain lm-eval wrote.

    \b
    evalkit verify results/demo/demo-0123456789ab
    evalkit verify results/ --policy policies/leaderboard.yaml --allowed-signers signers
    """
    from evalkit.judge.verify import Deep, judge, wanted

    if offline:
        hub.go_offline()
    deeper = Deep(model, suite, offline) if deep or model or suite else None
    found = judge(paths, wanted(**asked, deep=deeper))
    click.echo(found.to_json() if as_json else "\n".join(found.lines()))
    sys.exit(found.exit_code)


@click.command("sign")
@click.argument("folder", metavar="[RUN]", type=FILE, required=False)
@click.option(
    "--key",
    metavar="FILE",
    type=FILE,
    required=True,
    help="Your private ed25519 key, OpenSSH's form or PEM.",
)
@click.option("--new-key", is_flag=True, help="Make that key first, and FILE.pub for others.")
@json_option
def sign_command(folder: Path | None, key: Path, new_key: bool, as_json: bool) -> None:  # fmt: skip
    """Sign a record, and every file that it lists, in its attestation.json.

    \b
    evalkit sign --new-key --key my-key
    evalkit sign results/demo/demo-0123456789ab --key my-key
    """
    from evalkit.record import attest, keys

    if new_key:
        click.echo(f"{key}.pub  {keys.make(key).fingerprint}", err=True)
    if folder is not None:
        path = attest.sign(folder, _private(key))
        tell(as_json, path, file=str(path))
    elif not new_key:
        raise EvalkitError("no run given", fix="usage: evalkit sign RUN --key FILE")


@click.command("compare")
@click.argument("runs", metavar="A B [C ...]", nargs=-1, type=click.Path(path_type=Path))
@click.option("--teacher", is_flag=True, help="A is a teacher: say how much the others kept of it.")
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap over clusters.")
@click.option("--gate", type=click.Path(path_type=Path), help="A policy to meet, or exit with 1.")
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON on stdout.")
def compare_command(runs: tuple[Path, ...], gate: Path | None, as_json: bool, **how: Any) -> None:
    """Say what the difference between evaluations is worth, document by document.

    \b
    evalkit compare results/demo/demo-0123456789ab lm_eval_results/other-model
    """
    from evalkit.judge import compare
    from evalkit.judge.compare import gate as gates
    from evalkit.judge.compare import text
    from evalkit.record import archive

    policy = gates.read(gate) if gate else None
    with archive.opened(runs) as folders:
        found = compare.compare(folders, names=list(map(str, runs)), **how)
    click.echo(text.to_json(found) if as_json else text.markdown(found))
    if policy is not None:
        judged = gates.check(found, policy)
        click.echo("\n".join(judged.lines()), err=as_json)
        sys.exit(judged.exit_code)


@click.command("pack")
@click.argument("folder", metavar="RUN", type=FILE)
@click.option("--public", is_flag=True, help="Leave every text out: data that may not go on.")
@json_option
def pack_command(folder: Path, public: bool, as_json: bool) -> None:
    """Make one .tar.gz of a finished run, beside it: what verify needs, and nothing of this host.

    \b
    evalkit pack results/demo/demo-0123456789ab
    """
    from evalkit.record import pack

    path = pack.pack(folder, public=public)
    tell(as_json, path, file=str(path))


def model_options(command: Any) -> Any:
    """Where the model is that a record names, and what may be done with it."""
    for option in (
        click.option("--trust-remote-code", is_flag=True, help="Run the model's own code."),
        click.option("--allow-pickle", is_flag=True, help="Load weights that can run code."),
        click.option("--offline", is_flag=True, help="Ask no network for anything."),
        click.option("--device", help="cpu, cuda, cuda:N, or auto."),
        click.option("--adapter", type=FILE, help="The adapter's folder, if not as recorded."),
        click.option("--model", help="The model's folder, where it is not the name recorded."),
    ):
        command = option(command)
    return command


@click.command("audit")
@click.argument("folder", metavar="RUN", type=FILE)
@click.option("--sample", "samples", default=300, show_default=True, help="Samples to replay.")
@click.option("--seed", type=int, help="Of the draw (default: drawn now, and told).")
@model_options
@click.option("--key", type=FILE, help="Sign what is found, as a witness, in the run's folder.")
@json_option
def audit_command(folder: Path, key: Path | None, as_json: bool, **given: Any) -> None:
    """Replay some recorded answers on the model: are they its own? Nothing is generated.

    \b
    evalkit audit results/demo/demo-0123456789ab --sample 100
    """
    private = _private(key)
    from evalkit.base.events import Events
    from evalkit.judge import audit

    found = audit.audit(folder, audit.Asked(**given), Events(), private)
    told = {"problems": found.problems, "together": found.together}
    tell(as_json, "\n".join(found.lines()), **found.claim, **told)
    sys.exit(found.exit_code)


def _private(path: Path | None) -> Any:
    """A private key, its passphrase asked for; None without a path."""
    if path is None:
        return None
    from evalkit.record import keys

    return keys.private(path, lambda: click.prompt("Passphrase", hide_input=True, err=True))


@click.command("reproduce")
@click.argument("where", metavar="RUN")
@click.option(
    "--out",
    type=FILE,
    default=Path("reproduced"),
    show_default=True,
    help="Where the second execution is kept.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be done, and differ.")
@click.option("--sample", type=click.IntRange(min=1), help="Only so many batches of its plan.")
@click.option("--seed", default=0, show_default=True, help="Of the sample.")
@click.option("--suite", help="The suite's file, where it is not the name recorded.")
@click.option("--dtype", help="Other than recorded.")
@click.option("--profile", help="Other than recorded.")
@click.option("--level", help="Other than recorded.")
@click.option("--threads", type=int, help="Other than recorded.")
@click.option("--workers", type=click.IntRange(min=0), help="Processes, as for eval.")
@model_options
@click.option("--key", type=FILE, help="Sign the verdict, for the original's record.")
@json_option
def reproduce_command(
    where: str, only_plan: bool, key: Path | None, out: Path, sample: int | None, seed: int,
    workers: int | None, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Run a record's suite again, apart from it, and say how much came out the same.

    RUN is a run's folder, a pack of one, or the address of a pack.

    \b
    evalkit reproduce results/demo/demo-0123456789ab
    """
    private = _private(key)
    from evalkit.judge.reproduce import command

    wanted = command.Wanted(out, given, workers, sample, seed)
    found = command.run(where, wanted, sys.argv, private, only_plan=only_plan)
    tell(as_json, "\n".join(found.lines), **found.found)
    sys.exit(found.exit_code)


@click.command("validate")
@click.argument("folder", metavar="RUN", type=FILE)
@json_option
def validate_command(folder: Path, as_json: bool) -> None:
    """Hold a run's scores against published ones of the same model and protocol.

    \b
    evalkit validate results/EleutherAI--pythia-70m/core-0123456789ab
    """
    from evalkit.inputs import published

    found = published.check(folder)
    tell(as_json, "\n".join(found.lines()), figures=found.to_json())
    sys.exit(found.exit_code)
