"""What the links of a folder lead to, so that an image that is shown a model is shown all of it.

A snapshot in the Hub's cache is a folder of links to files beside it; on clusters the cache itself,
a folder above it or a single file is often a link as well, and one link leads to another. A link is
followed by the kernel a step at a time, so every step has to be there in the image.
"""

import os
from pathlib import Path


def real(path: Path) -> Path:
    """A folder as it lies on the disk; a file in its folder as that lies there, under its own name,
    which may say what is in it."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def behind(path: Path) -> set[Path]:
    """The folders and files outside of a folder that links in it lead to, each step of the way, by
    the name that the link has for it and by its own; a file needs none of it, since what is shown
    of it is what it leads to."""
    found: set[Path] = set()
    if not path.is_dir():
        return found
    inside = path.resolve()
    pending = [inside]
    while pending:
        for folder, folders, files in os.walk(pending.pop()):
            for entry in (Path(folder, name) for name in (*folders, *files)):
                out = [step for step in steps(entry) if not step.resolve().is_relative_to(inside)]
                if out and entry.is_dir() and out[-1] not in found:
                    pending.append(out[-1])
                found |= {*out}
    return {each for each in found if not any(other in found for other in each.parents)}


def steps(path: Path) -> list[Path]:
    """Where a link leads, step by step: folders as they are, of a file the folder that it is in,
    under each of its names."""
    found: list[Path] = []
    seen: set[Path] = set()
    while path.is_symlink() and path not in seen and path.exists():
        seen.add(path)
        path = Path(os.path.normpath(path.parent / path.readlink()))
        shown = path if path.is_dir() else path.parent
        found += [shown, shown.resolve()]
        path = path.parent.resolve() / path.name
    return found
