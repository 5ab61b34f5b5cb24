"""The runs of a sweep: which there are, what they are called, and what is refused before any is trained."""

import re

import pytest

from lae_jax.runtime.errors import InputError
from lae_jax.sweep import grid

RATE = "config.optim.base_learning_rate"
# ml_collections loads configs by it.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def folded(once):
    """A prepared data set with three folds."""
    from lae_jax import prepare

    def make(out):
        prepare.prepare({"train": "48"}, out, reader="synthetic", size=32, shards=1, workers=1, folds=3)

    return once("folded", make)


def sweep(data, config="represent", **changed):
    fields = changed.pop("fields", {})
    start = {} if "init_from" in fields else {"config.init_from": ["scratch"]}
    fields = {"config.data.path": [str(data)], **start, **fields}
    return grid.Sweep(config, changed.pop("seeds", [0]), fields=fields, **changed)


def test_the_runs_are_all_combinations_with_their_names(drawn, tmp_path):
    fields = {RATE: ["0.01", "0.1"], "epochs": ["2", "3"], "batch_size": ["64"]}
    runs = grid.runs_of(sweep(drawn, seeds=[0, 5], fields=fields), tmp_path)
    assert len(runs) == 8 and len({run.name for run in runs}) == 8
    assert (
        runs[0].name == "base_learning_rate=0.01,epochs=2-seed0"
        and runs[0].setting == "base_learning_rate=0.01,epochs=2"
    )
    assert [run.seed for run in runs] == [0] * 4 + [5] * 4  # settings stand together
    assert f"--{RATE}=0.01" in runs[0].words and "--config.batch_size=64" in runs[0].words
    assert "--config.seed=5" in runs[4].words and not any("workdir" in word for word in runs[0].words)
    assert runs[0].folder == "runs/base_learning_rate=0.01,epochs=2-seed0" and runs[0].split == "validation"


def test_cures_of_stage_2_are_compared_by_one_field(drawn, tmp_path):
    cures = ["none", "lds+fds", "rank_sim"]
    runs = grid.runs_of(sweep(drawn, fields={"config.cure.name": cures}), tmp_path)
    assert [run.name for run in runs] == ["name=none-seed0", "name=lds+fds-seed0", "name=rank_sim-seed0"]
    assert [run.config[""]["cure.name"] for run in runs] == cures
    fields = {"config.cure.name": ["none", "fds"], "config.model.name": ["resnet18", "resnet50"]}
    assert grid.runs_of(sweep(drawn, fields=fields), tmp_path)[0].setting == "cure.name=none,model.name=resnet18"


def test_names_tell_apart_fields_that_end_alike(drawn, tmp_path):
    fields = {"optim.momentum": ["0.8", "0.9"], "config.optim.cycle_momentum": ["True", "False"]}
    runs = grid.runs_of(sweep(drawn, fields=fields), tmp_path)
    assert runs[0].setting == "momentum=0.8,cycle_momentum=True"
    fields = {"config.stages.represent.epochs": ["1", "2"], "config.stages.classify.epochs": ["3", "4"]}
    wanted = grid.Sweep("small:tuned", [0], fields={**fields, "faces": [str(drawn)]})
    assert grid.runs_of(wanted, tmp_path)[0].setting == "represent.epochs=1,classify.epochs=3"


def test_folds_are_one_model_each_in_every_stage_of_these_images(folded, drawn, tmp_path):
    runs = grid.runs_of(grid.Sweep("small", [7], "all", {"faces": [str(folded)], "people": [str(drawn)]}), tmp_path)
    assert [(run.fold, run.split) for run in runs] == [(k, f"fold{k}-validation") for k in range(3)]
    own = [word for word in runs[1].words if "data.fold" in word]
    assert own == ["--config.stages.represent.data.fold=1", "--config.stages.classify.data.fold=1"]
    assert runs[1].folder == "runs/small-fold1-seed7/classify"
    chosen = grid.runs_of(sweep(folded, folds=[2]), tmp_path)
    assert [run.split for run in chosen] == ["fold2-validation"]


