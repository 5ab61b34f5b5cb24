"""What a run does with published weights that it starts from."""

import json
import logging

import numpy as np
import pytest
from trees import equal

from benchmarks import foreign_models as foreign
from lae_jax import main
from lae_jax.configs import small
from lae_jax.models import pretrained
from lae_jax.models.pretrained import naming
from lae_jax.runtime import checkpoints, watch
from lae_jax.runtime.errors import InputError
from lae_jax.train import loop
from lae_jax.train.plan import make_plan

PICO = "efficientnet_v2_pico"


@pytest.fixture
def pico(small_config, tmp_path, monkeypatch):
    """stage -> a config that starts from `pico.safetensors`: the smallest model, as if timm had it."""
    monkeypatch.setitem(naming.ARCHITECTURES, PICO, "tf_efficientnetv2_pico")
    rng = np.random.default_rng(0)
    layout = naming.torch_layout(PICO, pretrained._shapes(PICO))
    state = {name: rng.uniform(0.1, 0.2, want.shape) for name, want in layout.items()}
    path = tmp_path / "pico.safetensors"
    foreign.write_safetensors(path, state)

    def make(stage, **data):
        c = small_config(stage)
        c.epochs = 0.3
        c.data.update(data)
        if stage != "classify":
            c.init_from = str(path)
        return c

    return make


def test_a_run_starts_from_a_file_follows_its_statistics_and_hands_both_on(pico, tmp_path, caplog):
    config, path = pico("represent", normalize="weights"), tmp_path / "pico.safetensors"
    config.optim.base_learning_rate = 0.0
    weights = pretrained.read(path, PICO)
    with caplog.at_level(logging.INFO, "lae_jax"):
        loop.train(config)
    assert f"from {path}: loaded backbone; initialised head" in caplog.text
    assert "mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5] of the images come from the weights and differ" in caplog.text
    checkpoint = checkpoints.load_run(config.workdir)
    assert equal(checkpoint.variables["params"]["backbone"], weights.variables["params"])
    data = checkpoint.meta["config"]["data"]
    assert (data["mean"], data["std"], data["normalize"]) == ([0.5] * 3, [0.5] * 3, "weights")
    origin = json.loads((tmp_path / "represent" / "provenance.json").read_text())["init"]
    assert origin == {"from": str(path), "step": None, "sha256": weights.sha256}

    # The same command goes on, and needs the file no more.
    path.unlink()
    (tmp_path / "represent" / "summary.json").unlink()
    loop.train(config)
    # Stage 3 follows its run.
    third = pico("classify", normalize="weights")
    assert make_plan(third).config.data.std == (0.5, 0.5, 0.5)
    third.data.normalize = ""
    with pytest.raises(InputError, match=r"data.mean \[0.5, 0.5, 0.5\], not .*: add --config.data.mean=\[0.5,0.5"):
        make_plan(third)
    # A run is a source as well.
    assert equal(pretrained.load(config.workdir, PICO)["params"], weights.variables["params"])
    with pytest.raises(InputError, match=f"is a run of {PICO} and does not fit resnet18: 100 missing: .* 39 unex"):
        pretrained.load(config.workdir, "resnet18")


def test_stage_1_and_the_baseline_start_from_a_file_too(pico):
    assert make_plan(pico("pretrain")).init.variables["params"].keys() == {"backbone"}
    config = pico("represent")
    config.optim.schedule = "multi_step"
    assert make_plan(config).init.step is None


def test_what_was_assumed_is_a_line_of_the_log_with_the_way_to_set_others(pico, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lae_jax"):
        make_plan(pico("represent", normalize="weights"))
    (line,) = [record for record in caplog.records if "does not say how its training images" in record.getMessage()]
    assert (
        line.levelname == "WARNING"
        and "Assumed: mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5] of RGB" in line.getMessage()
    )
    assert "set --config.data.mean and --config.data.std, and omit --config.data.normalize" in line.getMessage()
    caplog.clear()
    # A repository that was downloaded by hand says it.
    config = pico("represent", normalize="weights")
    config.init_from = str((tmp_path / "pico.safetensors").rename(tmp_path / "model.safetensors"))
    beside = {
        "architecture": "tf_efficientnetv2_pico",
        "pretrained_cfg": {"mean": naming.IMAGENET.mean, "std": [0.2] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(beside))
    with caplog.at_level(logging.INFO, "lae_jax"):
        plan = make_plan(config)
    assert plan.config.data.mean == naming.IMAGENET.mean and plan.config.data.std == (0.2, 0.2, 0.2)
    assert "of the images from its config.json" in caplog.text and "does not say" not in caplog.text
    (tmp_path / "config.json").write_text('{"architecture": "efficientnetv2_pico"}')
    with pytest.raises(InputError, match="is timm's efficientnetv2_pico"):
        make_plan(config)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json cannot be read"):
        make_plan(config)


def test_statistics_that_differ_are_told(pico, caplog):
    with caplog.at_level(logging.INFO, "lae_jax"):
        plan = make_plan(pico("represent"))
    assert plan.config.data.mean == naming.IMAGENET.mean
    assert "with images of mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5], but this run uses mean [0.485" in caplog.text
    assert "set --config.data.normalize=weights" in caplog.text


def test_what_cannot_be_started_from_is_refused(pico, tmp_path):
    third = pico("classify")
    third.init_from = str(tmp_path / "pico.safetensors")
    with pytest.raises(InputError, match="holds a backbone only, but stage classify starts from a run of stage 2"):
        make_plan(third)
    second = pico("represent")
    second.init_step = 3
    with pytest.raises(InputError, match="config.init_step is 3, but .* is not a run"):
        make_plan(second)
    second = pico("represent")
    second.model.name = "efficientnet_v2_s"
    with pytest.raises(InputError, match=f"is {PICO} and not efficientnet_v2_s: set config.model.name"):
        make_plan(second)
    second.init_from, second.data.normalize = "scratch", "weights"
    with pytest.raises(InputError, match="normalize=weights takes mean and std from the weights of config.init_from"):
        make_plan(second)
    second.data.normalize = "imagenet"
    with pytest.raises(InputError, match="config.data.normalize is 'imagenet'"):
        make_plan(second)


def test_a_recipe_misses_its_weights_before_it_begins(tmp_path):
    config = small.get_config("tuned")
    config.workdir = str(tmp_path / "runs")
    for source, message in (
        (tmp_path / "none.safetensors", "there is no file"),
        (tmp_path / "none.pth", "there is no file"),
        ("hf:none", "is hf:owner/name"),
    ):
        config.stages.represent.init_from = str(source)
        with pytest.raises(InputError, match=message):
            main.run(config, watch.Signals())
