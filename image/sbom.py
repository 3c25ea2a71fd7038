"""Prints what is in the image as a CycloneDX 1.6 bill of materials: Python's and Debian's packages.

It runs within the image's build, with the installed Python. The document follows from what is
installed alone: the same packages give the same bytes (its time is SOURCE_DATE_EPOCH).
"""

import hashlib
import json
import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote


def python_packages() -> list[dict[str, Any]]:
    """Every installed distribution."""
    found = {d.metadata["Name"].lower().replace("_", "-"): d for d in metadata.distributions()}
    return [python_package(name, found[name]) for name in sorted(found)]


def python_package(name: str, package: metadata.Distribution) -> dict[str, Any]:
    """A distribution; its digest is of its RECORD, which has the digests of all its files."""
    record = (package.read_text("RECORD") or "").encode()
    purl = f"pkg:pypi/{name}@{quote(package.version)}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": package.version,
        "purl": purl,
        "licenses": licences(package.metadata),
        "properties": [
            {"name": "evalkit:record:sha256", "value": hashlib.sha256(record).hexdigest()}
        ],
    }


def licences(told: metadata.PackageMetadata) -> list[dict[str, Any]]:
    """What a package says of its licence, as far as it fits on a line."""
    if "License-Expression" in told:
        return [{"expression": told["License-Expression"]}]
    names = [c.split(" :: ")[-1] for c in told.get_all("Classifier") or [] if c[:7] == "License"]
    text = (told.get_all("License") or [""])[0]
    names = names or ([text] if text and "\n" not in text and len(text) < 80 else [])
    return [{"license": {"name": name}} for name in sorted(set(names))]


def system_packages() -> list[dict[str, Any]]:
    """Every package of the system, and its version."""
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    found = []
    for name, version, architecture in sorted(line.split() for line in lines):
        purl = f"pkg:deb/{system()}/{name}@{quote(version)}?arch={architecture}"
        found.append(
            {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        )
    return found


def system() -> str:
    """debian or ubuntu."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line[3:].strip('"') for line in lines if line.startswith("ID="))


def bill() -> dict[str, Any]:
    """The whole document."""
    packages = python_packages()
    (evalkit,) = [package for package in packages if package["name"] == "evalkit-lm"]
    components = [package for package in packages if package is not evalkit] + system_packages()
    digest = hashlib.sha256(json.dumps(components, sort_keys=True).encode()).digest()
    time = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {**evalkit, "type": "application"},
        },
        "components": components,
    }


if __name__ == "__main__":
    json.dump(bill(), sys.stdout, indent=1, ensure_ascii=False)
    print()
