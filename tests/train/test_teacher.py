"""A teacher: its distribution in the step, the same run after a stop, and what the run says of it."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from halted import state_of, train_until
from PIL import Image
from trees import equal

from lae_jax.compile import lowering
from lae_jax.predict import AgeEstimator
from lae_jax.runs import lineage, precision
from lae_jax.runtime import checkpoints, origin
from lae_jax.runtime.errors import InputError
from lae_jax.train import early, loop, plan, teacher


@pytest.fixture
def student(small_config, trained):
    """stage -> a config that learns from the shared run of stage 2, which stage 3 starts from too."""

    def config(stage="represent"):
        c = small_config(stage)
        c.teacher, c.loss.teacher_weight, c.loss.teacher_temperature = str(trained("represent")), 0.25, 2.0
        if stage == "classify":
            c.init_from = c.teacher
        return c

    return config


@pytest.mark.parametrize(("pixels", "close"), [(24, 1e-7), (32, 1e-5), (20, 1e-5)])
def test_the_teachers_distribution_is_that_of_an_estimator(student, pixels, close):
    """Of plain images; those of another size are resized in the step as Pillow resizes them."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (8, 5, 5, 3)).repeat(8, axis=1).repeat(8, axis=2)[:, :pixels, :pixels]
    images = np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)
    config = student()
    found = teacher.load(config)
    logits = jax.jit(found.logits)(found.checkpoint.variables, images)
    _, expected = AgeEstimator.from_run(config.teacher).predict([*images], distribution=True)
    assert np.abs(expected - expected.mean(axis=0)).max() > 10 * close  # the images differ
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=close)


def test_images_of_another_size_are_resized_as_pillow_resizes_them():
    images = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3), np.uint8)
    for side in (24, 64):
        expected = np.stack([Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images])
        found = teacher.resized(images, side)
        assert found.dtype == np.uint8 and np.abs(np.int32(found) - expected).max() <= 1
    assert teacher.resized(images, 40) is images


def test_a_run_with_a_weight_of_0_is_that_without_a_teacher_bit_for_bit(student, trained):
    config = student()
    config.loss.teacher_weight = 0.0
    config.teacher = "no/such/run"  # it is not read
    loop.train(config)
    assert equal(state_of(config.workdir, 3), state_of(trained("represent"), 3))
    assert checkpoints.load_run(config.workdir).meta["teachers"] == []


@pytest.fixture(scope="module")
def distilled(once, make_config, trained):
    """Folder of runs with a teacher: `whole`, and `parts`, which was stopped and went on in the other form."""

    def make(folder):
        config = make_config("represent", folder)
        config.teacher, config.accumulate, config.save_steps = str(trained("represent")), 2, 1
        config.seed, config.workdir, config.parallel = 1, str(folder / "whole"), "pmap"
        loop.train(config)
        config.workdir = str(folder / "parts")
        train_until(config, 2, of=3)
        # The teacher may have been moved.
        config.teacher = str(shutil.copytree(config.teacher, folder / "moved"))
        config.parallel = "shard_map"
        loop.train(config)

    return once("distilled", make)


def test_with_a_weight_of_1_the_first_loss_is_the_divergence_by_hand(student, distilled):
    """Of the augmented images. Stage 3's backbone is frozen, so the distributions are those of estimators."""
    config = student("classify")
    config.teacher, config.loss.teacher_weight, config.model.dropout = str(distilled / "whole"), 1.0, 0.0
    made = plan.make_plan(config)
    images = next(loop._Loop(made, *loop._initial(made)[:2], None, None, None).batches(0))["image"]
    p, q = (
        np.sqrt(np.float64(AgeEstimator.from_run(run).predict([*images], distribution=True)[1]))  # T = 2
        for run in (config.init_from, config.teacher)
    )
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    expected = 4 * (q * np.log(q / p)).sum(axis=1).mean()
    loop.train(config)
    first = json.loads((pathlib.Path(config.workdir) / "metrics.jsonl").read_text().splitlines()[0])
    assert expected > 1e-5 and first["loss"] == pytest.approx(expected, rel=1e-2)


def test_a_run_with_a_teacher_goes_on_bit_for_bit_in_the_other_form(distilled):
    assert equal(*(state_of(distilled / name, 3) for name in ("whole", "parts")))


