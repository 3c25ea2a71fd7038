"""A record with all the trust that it can have: `python -m bench.trust_demo FOLDER`.

Three people with keys by ssh-keygen: alice seals the demo's plan and runs it, bob audits her
record on the model, carol runs it again; a timestamp authority on loopback dates each statement.
Every step is a command that a user types, shown as it is run. docs/verify.md and docs/seal.md show
its end.
"""

import subprocess
import sys
from pathlib import Path

from bench import authority

EVALKIT = Path(sys.executable).with_name("evalkit")
PEOPLE = ("alice", "bob", "carol")


def demo(folder: Path) -> str:
    """Make the record in `folder`, which must not be there; return what verify prints of it."""
    (folder / "authority").mkdir(parents=True)
    for name in PEOPLE:
        _typed(folder, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", name)
    keys = [(folder / f"{name}.pub").read_text() for name in PEOPLE]
    lines = [f"{name} {key}" for name, key in zip(PEOPLE, keys, strict=True)]
    (folder / "signers").write_text("".join(lines))
    with authority.served(folder / "authority") as tsa:
        dated = ("--timestamp", tsa.address)
        said = _typed(folder, "evalkit", "eval", "--model", "demo", "--suite", "demo",
                      "--seal", "alice", *dated)  # fmt: skip
        run = said.splitlines()[-1]
        _typed(folder, "evalkit", "sign", run, "--key", "alice", *dated)
        _typed(folder, "evalkit", "audit", run, "--sample", "100", "--key", "bob", *dated)
        _typed(folder, "evalkit", "reproduce", run, "--key", "carol", *dated)
    reader = ("--allowed-signers", "signers", "--tsa", "authority/root.pem")
    return _typed(folder, "evalkit", "verify", run, *reader)


def _typed(folder: Path, program: str, *words: str) -> str:
    print("$", program, *(word or "''" for word in words), flush=True)
    path = str(EVALKIT) if program == "evalkit" else program
    ran = subprocess.run([path, *words], cwd=folder, stdout=subprocess.PIPE, text=True)
    print(ran.stdout, end="", flush=True)
    if ran.returncode:
        raise SystemExit(f"that ended with exit code {ran.returncode}")
    return ran.stdout


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        raise SystemExit("usage: python -m bench.trust_demo FOLDER (a new one)")
    demo(Path(sys.argv[1]))
