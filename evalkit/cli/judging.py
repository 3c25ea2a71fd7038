"""The commands that look at what runs left, and judge it."""

import sys
from pathlib import Path

import click

from evalkit.errors import EvalkitError

FILE = click.Path(path_type=Path)


@click.command("verify")
@click.argument("folder", metavar="RUN", type=FILE)
@click.option(
    "--key",
    "key_files",
    metavar="PUB",
    multiple=True,
    type=FILE,
    help="A signer's public key: one of yours must have signed it.",
)
@click.option(
    "--allowed-signers",
    metavar="FILE",
    type=FILE,
    help="The same, as ssh-keygen's list of names and keys.",
)
@click.option("--json", "as_json", is_flag=True, help="The checks as JSON on stdout.")
def verify_command(
    folder: Path, key_files: tuple[Path, ...], allowed_signers: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Check a record against itself: no GPU, no network, no dataset, no model.

    \b
    evalkit verify results/demo/demo-0123456789ab
    """
    from evalkit.verify import trust, verify

    report = verify(folder, trust(key_files, allowed_signers))
    click.echo(report.to_json() if as_json else "\n".join(report.lines()))
    sys.exit(report.exit_code)


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
def sign_command(folder: Path | None, key: Path, new_key: bool) -> None:  # fmt: skip
    """Sign a record, and every file that it lists, in its attestation.json.

    \b
    evalkit sign --new-key --key my-key
    evalkit sign results/demo/demo-0123456789ab --key my-key
    """
    from evalkit import attest, keys

    if new_key:
        click.echo(f"{key}.pub  {keys.make(key).fingerprint}", err=True)
    if folder is not None:
        private = keys.private(key, lambda: click.prompt("Passphrase", hide_input=True, err=True))
        click.echo(str(attest.sign(folder, private)))
    elif not new_key:
        raise EvalkitError("no run given", fix="usage: evalkit sign RUN --key FILE")
