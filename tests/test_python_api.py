"""The typed functions: what a notebook may pass, and what they say of what it may not."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from lae_jax import audit, evaluate, longtail, predict, prepare, report, serve, train
from lae_jax.configs import demo
from lae_jax.runtime import start
from lae_jax.runtime.errors import InputError


def test_one_folder_or_name_is_a_list_of_one(drawn, trained, tmp_path):
    run = trained("represent")
    for data in (str(drawn), drawn, [drawn]):
        (found,) = audit.audit(data)
        assert found["data"] == str(drawn)
    with pytest.raises(InputError, match=f"^{run} .*no evaluation"):
        report.compare(run, tmp_path / "out")
    with pytest.raises(InputError, match="unknown method 'lea'; did you mean 'lae'"):
        longtail.compare(str(run), drawn, tmp_path / "out", methods="lea", base_learning_rates=0.1)
    with pytest.raises(InputError, match="unknown column 'sex'"):
        evaluate.evaluate(run, slices="sex")


@pytest.mark.parametrize("call", [
    lambda drawn: audit.audit([]),
    lambda drawn: report.compare([], "out"),
    lambda drawn: longtail.compare([], drawn, "out"),
])  # fmt: skip
def test_nothing_at_all_is_an_error_that_says_so(call, drawn):
    with pytest.raises(InputError, match="name at least one"):
        call(drawn)


def test_numbers_and_words_that_cannot_be_are_refused(tmp_path):
    source = {"train": "9"}
    with pytest.raises(InputError, match="by: unknown group 'person'"):
        prepare.prepare(source, tmp_path / "a", reader="synthetic", by="person")
    with pytest.raises(InputError, match="unknown reader 'cvs'; did you mean 'csv'"):
        prepare.prepare(source, tmp_path / "a", reader="cvs")
    with pytest.raises(InputError, match="interval is 2: it must lie between 0 and 1"):
        predict.predict("runs/none", "a.jpg", interval=2)  # at once, not when the first row is asked for
    with pytest.raises(InputError, match="max_batch is 0.5: it must be at least 1"):
        serve.application("runs/none", max_batch=0.5)
    with pytest.raises(InputError, match="--devices is -1: it must be at least 0"):
        start.devices(-1)
    with pytest.raises(InputError, match="a config is needed, such as .* not 'configs/demo.py'"):
        train.train("configs/demo.py")


def test_a_recipe_becomes_its_stages_each_started_from_the_one_before():
    recipe = demo.get_config()
    recipe.workdir = "runs/mine"
    first, second, third = train.stages_of(recipe)
    assert [stage.stage for stage in (first, second, third)] == ["pretrain", "represent", "classify"]
    assert (first.init_from, second.init_from, third.init_from) == ("scratch", first.workdir, second.workdir)
    assert [*train.stages_of(third)] == [third]


def test_a_script_without_a_main_is_told_what_to_do(tmp_path):
    """Each worker imports the script, and would start workers of its own."""
    call = "prepare.prepare({'train': '8'}, 'out', reader='synthetic', size=32, shards=2, workers=2)"
    guarded = f"if __name__ == '__main__': {call}"
    for text, status, told in ((call, 1, "below if __name__ == '__main__'"), (guarded, 0, "")):
        (tmp_path / "script.py").write_text(f"from lae_jax import prepare\n{text}\n")
        how = {"env": {"PYTHONPATH": str(ROOT), "PATH": ""}, "timeout": 120, "capture_output": True, "text": True}
        ended = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, **how)
        assert ended.returncode == status and told in ended.stderr, ended.stderr[-2000:]
    assert (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize(("program", "words"), [
    ("evaluate", ["--run", "r", "--interval", "2"]),
    ("longtail", ["--run", "r", "--data", "d", "--out", "o", "--seeds", "0"]),
    ("serve", ["--run", "r", "--max-mb", "0"]),
    ("predict", ["--run", "r", "a.jpg", "--threshold", "200"]),
    ("prepare", ["--reader", "csv", "--source", "a.csv", "--out", "o", "--quality", "200"]),
])  # fmt: skip
def test_wrong_values_of_flags_are_told_without_loading_what_takes_long(program, words, tmp_path):
    code = f"""
import atexit, runpy, sys
atexit.register(lambda: print(*sorted({{name.partition(".")[0] for name in sys.modules}})))
sys.argv = {["program", *words]!r}
runpy.run_module("lae_jax.{program}", run_name="__main__", alter_sys=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=60, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: "), ended.stderr
    assert not {"jax", "tensorflow", "pyarrow"} & {*ended.stdout.split()}


def test_the_contests_form_writes_names_and_ages_alone(tmp_path):
    from lae_jax.predict import __main__ as door

    for words in (["--out", "a.jsonl"], ["--out", "a.csv", "--threshold", "18"]):
        with pytest.raises(InputError, match="--contest"):
            door.parse_args(["--run", "r", "--contest", "list.csv", *words])


def test_rows_of_photographs_come_one_by_one(trained, tmp_path):
    for k in range(3):
        Image.fromarray(np.full((40, 40, 3), 60 * k, np.uint8)).save(tmp_path / f"{k}.png")
    rows = predict.predict(trained("represent"), tmp_path, aligned=True, threshold=18)
    names = [pathlib.Path(row.name).name for row in rows if 0 < row.age < 100 and 0 <= row.at_least <= 1]
    assert names == ["0.png", "1.png", "2.png"]


def test_misspelt_fields_of_a_config_are_refused(small_config):
    for name, known in (("data.pth", "data.path"), ("nonsense", ""), ("model.nme", "model.name")):
        config = small_config("represent")
        node, _, leaf = name.rpartition(".")
        (config[node] if node else config)[leaf] = "x"
        with pytest.raises(
            InputError, match=f"unknown config field '{name}'" + f"; did you mean '{known}'" * bool(known)
        ):
            train.train(config)
        assert not pathlib.Path(config.workdir).exists()


def test_results_are_not_written_into_a_run_or_over_a_file(trained, drawn, tmp_path):
    run = trained("represent")
    (tmp_path / "file").write_text("")
    for out, told in (
        (run, "is a run: name another folder"),
        (drawn, "is a data set"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(InputError, match=told):
            longtail.compare(run, drawn, out)
        with pytest.raises(InputError, match=told):
            report.compare([tmp_path / "one"], out)


def test_devices_are_simulated_before_jax_is_asked_for_them():
    with pytest.raises(InputError, match="has asked JAX for its devices already"):
        start.devices(3)


def test_images_are_normalised_by_three_numbers(small_config):
    for name, value in (("mean", (0.5, 0.5)), ("mean", 0.5), ("std", (0.2, 0.0, 0.2))):
        config = small_config("represent")
        with config.ignore_type():
            config.data[name] = value
        with pytest.raises(InputError, match=f"config.data.{name} is .*: it must be three numbers"):
            train.train(config)
