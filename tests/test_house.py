"""The rules of the house: imports go one way, doors are not imported, and TensorFlow stays in its rooms."""

import ast
import re
import subprocess
import sys

from conftest import LONGEST, QUICK, ROOT, SLOW

PACKAGE = ROOT / "lae_jax"
DOORS = {"audit", "main", "prepare", "evaluate", "predict", "export", "longtail", "demo", "report", "serve"}
LEVELS = [
    {"errors", "files", "folders", "compiled", "tracing", "cpu", "markdown"},
    {"losses", "metrics", "optim", "models", "console", "parallel", "seals", "lock", "watch", "distributions"},
    {"head_losses", "head_methods", "head_mixing"},
    {"stages", "steps", "checkpoints", "data", "faces", "journal", "figures", "exports", "reports"},
    {"inference", "runs", "estimator", "pretrained"},
    {"inputs", "head_training"},
    {"leaks"},
    {"train", "plan", "evaluation", "predictions", "exporting", "head_features", "reporting"},
    {"head_bench"},
    {"head_tables", "serving"},
    DOORS,
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        if "configs" not in path.parts:
            yield path, path.relative_to(PACKAGE).with_suffix("").parts


def imported(path):
    """Full names of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room(parts):
    """A file of its own level inside a folder stands for itself: it reads runs, which its neighbours do not know."""
    return "pretrained" if tuple(parts[:2]) == ("models", "pretrained") else parts[0]


def test_imports_go_one_way():
    for path, parts in modules():
        if parts == ("__init__",):
            continue
        for name in imported(path):
            words = name.split(".")
            if words[0] != "lae_jax" or len(words) < 2 or words[1] == "configs":
                continue
            there = room(words[1:])
            assert there not in DOORS, f"{path} imports the door {there}"
            if there != room(parts):
                assert LEVEL[there] <= LEVEL[room(parts)], f"{path} (level {LEVEL[room(parts)]}) imports {name}"


def test_tensorflow_stays_in_its_rooms():
    for path, parts in modules():
        if parts[0] not in ("data", "faces") and parts != ("exports", "saved_model"):
            assert not any(name.split(".")[0].startswith("tensorflow") for name in imported(path)), path


def test_only_one_file_names_pmap():
    uses = {
        path.name: {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        for path, _ in modules()
    }
    named = [name for name, attributes in uses.items() if "pmap" in attributes]
    assert named == ["parallel.py"]


def test_models_steps_and_losses_run_without_tensorflow():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('tensorflow', 'tensorflow_datasets', 'ml_collections'):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from lae_jax import losses, metrics, models, optim, parallel, stages, steps, inference, estimator, distributions
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_promise_of_the_results_has_tests_that_run_on_all_kinds_of_cpu():
    promises = (ROOT / "docs" / "results.md").read_text().partition("| promise | tolerance | test |")[2]
    named = [re.findall(r"`test_(\w+)`", row) for row in promises.partition("\n\n")[0].splitlines()[2:]]
    assert len(named) > 20 and all(named)
    assert {name for names in named for name in names} <= QUICK | SLOW
    assert all((ROOT / "tests" / f"test_{name}.py").exists() for name in {*QUICK, *SLOW, *LONGEST})
