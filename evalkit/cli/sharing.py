"""The commands that share a record: signing it, sealing its plan before, packing it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from evalkit.base.errors import EvalkitError
from evalkit.cli.telling import json_option, say, tell

FILE = click.Path(path_type=Path, readable=False)  # what can't be read is told by evalkit
timestamp_option = click.option(
    "--timestamp", metavar="URL", help="Timestamp the signature at this authority (RFC 3161)."
)


def stamp(folder: Path, key: Any, authority: str | None) -> None:
    """A timestamp on what a key has signed in a folder."""
    if authority and key is not None and folder.is_dir():
        from evalkit.record.signing import sealing

        sealing.stamp(folder, key.public, authority)


def private_key(path: Path | None) -> Any:
    """A private key, its passphrase asked for; None without a path."""
    if path is None:
        return None
    from evalkit.record.signing import keys

    return keys.private(path, lambda: click.prompt("Passphrase", hide_input=True, err=True))


@click.command("sign")
@click.argument("folder", metavar="[RUN]", type=FILE, required=False)
@click.option(
    "--key",
    metavar="FILE",
    type=FILE,
    required=True,
    help="Your private ed25519 key (OpenSSH or PEM).",
)
@click.option("--new-key", is_flag=True, help="Make this key and FILE.pub first.")
@timestamp_option
@json_option
def sign_command(
    folder: Path | None, key: Path, new_key: bool, timestamp: str | None, as_json: bool
) -> None:
    """Sign a record and every file that it lists.

    \b
    evalkit sign --new-key --key my-key
    evalkit sign results/demo/demo-0123456789ab --key my-key
    """
    from evalkit.record.signing import attest, keys

    if new_key:
        say(f"{key}.pub  {keys.make(key).fingerprint}", err=True)
    if folder is not None:
        private = private_key(key)
        path = attest.sign(folder, private)
        stamp(folder, private, timestamp)
        tell(as_json, path, file=str(path))
    elif not new_key:
        raise EvalkitError("no run given", fix="usage: evalkit sign RUN --key FILE")


@click.command("pack")
@click.argument("folder", metavar="RUN", type=FILE)
@click.option(
    "--public", is_flag=True, help="Leave out all texts, such as for data with a licence."
)
@click.option("--key", metavar="FILE", type=FILE, help="With --public: sign the pack's own files.")
@click.option(
    "--reveal", metavar="TASK/DOC", help="Write what opens one document of the public pack."
)
@json_option
def pack_command(
    folder: Path, public: bool, key: Path | None, reveal: str | None, as_json: bool
) -> None:
    """Pack a finished run into one .tar.gz file.

    \b
    evalkit pack results/demo/demo-0123456789ab
    evalkit pack results/demo/demo-0123456789ab --public --key my-key
    """
    from evalkit.record.packs import pack

    if reveal:
        path = pack.reveal(folder, reveal)
    else:
        path = pack.pack(folder, public=public, key=private_key(key))
    tell(as_json, path, file=str(path))


@click.command("seal")
@click.argument("folder", metavar="RUN", type=FILE)
@click.option("--key", metavar="FILE", type=FILE, required=True, help="Your private ed25519 key.")
@click.option("--metric", "metrics", metavar="TASK:METRIC", multiple=True,
              help="What is meant to count (default: all).")  # fmt: skip
@timestamp_option
@json_option
def seal_command(
    folder: Path, key: Path, metrics: tuple[str, ...], timestamp: str | None, as_json: bool
) -> None:
    """Seal a planned run before its first answer.

    \b
    evalkit seal results/demo/demo-0123456789ab --key my-key
    """
    from evalkit.record.signing import sealing

    path = sealing.seal(folder, private_key(key), metrics, timestamp)
    tell(as_json, path, file=str(path))


def in_passing(key: Path | None, timestamp: str | None) -> Callable[[Path], None] | None:
    """What seals a run between its plan and its first answer, where a key is given; a run that is
    sealed stays as it is."""
    if key is None:
        return None
    from evalkit.record.signing import sealing

    private: Any = private_key(key)

    def seal(run: Path) -> None:
        if not (run / sealing.NAME).exists():
            sealing.seal(run, private, (), timestamp)

    return seal
