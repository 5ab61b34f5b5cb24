"""The notebook and the site's pages of the API: whole, without outputs, with names that exist."""

import ast
import importlib
import json
import re

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# What other programs call.
CALLED = {
    "losses": ["label_distribution", "expected_age", "representation_loss", "classification_loss", "am_softmax_loss"],
    "metrics": ["age_report", "AgeReport"],
    "optim": ["one_cycle", "one_cycle_momentum", "multi_step"],
    "models": ["create"],
    "models.pretrained": ["load"],
    "data.sampling": ["shuffled", "class_balanced"],
    "data.augment": ["rand_augment", "OPS"],
    "prepare": ["prepare"],
    "audit": ["audit"],
    "train": ["train"],
    "evaluate": ["evaluate"],
    "predict": ["AgeEstimator", "predict"],
    "report": ["compare"],
    "export": ["export"],
    "longtail": ["compare", "again", "recommend"],
    "sweep": ["sweep"],
    "serve": ["application"],
}


def test_the_examples_are_there():
    assert [path.name for path in NOTEBOOKS] == ["quickstart.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_each_cell_is_told(path):
    cells = json.loads(path.read_text())["cells"]
    kinds = [cell["cell_type"] for cell in cells]
    assert kinds[0] == kinds[-1] == "markdown" and kinds.count("code") > 4
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None and cell["metadata"] == {}
            assert before["cell_type"] == "markdown"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_public_names_that_exist(path):
    cells = json.loads(path.read_text())["cells"]
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("lae_jax"):
            for name in node.names:
                assert not name.name.startswith("_")
                modules[name.name] = importlib.import_module(f"{node.module}.{name.name}")
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    called = [(node.value.id, node.attr) for node in called if node.value.id in modules]
    assert {"prepare", "train", "evaluate", "report", "predict"} <= {module for module, _ in called}
    for module, name in called:
        assert not name.startswith("_") and hasattr(modules[module], name), f"{module}.{name}"


def test_the_pages_of_the_api_list_the_names_that_others_call():
    listed = set()
    for path in sorted((ROOT / "docs" / "api").glob("*.md")):
        module = ""
        for kind, name in re.findall(r"^\.\. (?:py:)?(\w+):: ([\w.]+)$", path.read_text(), re.MULTILINE):
            module = name if kind == "module" else module
            listed.add(f"{module}.{name}")
    for module, names in CALLED.items():
        for name in names:
            assert hasattr(importlib.import_module(f"lae_jax.{module}"), name), f"{module}.{name}"
            assert f"lae_jax.{module}.{name}" in listed, f"{module}.{name}"


def test_every_page_has_a_place_in_the_order_of_the_site():
    order = re.findall(r"^([\w/]+)$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert len(order) == len({*order}) and {*order} == pages - {"index"}