def test_the_run_names_its_teacher_and_what_the_teacher_was_trained_on(distilled, trained):
    run = checkpoints.load_run(distilled / "parts")
    source = checkpoints.load_run(trained("represent"))
    (record,) = run.meta["teachers"]
    digest = origin.hash_of(source.variables)
    assert record["sha256"] == digest and record["step"] == source.step
    assert (record["weight"], record["temperature"]) == (0.5, 1.0)
    named = json.loads((distilled / "parts" / "provenance.json").read_text())["teacher"]
    assert named == {**record, "from": str(trained("represent"))}
    card = lineage.run_card(distilled / "parts")[0]
    assert (
        "Teachers of this run and of the runs before it" in card
        and digest in card
        and "weight 0.5, temperature 1." in card
    )


def test_a_run_goes_on_with_its_teacher_alone(distilled, make_config, tmp_path, small_config, trained):
    meta = checkpoints.load_run(distilled / "whole").meta
    config = make_config("represent", distilled)
    config.update(seed=1, accumulate=2, save_steps=1, workdir=str(distilled / "whole"))
    for name, told in (
        ("", "was started with the teacher .*, and config.teacher is ''"),
        (str(trained("classify")), r"is not the teacher that .* was started with \(SHA-256 of its arrays: "),
        (str(tmp_path / "gone"), "config.teacher: .*gone holds no run"),
    ):
        config.teacher = name
        with pytest.raises(InputError, match=told):
            plan.make_plan(config, meta)
    plain = small_config("represent")
    plain.workdir, plain.teacher = str(trained("represent")), str(trained("classify"))
    with pytest.raises(InputError, match="was started with no teacher, and config.teacher is"):
        plan.make_plan(plain, checkpoints.load_run(plain.workdir).meta)


def test_a_finished_run_is_not_started_again_with_another_teacher(distilled, make_config, trained, tmp_path):
    for name, source in (("whole", distilled / "whole"), ("plain", trained("represent"))):
        shutil.copytree(source, tmp_path / name)
    config = make_config("represent", tmp_path)
    config.update(seed=1, accumulate=2, save_steps=1, workdir=str(tmp_path / "whole"))
    for name in (str(trained("represent")), str(shutil.copytree(trained("represent"), tmp_path / "moved"))):
        config.teacher = name
        assert loop.train(config)["step"] == 3
    for name, told in (
        (str(trained("classify")), "config.teacher: .*classify is not the teacher that .*whole was started with"),
        ("", r"whole holds a run with another config \(teacher: '.*represent' there, '' now\)"),
    ):
        config.teacher = name
        with pytest.raises(InputError, match=told):
            loop.train(config)
    plain = make_config("represent", tmp_path)
    plain.workdir, plain.teacher = str(tmp_path / "plain"), str(trained("classify"))
    with pytest.raises(InputError, match=r"another config \(teacher: '' there, '.*classify' now\)"):
        loop.train(plain)


def test_a_finished_run_does_not_need_its_teacher(distilled, make_config, trained, tmp_path, monkeypatch):
    shutil.copytree(distilled / "whole", tmp_path / "whole")
    config = make_config("represent", tmp_path)
    config.update(
        seed=1, accumulate=2, save_steps=1, workdir=str(tmp_path / "whole"), teacher=str(trained("represent"))
    )
    monkeypatch.setattr(teacher.build, "load_ages", None)
    assert loop.train(config)["step"] == 3


@pytest.mark.parametrize("has_one", [True, False])
def test_every_host_compares_its_teacher_also_one_without(student, monkeypatch, has_one):
    """Otherwise the SHA-256 of the others would meet the next value that a host without a teacher compares."""
    config, given = student(), []
    config.teacher = config.teacher if has_one else ""
    monkeypatch.setattr(teacher.parallel, "hosts_agree", given.append)  # which returns None: they differ
    with pytest.raises(
        InputError, match=rf"config.teacher \(.*{'represent' if has_one else 'none'} here\) differs between"
    ):
        teacher.load(config)
    assert len(given) == 1 and (given == ["0" * 64]) != has_one


def test_settings_of_a_teacher_without_one_are_refused(small_config):
    for field in ("teacher_weight", "teacher_temperature"):
        config = small_config("represent")
        config.loss[field] = 0.75
        for check in (plan.make_plan, early.check_names):
            with pytest.raises(
                InputError, match=f"config.loss.{field} is 0.75, and config.teacher is '': omit --config"
            ):
                check(config)


