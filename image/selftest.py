"""Says whether this image works: `python3 /opt/evalkit/image/selftest.py`, a line for each check.

It runs at the end of the image's build, which fails with it, as Apptainer's %test, and with `make
image-test`. It needs no GPU and no network, and writes only below TMPDIR.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

PREFIX = Path("/opt/evalkit")


def packages() -> str:
    """Every installed file is what its package's RECORD says."""
    count = 0
    for package in metadata.distributions():
        for file in package.files or []:
            if file.hash is None:
                continue
            with Path(str(file.locate())).open("rb") as handle:
                found = hashlib.file_digest(handle, file.hash.mode).digest()
            if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != file.hash.value:
                raise AssertionError(f"{file} is not what {package.name}'s RECORD says")
            count += 1
    assert count > 1000, f"only {count} files have a digest"
    return f"{count:,} installed files match their RECORDs"


def leaks() -> str:
    """Nothing of whoever started this is in Python's way."""
    from evalkit.host import inside

    found = inside.leaks(os.environ, sys.path)
    assert not found, "; ".join(found)
    return "Python sees this image and nothing else"


def read_only() -> str:
    """Everybody can read the image and only root can write to it."""
    for path in [PREFIX, *PREFIX.rglob("*")]:
        mode = path.lstat().st_mode & 0o777
        assert path.is_symlink() or (mode & 0o444 == 0o444 and not mode & 0o022), path
    return "everybody can read /opt/evalkit, and only its owner write"


def compiler() -> str:
    """A C compiler builds what Triton does: an extension module."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\nint probe(void) { return Py_IsInitialized(); }\n")
        include = f"-I{sysconfig.get_paths()['include']}"
        command = ["cc", "-shared", "-fPIC", include, "-o", f"{folder}/probe.so", str(source)]
        subprocess.run(command, check=True)
    version = subprocess.run(["cc", "-dumpfullversion"], capture_output=True, text=True)
    return f"cc {version.stdout.strip()} compiles against Python's headers"


def bill() -> str:
    """The bill of materials names every package."""
    told = json.loads((PREFIX / "sbom.cdx.json").read_text())
    listed = {item["name"]: item["version"] for item in told["components"]}
    listed |= {told["metadata"]["component"]["name"]: told["metadata"]["component"]["version"]}
    for package in metadata.distributions():
        name = package.metadata["Name"].lower().replace("_", "-")
        assert listed.get(name) == package.version, f"{name} is not in the bill of materials"
    return f"sbom.cdx.json names {len(told['components'])} packages"


def torch() -> str:
    """Which torch, for which CUDA."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, {gpus} GPUs here"


def demo() -> str:
    """The demo, in processes of its own: its record is consistent, its harness the released one."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["evalkit", "eval", "--model", "demo", "--suite", "demo", "--limit", "4"]
        command += ["--out", folder, "--workers", "1", "--device", "cpu", "--offline"]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert ran.returncode == 0, ran.stderr.strip().splitlines()[-1:]
        record = json.loads(Path(ran.stdout.splitlines()[-1], "record.json").read_text())
    assert record["environment"]["harness_intact"] is True, "lm-eval was changed"
    return f"the demo's answers are {record['ids']['answers'][:19]}..."


def main() -> int:
    """All the checks, whatever the first one says."""
    failed = 0
    for check in (packages, leaks, read_only, compiler, bill, torch, demo):
        try:
            print(f"PASS  {check.__name__:10}  {check()}", flush=True)
        except (AssertionError, OSError, ValueError, subprocess.CalledProcessError) as error:
            print(f"FAIL  {check.__name__:10}  {error}", flush=True)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
