"""Weights from the Hugging Face Hub, or a compatible server: `hf:owner/name[@revision]`, through huggingface_hub.

Downloads stay in its cache (HF_HOME), which is used if the server cannot be reached or HF_HUB_OFFLINE=1 is set.
HF_ENDPOINT names another server.
"""

import json
import os
import pathlib
import re
import socket
import urllib.parse
import urllib.request
from typing import NamedTuple

from lae_jax.runtime import files
from lae_jax.runtime.errors import InputError, missing_extra

PREFIX, FILE, CONFIG = "hf:", "model.safetensors", "config.json"
CONFIG_LIMIT = 1 << 20  # bytes; timm's files are below 1,000
CONNECT_SECONDS = 5.0  # without an answer after this, a server is unreachable; the library would try for half a minute


class Fetched(NamedTuple):
    """A repository's file in the cache.

    Attributes:
      path: The file.
      name: hf:owner/name@commit.
      config: The repository's config.json; {} if it has none.
    """

    path: pathlib.Path
    name: str
    config: dict


def require() -> None:
    """Raises InputError if huggingface_hub is not installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        told = missing_extra("hub", "huggingface_hub", "a source hf:...")
        raise InputError(f"{told}, or give a file that you downloaded yourself") from error


def parse(source: str) -> tuple[str, str]:
    """Splits 'hf:owner/name@revision' into (owner/name, revision); the default revision is 'main'.

    Raises:
      InputError: The source has another form.
    """
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@(\w[\w./-]*))?", source)
    # The library makes paths of the cache from these names.
    if match is None or ".." in source:
        raise InputError(f"{source!r}: a source on the Hub is hf:owner/name or hf:owner/name@revision")
    return match[1], match[2] or "main"


def fetch(source: str) -> Fetched:
    """Fetches the safetensors file of a repository into the cache.

    Raises:
      InputError: The file cannot be fetched.
    """
    repository, revision = parse(source)
    require()
    from huggingface_hub import errors

    try:
        path = _file(repository, FILE, revision)
        commit = path.parent.name
        try:
            config = read_config(_file(repository, CONFIG, commit))
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
            f" {revision}: download it where there is a network, or give a file"
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(
            f"{source}: the repository has no {FILE} (pytorch_model.bin is a pickle, which is not read): choose a"
            " revision or repository that has one"
        ) from error
    # A broken transfer, a full disk, a malformed answer: releases of the library use different HTTP libraries, each
    # with different errors.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source} could not be fetched ({reason})") from error


def _file(repository: str, name: str, revision: str) -> pathlib.Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import logging

    # The library itself reads HF_ENDPOINT only once, when it is first imported.
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    alone = not constants.HF_HUB_OFFLINE and not _is_reachable(endpoint)
    logging.set_verbosity_error()  # `fetch` reports its warnings as one sentence
    return pathlib.Path(hf_hub_download(repository, name, revision=revision, endpoint=endpoint, local_files_only=alone))


def _is_reachable(endpoint: str) -> bool:
    """Whether a server accepts connections. Behind a proxy only a request can show this, so the answer is yes."""
    parts, proxies = urllib.parse.urlsplit(endpoint), urllib.request.getproxies()
    if parts.scheme in proxies or "all" in proxies:
        return True
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def read_config(path: os.PathLike) -> dict:
    """Reads the config.json of a repository; {} if it does not hold an object.

    Raises:
      InputError: It is not a file.
      ValueError: It is too large or damaged.
    """
    with files.open_regular(path) as file:
        content = file.read(CONFIG_LIMIT + 1)
    if len(content) > CONFIG_LIMIT:
        raise ValueError(f"config.json has more than {CONFIG_LIMIT} bytes")
    try:
        config = json.loads(content.decode())
    except RecursionError as error:
        raise ValueError("config.json is nested too deep") from error
    return config if isinstance(config, dict) else {}
