"""Verification on lists: the door, the same embeddings as an evaluation's, and refusals."""

import csv
import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest

from lae_jax import evaluate
from lae_jax.data import records
from lae_jax.evaluate import __main__ as door
from lae_jax.evaluate import measure, on_pairs, pair_list, pair_scores
from lae_jax.faces import crops
from lae_jax.runtime import checkpoints, files
from lae_jax.runtime.errors import InputError
from lae_jax.stages import verification


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A run of stage 1, whose folder is this file's own."""
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    shutil.copytree(trained("pretrain"), folder)
    return folder


@pytest.fixture(scope="module")
def lfw(drawn, tmp_path_factory):
    """A folder as LFW's, with the drawn people of the validation split and a pairs.txt; the row of each image."""
    root, dataset = tmp_path_factory.mktemp("lfw"), records.open_dataset(drawn)
    rows = dataset.rows("validation")
    names, places = {}, {}
    for row, person in zip(rows, dataset.column("identity")[rows], strict=True):
        numbers = names.setdefault(f"Person_{person}", [])
        numbers.append(row)
    encoded = dict(zip(rows.tolist(), dataset.encoded(rows), strict=True))
    for name, of_person in names.items():
        for number, row in enumerate(of_person, 1):
            path = root / name / f"{name}_{number:04d}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encoded[int(row)])
            places[f"{name}/{path.name}"] = int(row)
    same = [(name, 1, 2) for name, of_person in names.items() if len(of_person) > 1]
    people = [*names]
    two = [(people[n], 1, people[n - 1], len(names[people[n - 1]])) for n in range(len(people))]
    size = min(len(same), len(two)) // 2
    lines = [f"2\t{size}"]
    for fold in range(2):
        for kind in (same, two):
            lines += ["\t".join(map(str, pair)) for pair in kind[fold * size : (fold + 1) * size]]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    return root, places, 2 * size


def test_a_list_is_verified_as_the_data_set_is(run, lfw, capsys):
    root, places, count = lfw
    door.main(["--run", str(run), "--pairs", str(root / "pairs.txt"), "--batch-size", "24"])
    told = capsys.readouterr().out
    folder = run / "evaluation" / "pairs-pairs"
    report = json.loads((folder / "report.json").read_text())
    assert report["pairs"] == 2 * count and report["genuine_pairs"] == count and len(report["fold_accuracy"]) == 2
    assert report["bootstrap"]["units"] == "people" and report["true_accept_rates"]["0.01"] is None
    assert report["crop"] == crops.UNKNOWN and report["unknown_crops"]
    assert f"{100 * report['accuracy']:.2f} %" in told and "need 10,000 pairs of two people" in told
    assert "it is unknown whether these were cut in" in told
    text = (folder / "report.html").read_text()
    assert f"is right on {100 * report['accuracy']:.2f} % of the {2 * count} pairs of pairs.txt;" in text
    # The similarities are those of the embeddings that an evaluation of the data set computes.
    done = measure.predict(checkpoints.load_run(run))
    of_row = dict(zip(done.rows[verification.draw_pairs(done.targets).images].tolist(), done.outputs, strict=True))
    rows = list(csv.DictReader(files.read_text(folder / "pairs.csv").splitlines()))
    first, second = (np.stack([of_row[places[row[side]]] for row in rows]) for side in ("first", "second"))
    similarities = np.array([float(row["similarity"]) for row in rows])
    np.testing.assert_allclose(similarities, verification.cosine(first, second), atol=2e-5)
    # And the scores are those of the table.
    same, folds = (np.array([int(row[name]) for row in rows]) for name in ("same", "fold"))
    again = pair_scores.score(similarities, same > 0, folds)
    assert again["accuracy"] == report["accuracy"] and again["area_under_curve"] == report["area_under_curve"]
    right = np.array([int(row["accepted"]) for row in rows]) == same
    assert [right[folds == fold].mean() for fold in range(2)] == report["fold_accuracy"]


