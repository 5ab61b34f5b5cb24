"""Settings of a run that other tests leave at their defaults, each in a real run."""

import errno
import gc
import json
import pathlib
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ROOT
from halted import asked_after
from ml_collections import ConfigDict
from tensorboardX.record_writer import RecordWriter

from benchmarks import rig
from lae_jax import main, metrics, prepare, stages
from lae_jax.data import records
from lae_jax.runtime import checkpoints, parallel, start, watch
from lae_jax.runtime.errors import InputError, Preempted
from lae_jax.train import config_flag, events, handover, hosts, loop
from lae_jax.train.plan import make_plan


def arrays(workdir, name):
    with checkpoints.Checkpoints(workdir, read_only=True) as saved:
        return saved.arrays(saved.latest(), (name,))[name]


def drawn_rows(plan, count):
    """Rows of the training split that the first batches hold."""
    return plan.training.rows[np.concatenate([plan.order(step).numpy() for step in range(count)])]


def test_a_fold_trains_on_the_other_folds_and_is_validated_on_itself(small_config, tmp_path):
    source = {"train": "60", "validation": "30"}
    prepare.prepare(source, tmp_path / "folds", reader="synthetic", folds=3, size=32, workers=1)
    dataset = records.open_dataset(tmp_path / "folds")
    config = small_config("represent")
    config.data.path, config.data.fold = str(tmp_path / "folds"), 1
    config.batch_size, config.eval_batch_size = 16, 16
    summary = loop.train(config)
    meta = checkpoints.load_run(config.workdir).meta
    assert [one["split"] for one in meta["trained_on"]] == ["fold1-train"] and summary["scores"]["mae"] > 0
    plan = make_plan(config, meta)
    assert {*drawn_rows(plan, plan.durations.epoch)} <= {*dataset.rows("fold1-train")}
    assert plan.validation.rows.tolist() == dataset.rows("fold1-validation").tolist()
    assert not {*plan.validation.rows} & {*plan.training.rows}
    config.data.fold = 5
    with pytest.raises(InputError, match="fold5-train"):
        make_plan(config)


@pytest.mark.long
def test_the_power_of_the_class_balanced_order_goes_from_equal_ages_to_the_datas_own(small_config, trained):
    config = small_config("classify")
    config.init_from, config.epochs = str(trained("represent")), 1.0
    spread = {}
    for power in (0.0, 0.5, 1.0):
        config.data.power, config.workdir = power, f"{config.workdir}_{power}"
        assert loop.train(config)["last_step"] == 3
        plan = make_plan(config, checkpoints.load_run(config.workdir).meta)
        drawn = metrics.age_class(plan.dataset.column("age")[drawn_rows(plan, 200)])
        there = metrics.age_class(plan.training.targets)
        expected = np.bincount(there, minlength=101)[np.unique(there)] ** power
        share = np.bincount(drawn, minlength=101)[np.unique(there)] / len(drawn)
        np.testing.assert_allclose(share, expected / expected.sum(), atol=0.012)
        spread[power] = share.std()
    assert spread[0.0] < spread[0.5] < spread[1.0]