def test_what_cannot_teach_is_refused(student, trained, tmp_path, monkeypatch):
    (tmp_path / "weights.safetensors").write_bytes(b"x" * 40)
    for name, told in (
        (str(trained("pretrain")), "config.teacher: .* is a run of stage pretrain, which does not estimate ages"),
        (str(tmp_path / "run"), "config.teacher: .*/run holds no run"),
        (str(tmp_path / "weights.safetensors"), "config.teacher: .* is damaged or not a safetensors file"),
    ):
        config = student()
        config.teacher = name
        for check in (plan.make_plan, lambda c: early.check_stage(c, c.workdir)):
            with pytest.raises(InputError, match=told):
                check(config)
    for field, value, told in (
        ("teacher_weight", 1.5, "config.loss.teacher_weight is 1.5: it must be from 0 to 1"),
        ("teacher_temperature", 0.0, "config.loss.teacher_temperature is 0.0: it must be a number above 0"),
    ):
        config = student()
        config.loss[field] = value
        for check in (plan.make_plan, early.check_names):
            with pytest.raises(InputError, match=told):
                check(config)
    config = student("classify")
    config.classify.method, config.classify.setting = "c_mixup", 1.0
    for check in (plan.make_plan, early.check_names):
        with pytest.raises(InputError, match="config.teacher: config.classify.method mixes the features"):
            check(config)
    with pytest.raises(InputError, match="config.teacher belongs to stages 2 and 3, not to pretrain"):
        early.check_names(student("pretrain"))
    found = checkpoints.load_run(trained("represent"))
    found.meta["num_outputs"] = 90
    monkeypatch.setattr(checkpoints, "load_run", lambda *_: found)
    with pytest.raises(InputError, match="config.teacher: .*represent has 90 ages, and a run has 101"):
        plan.make_plan(student())
    found.meta.update(num_outputs=101, crop={**found.meta["crop"], "align": "landmarks", "size": 99})
    with pytest.raises(InputError, match="was trained on other crops than"):
        plan.make_plan(student())


def test_a_teacher_that_has_seen_the_validation_images_is_a_leak(student, small_config):
    seen = small_config("represent")
    seen.data.train, seen.data.split, seen.workdir = "all", "", seen.workdir + "-all"
    loop.train(seen)
    config = student()
    config.teacher = seen.workdir
    with pytest.raises(InputError, match="64 images of validation are in all too: the teacher was trained on them"):
        plan.make_plan(config)
    config.data.allow_leak = True
    history = plan.make_plan(config).history
    assert [leak["kind"] for leak in history.leaks] == ["same_rows"]
    assert [one["split"] for one in history.trained_on] == ["all", "train"]


def test_a_model_file_teaches(student, model_file):
    config = student()
    config.teacher = str(model_file)
    made = plan.make_plan(config)
    assert made.teacher.record["from"] == str(model_file) and made.history.teachers == [made.teacher.record]
    meta = {"config": json.loads(config.to_json_best_effort()), "teachers": [made.teacher.record]}
    assert teacher.load(config, meta).record == made.teacher.record


def test_the_step_of_another_machine_holds_the_teacher(student):
    made = lowering.Lowering(student(), tuple(jax.local_devices()[:2]))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(teacher.load(student()).checkpoint.variables))
    assert made.bytes_by_part(4)["teacher"] == size
    plain = student()
    plain.teacher = ""
    one, other = (lowering.Lowering(config, made.devices).lower(4, "auto")[1] for config in (student(), plain))
    assert one > 1.1 * other


def test_the_teacher_on_another_machine_computes_as_that_machine_does(student, monkeypatch):
    """A teacher in bfloat16 is lowered in bfloat16 for a device that has it, whatever this machine has."""

    def load_ages(*words, original=teacher.build.load_ages):
        checkpoint, config, stage = original(*words)
        config.model.dtype = "bfloat16"
        return checkpoint, config, stage

    monkeypatch.setattr(teacher.build, "load_ages", load_ages)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: device.id == 1)
    config = student()
    config.model.dtype = "float32"  # of the student
    for device in jax.local_devices()[:2]:
        text = lowering.Lowering(config, (device,)).lower(4, "auto")[0].as_text()
        assert ("bf16" in text) == (device.id == 1)
