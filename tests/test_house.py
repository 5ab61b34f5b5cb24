"""The rules of the house: imports go one way, doors are not imported, and TensorFlow stays in its rooms."""

import ast
import re
import subprocess
import sys

from conftest import LONGEST, QUICK, ROOT, SLOW

PACKAGE = ROOT / "lae_jax"
# From the first level to the last: a file imports its own room and rooms of earlier levels, and nothing else.
LEVELS = [
    {"runtime"},
    {"losses", "metrics", "optim", "models", "faces"},
    {"data", "stages", "report"},
    {"audit"},
    {"runs"},
    {"train", "evaluate", "export"},
    {"prepare", "predict", "longtail", "compile"},
    {"serve", "main", "demo", "sweep"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
ENDINGS = ("s", "es", "er", "ers", "or", "ing", "ings", "ed", "ion", "ions", "ation")


def modules():
    """{full name: path}; a package stands for its __init__."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "configs" not in parts:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path):
    """Full names of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: an import is written in full"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def arrows():
    """{module: modules of this package that it imports}."""
    graph = {}
    for module, path in MODULES.items():
        names = {name for name in imported(path) if name.startswith("lae_jax.")}
        graph[module] = {name if name in MODULES else name.rpartition(".")[0] for name in names} & set(MODULES)
    return graph


def room(module):
    """The list of programs belongs to the last level."""
    return module.split(".")[1].replace("__main__", "main")


def test_imports_go_one_way():
    assert {room(module) for module in MODULES if module != "lae_jax"} == set(LEVEL)
    for module, names in arrows().items():
        for name in names - {"lae_jax"}:
            own = room(name) == room(module)
            assert own or LEVEL[room(name)] < LEVEL[room(module)], f"{module} imports {name}"
            assert not name.endswith("main__") and name not in ("lae_jax.main", "lae_jax.demo"), f"{module}: {name}"


def test_no_file_imports_itself_by_way_of_others():
    graph, done = arrows(), set()

    def walk(module, before):
        assert module not in before, " -> ".join([*before[before.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module]):
                walk(name, [*before, module])
            done.add(module)

    for module in graph:
        walk(module, [])


def test_the_house_is_small_enough_to_remember():
    assert len(LEVEL) <= 22 and len(LEVELS) <= 8
    for folder in {path.parent for path in MODULES.values()}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 15, f"{folder}: {len(files)} files"
    for module, path in MODULES.items():
        assert len(path.read_text().splitlines()) <= 400, module


def test_no_two_names_are_alike():
    """No two files or rooms have one name, or names that differ by an ending."""
    names = [name.rpartition(".")[2] for name in MODULES if not name.endswith("__main__")]
    assert len(names) == len({*names}), sorted(name for name in {*names} if names.count(name) > 1)
    twins = [(name, name + ending) for name in names for ending in ENDINGS if name + ending in names]
    twins += [(name, name[:-1] + ending) for name in names for ending in ENDINGS if name[:-1] + ending in names]
    assert not [(a, b) for a, b in twins if a != b]


def test_tensorflow_stays_in_its_rooms():
    for module, path in MODULES.items():
        if module != "lae_jax" and room(module) not in ("data", "faces") and module != "lae_jax.export.saved_model":
            assert not any(name.split(".")[0].startswith("tensorflow") for name in imported(path)), path


CSV = ("reader", "writer", "DictReader", "DictWriter")


def test_texts_leave_by_doors_that_make_them_safe():
    """`console.write` prints and `spreadsheets` writes and reads CSVs, so that no name needs care elsewhere."""
    for module, path in MODULES.items():
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = module in ("lae_jax.runtime.console", "lae_jax.runtime.start")
        assert printing or not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), module
        by_hand = {ast.unparse(call) for call in calls} & {f"csv.{name}" for name in CSV}
        reads = module in ("lae_jax.runtime.foreign.spreadsheets", "lae_jax.data.sources.csv_file")
        assert reads or not by_hand, f"{module}: {by_hand}"


def test_only_one_file_names_pmap_and_shard_map():
    uses = {
        module: {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        for module, path in MODULES.items()
    }
    named = [name for name, attributes in uses.items() if attributes & {"pmap", "shard_map"}]
    assert named == ["lae_jax.runtime.parallel.mapping"]


def test_models_steps_and_losses_run_without_tensorflow():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('tensorflow', 'tensorflow_datasets', 'ml_collections'):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from lae_jax import losses, metrics, models, optim, stages
from lae_jax.export import program
from lae_jax.runs import distributions, forward, inference, preprocessing
from lae_jax.runtime import checkpoints, parallel
from lae_jax.train import steps
import lae_jax.predict
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_promise_of_the_results_has_tests_that_run_on_all_kinds_of_cpu():
    promises = (ROOT / "docs" / "results.md").read_text().partition("| promise | tolerance | test |")[2]
    named = [re.findall(r"`test_(\w+)`", row) for row in promises.partition("\n\n")[0].splitlines()[2:]]
    assert len(named) > 20 and all(named)
    assert {name for names in named for name in names} <= QUICK | SLOW
    there = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert {f"test_{name}" for name in {*QUICK, *SLOW, *LONGEST}} <= there