def test_weights_of_ages_set_the_order_and_stand_in_the_run(small_config, trained, tmp_path, monkeypatch):
    config, path = small_config("classify"), tmp_path / "weights.csv"
    config.init_from, config.data.age_weights = str(trained("represent")), str(path)
    path.write_text("age,weight\n" + "".join(f"{age},{int(age < 30)}\n" for age in range(101)))
    drawn = make_plan(config)
    ages = drawn.dataset.column("age")[drawn_rows(drawn, 20)]
    assert metrics.age_class(ages).max() < 30 and len(np.unique(metrics.age_class(ages))) > 5
    config.epochs, config.save_steps = 2.0, 1
    with asked_after(1) as signals, pytest.raises(Preempted):
        loop.train(config, signals)
    recorded = json.loads((pathlib.Path(config.workdir) / "provenance.json").read_text())["age_weights"]
    assert recorded["by_age"]["29"] == 1 and recorded["by_age"]["30"] == 0
    before = path.read_text()
    path.write_text(before.replace("\n5,1\n", "\n5,2\n"))
    for other in (str(path), ""):
        config.data.age_weights = other
        with pytest.raises(InputError, match=f"age_weights is '{other}': other weights than when .* was started"):
            loop.train(config)
    path.rename(tmp_path / "changed.csv")
    (tmp_path / "moved.csv").write_text(before)
    config.data.age_weights = str(tmp_path / "moved.csv")
    assert loop.train(config)["last_step"] == 6
    config.data.age_weights = str(path)
    path.write_text("age,weight\n20,1\n")
    config.workdir += "_other"
    with pytest.raises(InputError, match="weights.csv has no weight for the ages"):
        loop.train(config)
    assert not pathlib.Path(config.workdir).exists() or not list(pathlib.Path(config.workdir).glob("*.json"))


@pytest.mark.parametrize(("stage", "method"), [("represent", "lae"), ("classify", "balanced_softmax")])
@pytest.mark.parametrize(("name", "value"), [("power", 0.5), ("age_weights", "weights.csv")])
def test_the_shuffled_order_refuses_the_fields_of_the_class_balanced_one(
    small_config, trained, stage, method, name, value
):
    config = small_config(stage)
    config.classify.method, config.data[name] = method, value
    config.init_from = str(trained("represent")) if stage == "classify" else "scratch"
    with pytest.raises(InputError, match=f"uses the shuffled order .*: omit --config.data.{name}"):
        make_plan(config)


def test_a_label_sigma_that_is_not_that_of_stage_2_is_told(small_config, trained, caplog):
    config = small_config("classify")
    config.init_from, config.loss.label_sigma = str(trained("represent")), 2.0
    assert make_plan(config).constants["label_sigma"] == 2.0
    assert "was trained with loss.label_sigma 1, and this run uses 2" in caplog.text
    config.loss.label_sigma = 0.0
    with pytest.raises(InputError, match="config.loss.label_sigma is 0.0: it must be at least 0.1"):
        make_plan(config)


def test_statistics_that_are_not_synchronised_train_another_model(small_config):
    states = {}
    for sync in (True, False):
        config = small_config("represent")
        config.workdir, config.model.sync_batch_norm = f"{config.workdir}_{sync}", sync
        summary = loop.train(config)
        assert np.isfinite(summary["scores"]["mae"]) and summary["last_step"] == 3
        states[sync] = jax.tree.leaves(arrays(config.workdir, "batch_stats"))
    assert all(np.isfinite(leaf).all() for leaf in states[False])
    assert max(np.abs(a - b).max() for a, b in zip(states[True], states[False], strict=True)) > 1e-3


