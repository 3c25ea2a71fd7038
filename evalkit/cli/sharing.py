"""The commands that share a record: sign it, seal its plan beforehand, pack it."""

from collections.abc import Callable
from pathlib import Path

import click

from evalkit.base.errors import EvalkitError
from evalkit.cli.common import FILE, json_option, private_key, say, stamp, tell, timestamp_option


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
@click.option("--public", is_flag=True, help="Leave out all texts, such as those under a licence.")
@click.option("--key", metavar="FILE", type=FILE, help="With --public: sign the pack's own files.")
@click.option(
    "--reveal", metavar="TASK/DOC", help="Write a file that opens one document of a public pack."
)
@click.option("--out", metavar="FOLDER", type=FILE, help="Where to write it (default: beside RUN).")
@json_option
def pack_command(
    folder: Path,
    public: bool,
    key: Path | None,
    reveal: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Pack a finished run into one .tar.gz file.

    \b
    evalkit pack results/demo/demo-0123456789ab
    evalkit pack results/demo/demo-0123456789ab --public --key my-key
    """
    from evalkit.record.packs import pack

    if reveal:
        path = pack.reveal(folder, reveal, out)
    else:
        path = pack.pack(folder, public=public, key=private_key(key) if key else None, out=out)
    tell(as_json, path, file=str(path))


@click.command("seal")
@click.argument("folder", metavar="RUN", type=FILE)
@click.option("--key", metavar="FILE", type=FILE, required=True, help="Your private ed25519 key.")
@click.option("--metric", "metrics", metavar="TASK:METRIC", multiple=True,
              help="A metric that will count (default: all).")  # fmt: skip
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


def sealer(key: Path | None, timestamp: str | None) -> Callable[[Path], None] | None:
    """Return a function that seals a run before its first answer, unless it is sealed already; None
    without a key."""
    if key is None:
        return None
    from evalkit.record.signing import sealing

    private = private_key(key)

    def seal(run: Path) -> None:
        if not (run / sealing.NAME).exists():
            sealing.seal(run, private, (), timestamp)

    return seal
