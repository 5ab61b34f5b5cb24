"""The unit and the compose file of the server: flags that exist, rights that are taken, times that agree."""

import configparser
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT
from stand_ins import LAUNCH
from test_launch_container import check_form

from lae_jax.serve import __main__ as door
from lae_jax.serve import connection

# The fields of the Compose Specification that may be used; docker compose refuses unknown ones too.
SERVICE = {
    "image": str, "build": {"context": str, "dockerfile": str, "args": {"EXTRA": str}},
    "entrypoint": [str], "command": [str], "ports": [str],
    "volumes": [{"type": str, "source": str, "target": str, "read_only": bool}],
    "healthcheck": {"test": [str], "interval": str, "timeout": str, "start_period": str},
    "init": bool, "stop_grace_period": str, "restart": str, "user": str, "read_only": bool, "tmpfs": [str],
    "environment": {}, "cpuset": str, "mem_limit": str, "memswap_limit": str, "pids_limit": int,
    "ulimits": {"nofile": int, "core": int}, "cap_drop": [str], "security_opt": [str],
}  # fmt: skip


class Repeated(dict):
    """Keeps all values of a setting that occurs more than once."""

    def __setitem__(self, key, value):
        super().__setitem__(key, self[key] + value if key in self and isinstance(value, list) else value)


@pytest.fixture(scope="module")
def unit():
    """The settings of [Service]."""
    parser = configparser.RawConfigParser(dict_type=Repeated, strict=False)
    parser.optionxform = str
    parser.read(LAUNCH / "lae-jax.service")
    assert {"Unit", "Service", "Install"} == set(parser.sections())
    return dict(parser["Service"])


@pytest.fixture(scope="module")
def service():
    """The service in the compose file."""
    content = yaml.safe_load((LAUNCH / "compose.yaml").read_text())
    assert set(content) == {"services"}
    (one,) = content["services"].values()
    check_form(one, SERVICE)
    return one


def words_of(command: list[str]) -> dict:
    assert command[:4] in ([command[0], "-I", "-m", "lae_jax.serve"],) and "python" in command[0]
    return vars(door.parse_args(command[4:]))


def test_the_unit_starts_the_server_with_flags_that_exist_and_in_time(unit):
    args = words_of(unit["ExecStart"].split())
    assert args["run"] == "/srv/lae-jax" and args["host"] == "127.0.0.1"
    assert args["stop_seconds"] < int(unit["TimeoutStopSec"]) and unit["KillMode"] == "mixed"
    assert unit["RestartPreventExitStatus"] == "2" and unit["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_the_container_starts_the_server_with_flags_that_exist_and_in_time(service):
    command = [re.sub(r"\$\{NAME:-(\w+)\}", r"\1", word) for word in service["entrypoint"] + service["command"]]
    args = words_of(command)
    assert args["run"] == service["volumes"][0]["target"]
    # Beside names that are given, a server on all addresses takes no others.
    assert "localhost" in door.hosts_of(args["host"], args["allow_host"])
    assert service["ports"] == [f"127.0.0.1:{args['port']}:{args['port']}"]
    assert args["stop_seconds"] < int(service["stop_grace_period"].removesuffix("s"))
    assert f"http://127.0.0.1:{args['port']}/readyz" in service["healthcheck"]["test"][-1]
    assert (LAUNCH / service["build"]["context"] / service["build"]["dockerfile"]).exists()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert service["build"]["args"]["EXTRA"] in extras


def test_neither_has_rights_or_writes_anything(unit, service):
    on = {"NoNewPrivileges", "DynamicUser", "ProtectHome", "PrivateTmp", "PrivateDevices", "RestrictSUIDSGID"}
    assert {unit[name] for name in on} == {"yes"} and unit["ProtectSystem"] == "strict"
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ""
    writable = {name for name in unit if name.startswith(("ReadWrite", "BindPaths")) or name.endswith("Directory")}
    assert not writable and unit["IPAddressDeny"] == "any"
    assert service["read_only"] and service["volumes"][0]["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"] and int(service["user"].partition(":")[0]) > 1000
    assert all("noexec" in place for place in service["tmpfs"])


def test_both_have_the_same_limits(unit, service):
    assert unit["MemoryMax"].lower() == service["mem_limit"] == service["memswap_limit"]
    assert unit["MemorySwapMax"] == "0" == unit["LimitCORE"] and service["ulimits"]["core"] == 0
    assert int(unit["TasksMax"]) == service["pids_limit"] and unit["AllowedCPUs"] == service["cpuset"]
    assert int(unit["LimitNOFILE"]) == service["ulimits"]["nofile"] > connection.MOST_CONNECTIONS * 1.5
    given = dict(pair.split("=") for pair in unit["Environment"].split())
    assert given == service["environment"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_knows_each_setting_and_finds_little_to_expose(tmp_path):
    text = (LAUNCH / "lae-jax.service").read_text().replace("/opt/lae-jax/bin/python", sys.executable)
    path = tmp_path / "lae-jax.service"
    path.write_text(text)
    told = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True)
    assert told.returncode == 0 and "lae-jax.service" not in told.stderr, told.stderr
    # It has numbers from 0 (none) to 10.
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", path]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-200:] + told.stderr