def test_how_thoroughly_the_data_is_verified_is_chosen(small_config, drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "damaged")
    (tmp_path / "damaged" / "verified.json").unlink(missing_ok=True)
    shard = next((tmp_path / "damaged").glob("*array_record*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    config = small_config("represent")
    config.data.path = str(tmp_path / "damaged")
    for verify in ("full", "auto"):
        config.data.verify = verify
        with pytest.raises(InputError, match=shard.name):
            make_plan(config)
    config.data.verify = "quick"
    assert make_plan(config).dataset.path == tmp_path / "damaged"
    config.data.verify = "never"
    with pytest.raises(InputError, match="config.data.verify is 'never'"):
        make_plan(config)


def test_methods_that_mix_a_whole_batch_refuse_its_parts(small_config, trained):
    config = small_config("classify")
    config.init_from, config.classify.method, config.classify.setting = str(trained("represent")), "c_mixup", 3.0
    assert make_plan(config).stage.mix is not None
    config.accumulate = 2
    with pytest.raises(InputError, match="'c_mixup' mixes the examples of a whole batch, and config.accumulate is 2"):
        make_plan(config)


def test_hosts_that_disagree_are_told_so_before_work_begins(small_config, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        for other, agree in ((1, False), (0, True)):
            patch.setattr(parallel, "gather_hosts", lambda array, other=other: np.concatenate([array, array ^ other]))
            assert parallel.hosts_agree("0123456789abcdef") == agree
    # All agree that there is no teacher.
    monkeypatch.setattr(parallel, "hosts_agree", lambda digest: digest == "0" * 64)
    config = small_config("represent")
    with pytest.raises(InputError, match="differs between the hosts .*: copy one data set to all of them"):
        loop.train(config)
    assert not (pathlib.Path(config.workdir) / "config.json").exists()
    (tmp_path / "weights.safetensors").write_bytes(b"")
    monkeypatch.setattr(handover.pretrained, "read", lambda source, name: SimpleNamespace(sha256="ab" * 32))
    config.init_from = str(tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="weights.safetensors differs between the hosts: copy one file to all"):
        handover.load(config, stages.REPRESENT)


def test_hosts_with_other_flags_or_numbers_of_devices_are_named(tmp_path):
    """Two real processes."""
    bench = rig.Bench(tmp_path, steps=3)
    bench.prepare()
    for name, told in (("seed", "host 1 has another config than host 0"), ("devices", "the hosts have 2, 4 devices")):
        workdir, port = tmp_path / name, rig.free_port()
        words = [f"--config.{field}={value}" for field, value in bench.fields(workdir).items()]
        words += [f"--coordinator=localhost:{port}", "--processes=2"]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "lae_jax.main", "--config", "represent", *words, f"--process={i}"]
                + [f"--config.seed={i}" if name == "seed" else "--config.seed=0"]
                + [f"--devices={2 + 2 * i if name == 'devices' else 2}"],
                cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for i in range(2)
        ]  # fmt: skip
        for one in started:
            _, text = one.communicate(timeout=120)
            assert one.returncode == 2 and told in text, text[-2000:]
        assert not (workdir / "config.json").exists()


def test_hosts_whose_earlier_run_has_another_mae_are_named(small_config, monkeypatch):
    """Folders that are not shared may hold other runs under one name."""
    given, config = [], small_config("classify")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(parallel, "hosts_that_differ", lambda digest: given.append(digest) or [])
    plans = [
        SimpleNamespace(config=config, stage=stages.CLASSIFY, constants={"mae": mae}, age_weights=None)
        for mae in (5.0, 5.0, 5.0000001)
    ]
    digests = []
    for plan in plans:
        hosts.require_alike(plan, {})
        digests.append(tuple(given))
        given.clear()
    assert digests[0] == digests[1] and sum(a != b for a, b in zip(digests[1], digests[2], strict=True)) == 1


def test_a_folder_that_is_not_shared_is_told(small_config, monkeypatch):
    config = small_config("represent")
    monkeypatch.setattr(parallel, "hosts_that_differ", lambda digest: [2, 3] if digest == "0" * 8 else [])
    with pytest.raises(InputError, match="not the same folder on all hosts: host 2, 3 does not see what host 0"):
        loop.train(config)


def test_deterministic_reaches_xla_before_it_starts_and_stands_in_the_provenance(small_config, monkeypatch):
    code = """
import os
from lae_jax.runtime import parallel, start
start.devices(2, deterministic=True)
import jax
print(jax.device_count(), "--xla_gpu_deterministic_ops=true" in os.environ["XLA_FLAGS"])
jax.default_backend = lambda: "gpu"
print(parallel.is_deterministic())
os.environ["XLA_FLAGS"] = ""
print(parallel.is_deterministic())
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, capture_output=True, text=True)
    assert ended.stdout.split() == ["2", "True", "True", "False"], ended.stderr
    asked = []
    monkeypatch.setattr(start, "devices", lambda *given: asked.append(given))
    try:
        main.flags.FLAGS(config_flag.with_underscores(["main", "--deterministic", "--devices", "8"]))
        main.set_up_devices()
    finally:
        main.flags.FLAGS.unparse_flags()
        for name in ("deterministic", "devices"):
            main.flags.FLAGS[name].unparse()
    assert asked == [(8, True)]
    config = small_config("represent")
    loop.train(config)
    assert json.loads((pathlib.Path(config.workdir) / "provenance.json").read_text())["deterministic"] is True


def test_a_run_that_goes_on_on_another_machine_is_told_so_and_ends(small_config, monkeypatch, caplog):
    config = small_config("represent")
    config.epochs, config.save_steps = 2.0, 1
    with asked_after(2) as signals, pytest.raises(Preempted):
        loop.train(config, signals)
    path = pathlib.Path(config.workdir) / "provenance.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, "cpu": "another CPU (01234567)", "cores": 96}))
    assert loop.train(config)["last_step"] == 6
    (told,) = [record.getMessage() for record in caplog.records if "another machine" in record.getMessage()]
    assert "cpu, cores" in told and config.workdir in told
    # What it was begun on stays written down.
    assert json.loads(path.read_text())["cores"] == 96


def test_a_run_from_scratch_says_so_in_its_log_and_its_provenance(small_config, caplog):
    config = small_config("represent")
    with caplog.at_level("INFO"):
        loop.train(config)
    assert "the backbone starts from scratch (config.init_from)" in caplog.text
    assert json.loads((pathlib.Path(config.workdir) / "provenance.json").read_text())["init"] == {"from": "scratch"}


def test_a_run_that_cannot_start_does_not_say_what_it_starts_from(small_config, caplog):
    config = small_config("represent")
    config.data.split = "nothing"
    with caplog.at_level("INFO", "lae_jax"), pytest.raises(InputError, match="unknown split 'nothing'"):
        loop.train(config)
    assert "scratch" not in caplog.text


def test_a_recipe_that_is_stopped_between_its_stages_goes_on_with_the_second(make_config, tmp_path, monkeypatch):
    recipe = ConfigDict({"workdir": str(tmp_path / "recipe"), "order": ("represent", "classify"), "stages": {}})
    for name in recipe.order:
        recipe.stages[name] = make_config(name, tmp_path)
        recipe.stages[name].init_from = "scratch" if name == "represent" else ""
    first, second = (tmp_path / "recipe" / name for name in recipe.order)
    with asked_after(3) as signals, pytest.raises(Preempted, match="classify was not started"):
        main.run(recipe, signals)  # the last step of the first stage
    assert (first / "summary.json").exists() and not (second / "summary.json").exists()
    of_first = {path: path.stat().st_mtime_ns for path in (first / "checkpoints").rglob("*") if path.is_file()}
    main.run(recipe, watch.Signals())
    assert json.loads((second / "summary.json").read_text())["last_step"] == 3
    assert of_first == {path: path.stat().st_mtime_ns for path in (first / "checkpoints").rglob("*") if path.is_file()}
    assert json.loads((second / "config.json").read_text())["init_from"] == str(first)


def test_a_run_goes_on_where_tensorboards_events_cannot_be_written(small_config, monkeypatch, caplog):
    real, written = RecordWriter.write, []

    def write(writer, record):
        if len(written) == 4:  # some are written before the disk is full
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(real(writer, record))

    monkeypatch.setattr(RecordWriter, "write", write)
    monkeypatch.setattr(events, "_SECONDS", 0.5)
    config = small_config("represent")
    config.epochs = 4.0
    summary = loop.train(config)
    assert summary["last_step"] == 12 and summary["scores"]["mae"] > 0
    assert "The run continues without them; metrics.jsonl has all numbers" in caplog.text
    told = (pathlib.Path(config.workdir) / "metrics.jsonl").read_text().splitlines()
    assert sum('"kind": "train"' in line for line in told) == 12
    gc.collect()  # a file that is left open is told here, not in the next test
