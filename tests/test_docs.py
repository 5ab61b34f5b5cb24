"""The pages: the examples run, the commands are understood, the map of the house is complete."""

import ast
import importlib
import re
import shlex

import pytest
from conftest import ROOT
from PIL import Image

from lae_jax import __main__ as programs
from lae_jax.data.sources import synthetic
from lae_jax.runtime import layout

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^|[ `(/])(?:python -m lae_jax\.|lae-jax )(\w+) +([^`\n#]*)", re.MULTILINE)


def test_the_examples_of_the_python_api_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    rows = ["path,age"]
    for k in range(24):
        image, _ = synthetic.draw_face(k, 3.0 * k + 5, 1, 160, k)
        Image.fromarray(image).save(tmp_path / "photographs" / f"{k}.png")
        rows.append(f"photographs/{k}.png,{3 * k + 5}")
    (tmp_path / "faces.csv").write_text("\n".join(rows) + "\n")
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    # These tests have set up the devices already.
    assert "start.devices" in examples[0] and len(examples) > 6
    code = "\n".join(examples[1:]).replace('"data/faces", ratio', '"data/faces", workers=1, size=64, ratio')
    code = code.replace("efficientnet_v2_tiny", "efficientnet_v2_pico")
    names = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert names["manifest"]["count"] > 20 and names["ages"].shape == (3,)
    assert names["distributions"].shape == (3, 101) and names["content"]["check"]["max_age_difference"] < 1e-3
    assert (tmp_path / "reports" / "mine" / "report.html").exists()


def commands():
    """(page, program, words) of every command that is written out."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for program, words in COMMAND.findall(text):
            assert program in {*programs.PROGRAMS, "PROGRAM"}, f"{page.name}: {program} {words}"
            words = words.partition("   ")[0].strip()  # what follows is a remark
            if not re.search(r"\.\.\.|[|;]|<|\b(DIR|FILE|RUN)\b|\[", words):
                yield page.name, program, shlex.split(words)


@pytest.mark.parametrize("program", [name for name in programs.PROGRAMS if name != "main"])
def test_the_commands_of_the_pages_have_flags_that_exist(program, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    door = importlib.import_module("lae_jax.demo" if program == "demo" else f"lae_jax.{program}.__main__")
    found = [(page, words) for page, name, words in commands() if name == program]
    for page, words in found:
        try:
            door.parse_args(words)
        except ValueError as error:
            # Files are not here, and a sentence may quote a part of a command.
            expected = "there is no folder" in str(error) or "are required" in str(error)
            assert expected, f"{page}: {program} {words}: {error}"
    assert found or program in ("demo",)


def test_the_commands_that_train_name_configs_and_fields_that_exist():
    count = 0
    for page, program, words in commands():
        if program != "main" or "--config" not in words:
            continue
        file, _, row = words[words.index("--config") + 1].partition(":")
        name = file.removeprefix("configs/").removesuffix(".py")
        config = importlib.import_module(f"lae_jax.configs.{name}").get_config(*([row] if row else []))
        count += 1
        for word in words:
            if not word.startswith("--config."):
                continue
            node = config
            for field in word.removeprefix("--config.").partition("=")[0].split("."):
                assert field in node, f"{page}: {word}"
                node = node[field]
    assert count > 10


def trainings():
    """(place, words after --config) of every command that trains, in pages, scripts and docstrings of modules."""
    scripts = [path for path in (ROOT / "launch").iterdir() if path.is_file()]
    for path in [*PAGES, *scripts, *(ROOT / "configs").glob("*.py"), ROOT / "lae_jax/main.py"]:
        text = path.read_text()
        text = ast.get_docstring(ast.parse(text)) or "" if path.suffix == ".py" else text
        text = re.sub(r"\\\n#? *", " ", text)
        text = re.sub(r"\n( *- )?(?=--)", " ", text)  # the arguments of a container, a command wrapped in a docstring
        text = re.sub(r"-m lae_jax\.compile .*", "", text)  # it trains nothing
        text = re.sub(r"--set (?:config\.)?(?=init_from=)", "--config.", text)  # of a sweep
        for words in re.findall(r"--config[ =]((?:configs/)?\w+\.py(?::\w+)?(?![:\w])(?: +--[^`\n|#]*)?)", text):
            yield str(path.relative_to(ROOT)), words


def test_the_commands_that_train_say_what_they_start_from():
    places = set()
    for place, text in trainings():
        file, *fields = shlex.split(text.partition("  (")[0])
        name, _, row = file.removeprefix("configs/").partition(":")
        config = importlib.import_module(f"lae_jax.configs.{name[:-3]}").get_config(*[row][: bool(row)])
        given = dict(word.removeprefix("--config.").split("=", 1) for word in fields if word.startswith("--config."))
        prefix, stage = "", config
        if "stages" in config:
            first = [*re.findall(r"\w+", given.get("order", "")), *config.order][0]
            prefix, stage = f"stages.{first}.", config.stages[first]
        layout.require_start(given.get(f"{prefix}init_from", stage.init_from), stage.stage, f"{place}: {text}")
        places.add(place)
    assert {"README.md", "docs/longtail.md", "docs/scaling.md", "configs/table2.py", "lae_jax/main.py"} <= places
    assert {"launch/Dockerfile", "launch/gke_jobset.yaml", "launch/slurm.sbatch", "launch/tpu_pod.sh"} <= places


def test_pages_and_programs_have_one_word_for_what_an_interval_does_not_decide():
    other = re.compile(
        r"(?<!make) no (?:clear )?difference\b|not sure|not clearly|no more MAE|equally good", re.IGNORECASE
    )
    for path in [*PAGES, *(ROOT / "lae_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        found = other.search(" ".join(path.read_text().split()))
        assert found is None, f"{path.name}: {found[0]}"
    count = 0
    for name in ("cures.md", "longtail.md", "results.md"):
        text = " ".join((ROOT / "docs" / name).read_text().split())
        told = re.findall(r"([+-]\d+\.\d+) ± (\d+\.\d+), not distinguishable", text)
        told += re.findall(r"not distinguishable \(([+-]\d+\.\d+) ± (\d+\.\d+)\)", text)
        assert all(abs(float(mean)) <= float(half) for mean, half in told), f"{name}: {told}"
        sure = re.findall(r"([+-]\d+\.\d+) ± (\d+\.\d+),? (?:both )?(?:lower|higher)", text)
        sure += re.findall(r"(?:lower|higher) \(([+-]\d+\.\d+) ± (\d+\.\d+)\)", text)
        assert all(abs(float(mean)) > float(half) for mean, half in sure), f"{name}: {sure}"
        count += len(told) + len(sure)
    assert count >= 6


# What their names say is not a bound on what strangers send.
NO_BOUNDS = {
    "data.records.FULL_BELOW_BYTES",
    "data.parquet.MAX_AGE",
    "data.shards.MAX_ROWS",
    "data.sources.interface.MAX_PIXEL",
    "data.stems.MOST",
    "export.convert.LIMIT",
    "export.half.PROBABILITY_LIMIT",
    "export.half.LIMIT",
    "metrics.exact.MAX_CS",
    "report.bootstrap.MOST_UNITS",
    "train.profiling.MAX_STEPS",
}


def bounds_of(path):
    """Names of constants of a module that sound like bounds."""
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        names = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
        yield from (
            name
            for name in names
            if re.search(r"^(MAX|MOST|LARGEST|LONGEST|DEEPEST|LIMIT)(_|$)|^[A-Z].*_(LIMIT|BYTES)$", name)
        )


def test_the_bounds_of_the_security_page_are_those_of_the_code():
    text = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| .+ \| ([\d,]+)(?: \w+)? \| `([\w.-]+)` \|$", text, re.MULTILINE)
    flags = vars(importlib.import_module("lae_jax.serve.__main__").parse_args(["--run", "r"]))
    for figure, place in rows:
        module, _, name = place.rpartition(".")
        given = flags[place.strip("-").replace("-", "_")] if place.startswith("--") else None
        bound = given or getattr(importlib.import_module(f"lae_jax.{module}"), name)
        assert int(figure.replace(",", "")) == bound, place
    named = {place for _, place in rows}
    for path in (ROOT / "lae_jax").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / "lae_jax").with_suffix("").parts).removesuffix(".__init__")
        for name in bounds_of(path) if "configs" not in path.parts else ():
            assert (f"{module}.{name}" in named) != (f"{module}.{name}" in NO_BOUNDS), f"{module}.{name}"
    table = text.partition("| what | at most |")[2].partition("\n\n")[0]
    assert len(rows) == table.count("\n") - 1 > 20
    # Short enough to be read; a table is looked up.
    assert len(text.replace(table, "").split()) < 1300


def test_the_map_of_the_house_names_every_room_and_file_that_there_is():
    text = (ROOT / "docs" / "house.md").read_text()
    rooms = {path.name for path in (ROOT / "lae_jax").iterdir() if not path.name.startswith(("_", "."))} - {"configs"}
    named = set(re.findall(r"^\| *\d* *\| `(\w+)(?:/|\.py)` ", text, re.MULTILINE))
    assert named == {name.removesuffix(".py") for name in rooms}
    # One screen, and nothing that is not there.
    assert len(text.splitlines()) < 90
    for path in re.findall(r"`((?:\w+/)+\w+(?:\.py)?)(?:\.\w+)*`", text):
        place = ROOT / "lae_jax" / path
        assert place.exists() or place.with_suffix(".py").exists() or (ROOT / path).exists(), path
