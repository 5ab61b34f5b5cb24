"""Sizes of what is installed. Imports the standard library and packaging alone: environments of others have no more."""

import importlib.metadata
import pathlib

from packaging.requirements import Requirement


def bytes_below(folder: pathlib.Path) -> int:
    """Bytes of the files in a folder, at any depth."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def bytes_with_requirements(name: str) -> int:
    """Bytes of a distribution of this environment and of all that it requires, without its extras."""
    sizes, waiting, seen = {}, [(name, "")], set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another platform, or not needed at run time
            continue
        places = (pathlib.Path(file.locate()) for file in distribution.files or [])
        sizes[distribution.metadata["Name"]] = sum(place.stat().st_size for place in places if place.is_file())
        for text in distribution.requires or []:
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                waiting += [(wanted.name, "")] + [(wanted.name, extra) for extra in sorted(wanted.extras)]
    return sum(sizes.values())
