"""Lists every file of an image with its digest, or what differs between two images.

`make image-inventory` prints a line a file (kind, mode, owner, digest or link, path) and last the
digest of all the lines; with OTHER=image it prints what only one of the two has, or has otherwise,
and ends with 1 if there is anything. Times are left out: folders have those of their build.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import evalkit

IMAGE = os.environ.get("IMAGE") or f"evalkit:{evalkit.__version__}"
OTHER = os.environ.get("OTHER") or ""
DOCKER = os.environ.get("DOCKER") or "docker"
# What the engine puts into every container that it makes.
ENGINES = {".dockerenv", "dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf",
           "etc/mtab"}  # fmt: skip


def inventory(image: str) -> dict[str, str]:
    """What stands at every path of an image, in words."""
    create = [DOCKER, "create", image]
    made = subprocess.run(create, capture_output=True, text=True, check=True).stdout.strip()
    try:
        with subprocess.Popen([DOCKER, "export", made], stdout=subprocess.PIPE) as export:
            assert export.stdout is not None, "a pipe"
            with tarfile.open(fileobj=export.stdout, mode="r|") as archive:
                found = {m.name: words(archive, m) for m in archive if not engines(m.name)}
    finally:
        subprocess.run([DOCKER, "rm", made], stdout=subprocess.DEVNULL, check=True)
    assert len(found) > 1000, f"{image} has only {len(found)} files"
    return found


def engines(name: str) -> bool:
    """Whether a path is the engine's own."""
    return name in ENGINES or name.split("/")[0] in {"dev", "proc", "sys"}


def words(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """A file's kind, mode, owner, and content."""
    head = f"{member.mode:o} {member.uid}:{member.gid}"
    if member.issym() or member.islnk():
        return f"link {head} -> {member.linkname}"
    if not member.isfile():
        return f"{'folder' if member.isdir() else 'other'} {head}"
    handle = archive.extractfile(member)
    assert handle is not None, "a file"
    return f"file {head} {member.size} {hashlib.file_digest(handle, 'sha256').hexdigest()}"  # type: ignore[arg-type]  # it reads


def main() -> int:
    """One image's inventory, or the difference of two."""
    first = inventory(IMAGE)
    lines = [f"{first[name]} /{name}" for name in sorted(first)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if not OTHER:
        print("\n".join(lines))
        print(f"inventory of {len(lines)} files: sha256:{digest}")
        return 0
    second = inventory(OTHER)
    unlike = sorted(name for name in first | second if first.get(name) != second.get(name))
    for name in unlike:
        print(f"/{name}: {first.get(name, 'absent')} | {second.get(name, 'absent')}")
    print(f"{len(unlike)} of {len(lines)} files differ; the first's inventory: sha256:{digest}")
    return 1 if unlike else 0


if __name__ == "__main__":
    sys.exit(main())