def test_a_value_may_name_the_seed_and_the_fold(folded, tmp_path):
    for fold in (1, 2):
        (tmp_path / f"rep{fold}-4" / "checkpoints").mkdir(parents=True)
    fields = {"init_from": [f"{tmp_path}/rep{{fold}}-{{seed}}"]}
    runs = grid.runs_of(sweep(folded, seeds=[4], folds=[1, 2], fields=fields), tmp_path / "out")
    assert f"--config.init_from={tmp_path}/rep1-4" in runs[0].words
    assert f"--config.init_from={tmp_path}/rep2-4" in runs[1].words


def test_a_file_is_read_as_the_flags_are(tmp_path):
    toml = tmp_path / "a.toml"
    toml.write_text(
        'config = "represent"\nseeds = [1, 2]\nfolds = "all"\n[set]\n"config.optim.base_learning_rate" = [0.01, 0.1]\n'
        "[set.optim]\nnesterov = false\n[settings.long]\nepochs = 9\n"
        '[settings.table2]\nconfig = "table2.py:baseline"\n"data.mean" = [0.5, 0.5, 0.5]\n'
    )
    found = grid.read(toml)
    assert (found.config, found.seeds, found.folds) == ("represent", [1, 2], "all")
    assert found.fields == {RATE: ["0.01", "0.1"], "optim.nesterov": ["False"]}
    assert found.settings["table2"] == {"config": "table2.py:baseline", "data.mean": "(0.5, 0.5, 0.5)"}
    (tmp_path / "a.json").write_text('{"config": "represent", "seeds": [1, 2], "set": {"epochs": [1.5]}}')
    assert grid.read(tmp_path / "a.json").fields == {"epochs": ["1.5"]}


def test_a_comma_in_brackets_is_part_of_a_value():
    assert grid.values_of("data.mean=(0.5,0.5,0.5),(0,0,0)") == ("data.mean", ["(0.5,0.5,0.5)", "(0,0,0)"])
    assert grid.values_of("init_from='a,b',c") == ("init_from", ["'a,b'", "c"])


