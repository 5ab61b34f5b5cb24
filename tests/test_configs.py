"""Every config builds, resolves and passes shapes through its step; the settings are the paper's."""

import functools
import importlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from conftest import ROOT
from ml_collections import ConfigDict

from lae_jax import main, optim, stages
from lae_jax.configs import common, small, table2
from lae_jax.runs import build as runs
from lae_jax.runs import fields, inputs, precision
from lae_jax.runtime import parallel
from lae_jax.runtime.errors import InputError
from lae_jax.train import config_flag, steps

NAMES = ["pretrain", "represent", "classify", "baseline", "submission", "demo", "faces", "finetune"]
NAMES += [f"table2:{row}" for row in table2.ROWS] + [f"small:{name}" for name in small.VARIANTS]


def build(name):
    module, _, argument = name.partition(":")
    return importlib.import_module(f"lae_jax.configs.{module}").get_config(*([argument] if argument else []))


def stages_of(name):
    config = build(name)
    return (
        [config.stages[key].copy_and_resolve_references() for key in config.order] if "stages" in config else [config]
    )


@functools.cache
def check_step(stage_name: str, model: str, image_size: int):
    """Traces the step of a stage and a model (the config's part, JSON) without compiling it: shapes and dtypes."""
    given = {"model": json.loads(model), "accumulate": 1, "loss": common.get_config().loss}
    given["data"] = {"image_size": image_size}
    config, stage = ConfigDict(given), stages.get(stage_name)
    # M takes half a minute to trace; its own shapes are tested in test_backbones.py.
    config.model.name = config.model.name.replace("v2_m", "v2_nano")
    module = runs.model(config, stage, 101 if stage.head == "age" else 1000)
    image = jnp.zeros((2, image_size, image_size, 3))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), image))
    tx = optim.trainable(optim.sgd(lambda count: 0.1 / (count + 1)), variables["params"], stage.trains)
    state = jax.eval_shape(lambda v: steps.create_state(v, tx), variables)
    step = functools.partial(
        steps.train_step,
        stage=stage,
        constants={**common.get_config().loss, "mae": 1.9},
        model=module,
        tx=tx,
        settings=steps.Settings(0, precision.dtype_of(config), (0.5,) * 3, (0.25,) * 3),
    )
    target = jax.ShapeDtypeStruct((1, 2), jnp.float32 if stage.head == "age" else jnp.int32)
    batch = {"image": jax.ShapeDtypeStruct((1, 2, *image.shape[1:]), jnp.uint8), "target": target}
    new, metrics = jax.eval_shape(
        jax.vmap(step, axis_name=parallel.AXIS, in_axes=(None, 0), out_axes=None), state, batch
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["loss"][0].dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_and_its_step_has_the_right_shapes(name):
    for config in stages_of(name):
        assert inputs.augmentation(config).image_size == config.data.image_size
        schedule = runs.schedules(config, 100, 1000)
        assert np.isfinite(float(schedule.learning_rate(999)))
        optimiser = runs.optimiser(config, schedule, {"backbone": jnp.ones(1), "head": jnp.ones(1)}, stages.CLASSIFY)
        assert jax.tree.leaves(optimiser.init({"backbone": jnp.ones(1), "head": jnp.ones(1)}))
        check_step(config.stage, json.dumps(fields.as_json(config.model), sort_keys=True), config.data.image_size)


def test_the_settings_are_the_papers():
    pretrain, represent, classify, baseline = (build(name) for name in NAMES[:4])
    rate = {c.stage: runs.schedules(c, 10, 240).learning_rate for c in (represent, classify)}
    assert float(rate["represent"](71)) == pytest.approx(0.005) and float(rate["classify"](71)) == pytest.approx(0.001)
    assert float(rate["represent"](0)) == pytest.approx(0.005 / 25)
    assert (represent.epochs, classify.epochs, pretrain.epochs, baseline.epochs) == (24, 8, 18, 75)
    steps_ = runs.schedules(pretrain, 10, 180).learning_rate
    assert [round(float(steps_(s)), 6) for s in (69, 70, 139, 140, 160)] == [0.1, 0.01, 0.01, 0.001, 0.0001]
    assert all(c.optim.weight_decay == 5e-4 and c.batch_size == 256 for c in (pretrain, represent, classify, baseline))
    assert baseline.model.name == "resnet18" and represent.model.name == "efficientnet_v2_m"
    assert represent.data.augment.num_ops == 2 and represent.data.augment.magnitude == 9
    represent.batch_size = 1024
    assert float(runs.schedules(represent, 10, 240).learning_rate(71)) == pytest.approx(0.02)


def test_the_trained_part_of_stage_3_is_the_head():
    tx = optim.trainable(optim.sgd(0.1), {"backbone": jnp.ones(2), "head": jnp.ones(2)}, stages.CLASSIFY.trains)
    params = {"backbone": jnp.ones(2), "head": jnp.ones(2)}
    updates, _ = tx.update(params, tx.init(params), params)
    assert np.all(updates["backbone"] == 0) and np.all(updates["head"] != 0)


@pytest.mark.parametrize(("words", "message"), [
    (["--config", "configs/classify.py", "--config.init_from=runs/nothing"], "runs/nothing holds no run: make it with"),
    (
        ["--config", "configs/represent.py", "--config.optim.base_learning_rat=1"],
        "unknown config field 'base_learning_rat'; Did you mean \"base_learning_rate\" instead of",
    ),
    (["--config", "configs/represent.py", "--confg.epochs=1"], "Unknown command line flag 'confg.epochs'"),
    (["--config", "configs/represent.py", "--config.epochs=many"], "epochs"),
    (["--config", "configs/table2.py:baselin"], "did you mean 'baseline'? (known: architecture, augmentation"),
    (["--config", "small:tuned", "--config.model.name=resnet50"], "unknown config field 'model' (in a recipe"),
    (["--config", "configs/submission.py"], "runs/pretrain holds no run"),
    *((["--config", f"configs/{name}"], "config.init_from is empty: name what the backbone starts from")
      for name in ("baseline.py", "pretrain.py", "represent.py", "table2.py:baseline", "table2.py:architecture",
                   "table2.py:augmentation")),
    (["--config", "table2.py:baseline"], "or start without weights: --config.init_from=scratch"),
    (["--config", "table2.py:baseline", "--config.init_from=scratch"], "data/faces is not a prepared data set"),
    (["--config", "demo.py", "--config.stages.pretrain.init_from="], "--config.stages.pretrain.init_from=scratch"),
    (["--config", "small.py", "--config.order=('represent',)"], "config.stages.represent.init_from is empty"),
    (["--config", "small.py", "--config.order=('classify',)"], "set --config.stages.classify.init_from to one"),
    (["--config", "classify.py", "--config.init_from=scratch"], "stage classify starts from a run of stage 2: set"),
    (["--config", "table2.py:pretraining"], "runs/pretrain_resnet18 holds no run"),
    (["--config", "table2.py:classification"], "runs/table2/representation holds no run"),
    (["--config", "small.py"], "data/people is not a prepared data set"),
    (["--config", "small.py:tuned"], "data/faces is not a prepared data set"),
    (["--config", "configs/nothing.py"], "no such file, and unknown config of the package 'nothing' (known: "),
    (["--config", "configs/smal.py:tuned"], "did you mean 'small'?"),
    (["configs/small.py:tuned"], "to name a config, use --config configs/small.py:tuned"),
    (["--config", "configs/represent.py", "--processes=2"], "need --coordinator"),
    ([], "name a config"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections' way of reading a config
def test_a_wrong_call_raises_a_one_line_error(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where nobody has trained anything
    monkeypatch.setattr(sys, "argv", ["main", *words])
    if not any("--process" in word for word in words):
        monkeypatch.setattr(main, "set_up_devices", None)  # refused before JAX looks for devices
    with flagsaver.flagsaver(), pytest.raises(InputError) as error:
        main.cli()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_config_that_imports_a_missing_module_gets_a_sentence(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("import beside_it")
    monkeypatch.setattr(sys, "argv", ["main", "--config", str(tmp_path / "mine.py")])
    with flagsaver.flagsaver(), pytest.raises(InputError, match="imports beside_it, which .* PYTHONPATH=."):
        main.cli()


def test_a_wrong_call_is_one_line_without_a_traceback_and_status_2():
    words = ["-m", "lae_jax.main", "--config", "configs/represent.py", "--devices=2", "--expect_devices=4"]
    result = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 2 and "2 devices found (cpu), --expect_devices=4" in error, result.stderr
    assert "Traceback" not in result.stderr


def test_help_lists_the_flags(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["main", "--help"])
    main.cli()
    told = capsys.readouterr().out
    assert "--config:" in told and "--expect_hosts:" in told


def test_a_shipped_config_is_found_by_its_name():
    found = config_flag.find_shipped_config(["main", "--config", "represent", "--config=table2.py:baseline"])
    assert found[2].endswith("configs/represent.py") and found[3].endswith("configs/table2.py:baseline")
    with pytest.raises(InputError, match="unknown config of the package"):
        config_flag.find_shipped_config(["main", "--config=nothing"])