def test_a_table_and_a_bin_file_give_the_same_similarities(run, lfw, tmp_path):
    root, *_ = lfw
    found = pair_list.require_images(pair_list.read(root / "pairs.txt"), str(root))
    pairs = [[found.names[n] for n in pair] for pair in found.pairs]
    lines = [f"{first},{second},{int(same)}" for (first, second), same in zip(pairs, found.same, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(["first,second,same", *lines]))
    images = [(root / name).read_bytes() for pair in pairs for name in pair]
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((images, found.same.tolist())))
    table, folder = evaluate.verify(run, tmp_path / "table.csv", root, flip=True)
    packed, other = evaluate.verify(run, tmp_path / "lfw.bin", flip=True)
    assert (folder.name, other.name) == ("table-pairs-flip", "lfw-pairs-flip")
    assert packed["accuracy"] == table["accuracy"] and packed["fold_accuracy"] == table["fold_accuracy"]
    assert packed["bootstrap"]["units"] == "pairs" and packed["flip"]
    plain = evaluate.verify(run, tmp_path / "lfw.bin").report
    assert plain["fold_threshold"] != packed["fold_threshold"]
    # Another list of this name does not replace the first one's evaluation.
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "lfw.bin").write_bytes(pickle.dumps((images[:-4], found.same.tolist()[:-2])))
    assert evaluate.verify(run, tmp_path / "more" / "lfw.bin").folder.name == "lfw-pairs-2"
    assert evaluate.verify(run, tmp_path / "lfw.bin").folder.name == "lfw-pairs"


def test_photographs_are_cut_by_the_contract_of_the_run_and_crops_are_not(run, lfw, tmp_path):
    root, *_ = lfw
    found = pair_list.read(root / "pairs.txt")
    checkpoint = checkpoints.load_run(run)
    contract = crops.Recipe("landmarks", 112, 0.25, 90).contract()
    checkpoint.meta["crop"] = contract
    cut = on_pairs.cut_of(checkpoint, found, aligned=False, allow_other_crop=False)
    assert (cut.recipe.align, cut.recipe.size, cut.recipe.margin) == ("landmarks", 112, 0.25)
    assert cut.recipe.faces == cut.recipe.undetected == "centre" and cut.crop == contract and not cut.is_other
    assert on_pairs.cut_of(checkpoint, found, aligned=True, allow_other_crop=False).recipe.align == "none"
    image = (root / found.names[0]).with_suffix(".jpg").read_bytes()
    other = (root / found.names[1]).with_suffix(".jpg").read_bytes()
    third = (root / found.names[2]).with_suffix(".jpg").read_bytes()
    (tmp_path / "lfw.bin").write_bytes(
        pickle.dumps(([image, other, image, third, other, third, image, b""], [True, False] * 2))
    )
    packed = pair_list.read(tmp_path / "lfw.bin")
    with pytest.raises(InputError, match=r"trained on other crops than .*lfw.bin holds .*--allow-other-crop"):
        on_pairs.cut_of(checkpoint, packed, aligned=False, allow_other_crop=False)
    assert on_pairs.cut_of(checkpoint, packed, aligned=False, allow_other_crop=True).is_other
    with pytest.raises(InputError, match=r"lfw.bin: 'image 7' cannot be used"):
        evaluate.verify(run, tmp_path / "lfw.bin")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--pairs", "missing.txt"], "--pairs missing.txt: no such file"),
        (["--pairs", "PAIRS", "--threshold", "18"], "--threshold cannot be used with --pairs"),
        (["--pairs", "PAIRS", "--show-faces"], "omit --show-faces"),
        (["--pairs", "PAIRS", "--slice", "sex"], "omit --slice"),
        (["--pairs", "PAIRS", "--images", "nowhere"], "--images nowhere does not exist"),
        (["--pairs", "PAIRS", "--step", "99"], "has no checkpoint of step 99"),
        (["--images", "."], "--images needs --pairs: add --pairs FILE"),
        (["--pairs", "PAIRS", "--batch-size", "0"], "batch_size is 0"),
    ],
)
def test_refusals(run, lfw, flags, told):
    words = [str(lfw[0] / "pairs.txt") if word == "PAIRS" else word for word in flags]
    with pytest.raises(InputError, match="(?s)" + told.replace("(", r"\(")):
        door.main(["--run", str(run), *words])


def test_a_run_that_estimates_ages_is_refused(trained, lfw):
    for name in (str(trained("represent")), "faces-lite0"):
        with pytest.raises(InputError, match="name (one of stage pretrain|a run of stage pretrain) with --run"):
            evaluate.verify(name, pathlib.Path(lfw[0]) / "pairs.txt")
