"""The benchmark of the train step, and what it stands on: stage 3 costs what inference costs."""

import subprocess
import sys

import jax
import pytest
from conftest import ROOT

from benchmarks import jax_side, sides, step_variants, train_step
from lae_jax import models

CASE = {
    "model": "efficientnet_v2_tiny",
    "image_size": 64,
    "batch": 64,
    "dtype": "float32",
    "identities": 7,
    "remat": False,
}


def compiled(mode):
    lower, _ = jax_side.program(CASE | {"mode": mode})
    return lower().compile()


def test_stage_3_costs_what_inference_costs_and_keeps_no_activations():
    inference, stage3 = compiled("inference"), compiled("stage 3")
    assert stage3.cost_analysis()["flops"] <= 1.02 * inference.cost_analysis()["flops"]
    assert stage3.memory_analysis().temp_size_in_bytes <= 1.1 * inference.memory_analysis().temp_size_in_bytes


def test_multiply_adds_are_the_published_ones():
    # Of the papers: 5.4 and 1.8 billion at 224 px, heads of 1000 classes.
    m = jax_side.multiply_adds(models.create("efficientnet_v2_m", 101, convolutions="xla"), 224)
    assert 6e-9 * m == pytest.approx(32.2, rel=0.005)
    resnet = jax_side.multiply_adds(models.create("resnet18", 1000, convolutions="xla"), 224)
    assert resnet == pytest.approx(1.814e9, rel=0.002)


def test_it_runs_without_tensorflow_and_the_libraries_of_configs():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('tensorflow', 'tensorflow_datasets', 'ml_collections', 'clu', 'torch', 'timm'):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from benchmarks import train_step, jax_side
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_architectures_are_told_to_timm_in_its_own_words():
    told = train_step.timm_architecture(models.efficientnet.ARCHITECTURES["v2_m"])
    assert [words for (words,) in told["blocks"]] == [
        "cn_r3_k3_s1_e1_c24_skip",
        "er_r5_k3_s2_e4_c48",
        "er_r5_k3_s2_e4_c80",
        "ir_r7_k3_s2_e4_c160_se0.25",
        "ir_r14_k3_s1_e6_c176_se0.25",
        "ir_r18_k3_s2_e6_c304_se0.25",
        "ir_r5_k3_s1_e6_c512_se0.25",
    ]
    assert (told["stem"], told["top"]) == (24, 1280)


class Small:
    """A side that has room for 4 images and takes 1 ms for one."""

    def __init__(self, name, room=4):
        self.name, self.room, self.asked = name, room, []

    def ask(self, do, case=None, steps=0):
        self.asked.append(do)
        if do == "start":
            if case["batch"] > self.room:
                raise sides.OutOfMemory("full")
            self.batch = case["batch"]
            return {"gflop_image": 2.0}
        return {"seconds": 1e-3 * self.batch, "cpu_seconds": 2e-3 * self.batch}


def test_the_batch_is_halved_until_both_sides_have_room_and_they_take_turns():
    ours, other = Small("ours", room=100), Small("other")
    rows = train_step.race(ours, {"mode": "stage 2", "batch": 16}, other, {"mode": "stage 2", "batch": 16}, turns=3)
    assert [row["batch"] for row in rows] == [4, 4] and ours.batch == other.batch == 4
    assert [row["images_s"] for row in rows] == pytest.approx([1000, 1000]) and rows[0]["ratio"] == pytest.approx(1)
    assert rows[0]["images_cpu_s"] == pytest.approx(500) and rows[0]["tflops"] == pytest.approx(2.0)
    assert ours.asked.count("turn") == other.asked.count("turn") == 4
    with pytest.raises(sides.OutOfMemory):
        train_step.race(Small("ours", room=0), {"mode": "stage 2", "batch": 16}, None, {}, turns=1)


def test_sides_answer_through_their_pipe_and_say_what_went_wrong(tmp_path):
    with sides.Side("pico", [sys.executable, "-m", "benchmarks.jax_side"], {"JAX_PLATFORMS": "cpu"}) as side:
        assert side.ask("platform") == {"platform": "cpu"}
        with pytest.raises(sides.SideError, match="KeyError"):
            side.ask("start", case={})
        assert side.ask("stop") == {}
    with sides.Side("none", [sys.executable, "-m", "benchmarks.no_such_side"]) as side:
        with pytest.raises(sides.SideError, match="none ended with status 1"):
            side.ask("platform")


def test_variants_change_the_form_that_they_name(monkeypatch):
    from lae_jax.models import efficientnet, layers

    shapes = step_variants.depthwise_shapes("efficientnet_v2_pico", 16, 2)
    assert shapes == [((2, 4, 4, 24), 3, 1)]
    for module, name in (
        (layers, "shifted_depthwise"),
        (layers, "xla_convolution"),
        (efficientnet, "squeeze_excite"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))

    def convolutions():
        module = models.create("efficientnet_v2_pico", 0)
        images = jax.ShapeDtypeStruct((1, 16, 16, 3), "float32")
        jaxpr = jax.make_jaxpr(lambda x: module.init_with_output(jax.random.key(0), x)[0])(images)
        return sum("feature_group_count=24" in str(eqn) for eqn in jaxpr.eqns)

    before = convolutions()
    step_variants.apply("depthwise as XLA's")
    assert (before, convolutions()) == (0, 1)


def test_the_environment_of_the_peers_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_step", "--out", "step"])
    assert train_step.parse_args().peer_python == sys.executable
    train_step.PEERS.parent.mkdir(parents=True)
    train_step.PEERS.touch()
    assert train_step.parse_args().peer_python == str(train_step.PEERS)
