"""Versions of installed packages."""

import importlib.metadata
from collections.abc import Iterable


def version(package: str) -> str | None:
    """Returns the version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Returns {package: its version}."""
    return {package: version(package) for package in packages}
