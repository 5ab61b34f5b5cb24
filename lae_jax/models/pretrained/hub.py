"""Weights from the Hugging Face Hub, or a server like it: `hf:owner/name[@revision]`, through huggingface_hub.

What was fetched once is in its cache (HF_HOME), from which it is taken where nothing can be reached or HF_HUB_OFFLINE=1
forbids it. HF_ENDPOINT names another server.
"""

import json
import os
import pathlib
import re
import socket
import urllib.parse
import urllib.request
from typing import NamedTuple

from lae_jax.runtime.errors import InputError

PREFIX, FILE = "hf:", "model.safetensors"
CONFIG_LIMIT = 1 << 20  # bytes; timm's are below 1,000
CONNECT_SECONDS = 5.0  # after which a server cannot be reached; the library alone would try for half a minute


class Fetched(NamedTuple):
    path: pathlib.Path
    name: str  # hf:owner/name@commit
    config: dict  # the repository's config.json; {}: it has none


def require() -> None:
    """Raises InputError where huggingface_hub is not installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise InputError(
            "hf: sources need the package huggingface_hub: pip install 'lae-jax[hub]' (in a checkout: pip install -e"
            " '.[hub]'), or name a file that you fetched yourself"
        ) from error


def parse(source: str) -> tuple[str, str]:
    """'hf:owner/name@revision' -> (owner/name, revision); without a revision 'main'. Raises InputError."""
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
    if match is None:
        raise InputError(f"{source!r}: a source on the Hub is hf:owner/name or hf:owner/name@revision")
    return match[1], match[2] or "main"


def fetch(source: str) -> Fetched:
    """The safetensors file of a repository, in the cache. Raises InputError where it cannot be had."""
    repository, revision = parse(source)
    require()
    from huggingface_hub import errors

    try:
        path = _file(repository, FILE, revision)
        commit = path.parent.name
        try:
            config = _config(_file(repository, "config.json", commit))
        except errors.EntryNotFoundError:
            config = {}
        return Fetched(path, f"{PREFIX}{repository}@{commit}", config)
    except errors.RepositoryNotFoundError as error:
        reason = "there is no such repository, or it needs a token (HF_TOKEN)"
        raise InputError(f"{source}: {reason}") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{source}: the repository has no revision {revision}") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{source}: {os.environ.get('HF_ENDPOINT', 'the Hub')} cannot be reached and the cache has no {FILE} of"
            f" {revision}: fetch it where there is a network, or name a file"
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(
            f"{source}: the repository has no {FILE} (pytorch_model.bin is a pickle, which is not read): choose a"
            " revision or repository that has"
        ) from error
    # A broken transfer, a full disk, an answer that makes no sense: the library's releases stand on different HTTP
    # libraries, each with errors of its own.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source} could not be fetched ({reason})") from error


def _file(repository: str, name: str, revision: str) -> pathlib.Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import logging

    # The library reads HF_ENDPOINT once, when it is first imported.
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    alone = not constants.HF_HUB_OFFLINE and not _is_reachable(endpoint)
    logging.set_verbosity_error()  # what it warns of becomes one sentence here
    return pathlib.Path(hf_hub_download(repository, name, revision=revision, endpoint=endpoint, local_files_only=alone))


def _is_reachable(endpoint: str) -> bool:
    """Whether a server takes connections; behind a proxy nobody can tell without asking for something."""
    parts, proxies = urllib.parse.urlsplit(endpoint), urllib.request.getproxies()
    if parts.scheme in proxies or "all" in proxies:
        return True
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _config(path: pathlib.Path) -> dict:
    if path.stat().st_size > CONFIG_LIMIT:
        raise ValueError(f"config.json has {path.stat().st_size} bytes")
    try:
        config = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("config.json is nested too deep") from error
    return config if isinstance(config, dict) else {}