@pytest.mark.parametrize(("text", "message"), [
    ("seed = [1]", "unknown key 'seed'; did you mean 'seeds'"),
    ("seeds = 3", "seeds is 3: it must be a list of whole numbers"),
    ("seeds = [0.5]", "it must be a list of whole numbers"),
    ("folds = 'some'", "folds is 'some'"),
    ("set = 3", "set is 3: it must be a table"),
    ("[settings]\na = 1", "settings.a is 1"),
    ("a = = 3", "is not TOML"),
])  # fmt: skip
def test_a_wrong_file_is_named(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        grid.read(tmp_path / "a.toml")


@pytest.mark.parametrize(("changed", "message"), [
    ({"config": ""}, "name a config"),
    ({"config": "nothing"}, "unknown config of the package"),
    ({"seeds": [0, 1, 0]}, "seed 0 is there twice"),
    ({"seeds": []}, "name at least one seed"),
    ({"folds": [1, 1]}, "fold 1 is there twice"),
    ({"folds": "all"}, "unknown split 'fold0-validation'.*prepare --folds K"),
    ({"folds": [4]}, "unknown split 'fold4-train'.*prepare --folds K"),
    ({"fields": {"config.optim.rate": ["1"]}}, "setting represent: unknown config field 'rate'"),
    ({"fields": {"epochs": ["many"]}}, "setting represent: flag --config.epochs=many"),
    ({"fields": {"epochs": ["2", "2"]}}, "value of epochs 2 is there twice"),
    ({"fields": {"epochs": ["2", "2.0"]}}, "settings epochs=2 and epochs=2.0 are the same"),
    ({"fields": {"epochs": ["2"], "config.epochs": ["3"]}}, "names a field twice"),
    ({"fields": {"config.seed": ["2"]}}, "config.seed is set by the sweep: choose it with --seeds"),
    ({"fields": {"config.data.fold": ["2"]}}, "choose it with --fold"),
    ({"fields": {"workdir": ["a"]}}, "choose it with --out"),
    ({"fields": {"data.split": ["train", "validation"]}}, "on split train of .* on split validation .* same images"),
    ({"fields": {"data.split": [""]}}, "has no validation split"),
    ({"fields": {"data.split": ["tset"]}}, "unknown split 'tset'; did you mean 'test'"),
    ({"fields": {"stage": ["pretrain"]}}, "ends with stage 1"),
    ({"fields": {"init_from": ["nowhere.npz"]}}, r"run represent-seed0: .*init_from: no such file"),
    ({"fields": {"init_from": [""]}}, r"config.init_from is empty"),
    ({"settings": {"a": {"epochs": "2"}, "b": {"epochs": "2"}}}, "settings a and b are the same"),
    ({"settings": {"a b": {"epochs": "2"}, "a_b": {"epochs": "3"}}}, "would be in one folder, a_b-seed0"),
    ({"settings": {"a": {"epochs": "2"}}, "fields": {"epochs": ["3"]}}, "set by setting a and for all settings"),
])  # fmt: skip
def test_what_cannot_be_trained_or_compared_is_refused_at_once(drawn, tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        grid.runs_of(sweep(drawn, **changed), tmp_path)


def test_settings_of_other_data_are_refused(drawn, folded, tmp_path):
    settings = {"a": {"data.path": str(drawn)}, "b": {"data.path": str(folded)}}
    with pytest.raises(InputError, match=re.escape(f"{drawn}, and b on split validation of {folded}")):
        grid.runs_of(grid.Sweep("represent", settings=settings, fields={"init_from": ["scratch"]}), tmp_path)


def test_a_run_that_was_begun_with_another_config_is_refused(drawn, tmp_path, monkeypatch):
    from lae_jax.runtime import files

    wanted = grid.Sweep("small:tuned", fields={"faces": [str(drawn)], "stages.classify.epochs": ["2"]})
    (run,) = grid.runs_of(wanted, tmp_path / "a")
    (tmp_path / "a" / "claims" / run.name).mkdir(parents=True)
    files.write_json(tmp_path / "a" / "claims" / run.name / "config.json", run.config)
    assert grid.runs_of(wanted, tmp_path / "a") == [run]
    (tmp_path / "a").rename(tmp_path / "b")  # a folder that was moved has the same runs
    assert grid.runs_of(wanted, tmp_path / "b") == [run]
    changed = {**wanted.fields, "stages.classify.epochs": ["3"], "stages.classify.save_steps": ["7"]}
    with pytest.raises(InputError, match=r"begun with another config .epochs: 2.0 there, 3.0 now.: .*another --out"):
        grid.runs_of(grid.Sweep("small:tuned", fields=changed), tmp_path / "b")
    weights = tmp_path / "weights.csv"
    weights.write_text("age,weight\n30,2\n")
    monkeypatch.setattr(grid.early, "_check_teacher", lambda *_: None)
    for field, told in (
        ("teacher", f"teacher: '' there, '{weights}' now"),
        ("data.age_weights", f"data.age_weights: '' there, '{weights}' now"),
    ):
        changed = {**wanted.fields, f"stages.classify.{field}": [str(weights)]}
        with pytest.raises(InputError, match=f"begun with another config .{re.escape(told)}.: .*another --out"):
            grid.runs_of(grid.Sweep("small:tuned", fields=changed), tmp_path / "b")
    with pytest.raises(InputError, match="stages classify, represent there, represent now"):
        order = {**wanted.fields, "order": ["('represent',)"]}
        grid.runs_of(grid.Sweep("small:tuned", fields=order), tmp_path / "b")
