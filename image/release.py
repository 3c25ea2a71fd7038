"""Releases the image that `make image` built: archived, signed, pushed. docs/release.md says how.

`make release` writes into dist/ what a site without a registry needs: the image's archive, a SIF of
it, its bill of materials, its inventory, and SHA256SUMS. With REGISTRY it pushes both, the SIF
through ORAS, and says the digests to run by; it signs what a key is at hand for, and says what it
did not sign. It refuses an image that is not of the commit that is checked out, clean.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from make import DOCKER, IMAGE, ROOT, git, run, say

DIST = ROOT / "dist"


def inspected() -> dict[str, Any]:
    """The local image; ends where it is not of this commit, or changes lie about."""
    (told,) = json.loads(run(DOCKER, "image", "inspect", IMAGE, quiet=True))
    revision = (told["Config"]["Labels"] or {}).get("org.opencontainers.image.revision")
    if revision != git("rev-parse", "HEAD"):
        sys.exit(f"evalkit image: {IMAGE} is of commit {revision}: run make image first")
    if git("status", "--porcelain", "-uno"):
        sys.exit("evalkit image: there are changes that are not committed, nor in the image")
    found: dict[str, Any] = told
    return found


def archive(name: str) -> list[Path]:
    """What a site without a registry needs, in dist/."""
    DIST.mkdir(exist_ok=True)
    image, sif = DIST / f"{name}.tar", DIST / f"{name}.sif"
    bill, files = DIST / f"{name}.cdx.json", DIST / f"{name}.inventory"
    run(DOCKER, "save", "--output", image, IMAGE)
    run("make", "-C", ROOT, "sif", FROM=os.fspath(image), SIF=os.fspath(sif))
    plain = [DOCKER, "run", "--rm", "--network", "none", "--entrypoint", "cat", IMAGE]
    bill.write_text(run(*plain, "/opt/evalkit/sbom.cdx.json", quiet=True) + "\n")
    files.write_text(run(sys.executable, ROOT / "image" / "inventory.py", quiet=True) + "\n")
    return [image, sif, bill, files]


def push(registry: str, name: str) -> str:
    """Push the image; the reference by digest that people are to run."""
    tagged = f"{registry}/evalkit:{name.removeprefix('evalkit-')}"
    run(DOCKER, "tag", IMAGE, tagged)
    said = run(DOCKER, "push", tagged, quiet=True)
    digest = re.findall(r"digest: (sha256:[0-9a-f]{64})", said)[-1]
    return f"{registry}/evalkit@{digest}"


def push_sif(registry: str, name: str, sif: Path) -> str:
    """Push the SIF through ORAS; its address."""
    address = f"oras://{registry}/evalkit-sif:{name.removeprefix('evalkit-')}"
    plain = ["--no-https"] if registry.startswith(("localhost", "127.0.0.1")) else []
    run("apptainer", "push", "--allow-unsigned", *plain, sif, address)
    return address


def sign_sif(sif: Path) -> None:
    """Sign the SIF with APPTAINER_KEY, the number of a key on Apptainer's ring."""
    key = os.environ.get("APPTAINER_KEY", "")
    if not key:
        return say(f"{sif.name} is not signed: APPTAINER_KEY names no key")
    run("apptainer", "sign", "--keyidx", key, sif)
    run("apptainer", "verify", "--local", sif)
    say(f"{sif.name} is signed; who has the public key on their ring says: apptainer verify {sif}")


def sign_image(reference: str) -> None:
    """Sign the pushed image with COSIGN_KEY, a key's file."""
    key = os.environ.get("COSIGN_KEY", "")
    if not key or shutil.which("cosign") is None:
        return say(f"{reference} is not signed: no COSIGN_KEY, or no cosign here")
    run("cosign", "sign", "--yes", "--key", key, reference)
    say(f"signed; anybody checks it with: cosign verify --key cosign.pub {reference}")


def sums(paths: list[Path]) -> None:
    """SHA256SUMS, as sha256sum --check reads it."""
    lines = []
    for path in paths:
        with path.open("rb") as handle:
            lines.append(f"{hashlib.file_digest(handle, 'sha256').hexdigest()}  {path.name}\n")
    (DIST / "SHA256SUMS").write_text("".join(lines))


def main() -> None:
    """Archive, sign, push."""
    labels = inspected()["Config"]["Labels"]
    name = f"evalkit-{labels['org.opencontainers.image.version']}-{labels['evalkit.lock']}"
    made = archive(name)
    sif = made[1]
    sign_sif(sif)
    sums(made)
    say(f"dist/ has {', '.join(path.name for path in made)} and SHA256SUMS")
    registry = os.environ.get("REGISTRY", "")
    if not registry:
        return say("not pushed: REGISTRY names no registry")
    reference = push(registry, name)
    sign_image(reference)
    say(f"the image to run is {reference}")
    say(f"the SIF is {push_sif(registry, name, sif)}, sha256 as in SHA256SUMS")


if __name__ == "__main__":
    main()
