"""Versions of installed packages."""

import importlib.metadata
from collections.abc import Iterable


def version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """{package: its version}."""
    return {package: version(package) for package in packages}
