"""Audits: each kind of leak that is planted is found, and a clean data set stays clean."""

import json
import pathlib

import numpy as np
import planted
import pytest
from PIL import Image
from planted import TRAIN, VALIDATION, age_of, draw, prepared

from lae_jax import audit, prepare
from lae_jax.audit import __main__ as door
from lae_jax.audit import checks, implausible, saved
from lae_jax.data import people, records
from lae_jax.data.sources import synthetic
from lae_jax.faces import perceptual_hash
from lae_jax.prepare import __main__ as preparing
from lae_jax.runtime.errors import InputError, LeakFound
from lae_jax.runtime.files import sha256_of


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> pathlib.Path:
    return draw(tmp_path_factory.mktemp("faces"))


def rewrite(out, protocol=None, **splits):
    """Changes a prepared data set's splits or protocol, as a careless script would."""
    manifest = json.loads((out / "dataset.json").read_text())
    for name, rows in splits.items():
        path = out / "splits" / f"{name}.npz"
        np.savez(path, rows=np.asarray(rows, np.int64))
        manifest["splits"][name] = len(rows)
        manifest["files"][f"splits/{name}.npz"] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest["protocol"] = protocol or manifest["protocol"]
    (out / "dataset.json").write_text(json.dumps(manifest))


def findings(out, image_size=40):
    """{kind: finding} as they stand in audit.json."""
    audit.audit([out], image_size=image_size)
    return {finding["kind"]: finding for finding in json.loads((out / saved.FILE).read_text())["findings"]}


def test_a_clean_data_set_stays_clean(faces, tmp_path, capsys):
    out = prepared(faces, tmp_path / "clean", named=True)
    assert findings(out) == {}
    door.main([str(out), "--image-size", "40"])
    told = capsys.readouterr().out
    assert "clean" in told and f"configs/represent.py --config.data.path={out} --config.init_from=hf:" in told
    pixels = np.asarray(Image.open(out / saved.PICTURE).convert("L"))
    assert pixels.shape[0] > 300 and pixels.std() > 10


def test_the_same_file_in_both_splits(faces, tmp_path):
    out = prepared(faces, tmp_path / "a", ("same.jpg", age_of(0), "train", 0))
    rows = records.open_dataset(out).rows("validation")
    rewrite(out, validation=[*rows, TRAIN + VALIDATION])
    rewrite(out, train=np.arange(TRAIN))
    found = findings(out)
    leak = found["same_file"]
    assert (leak["severity"], leak["count"], leak["splits"]) == ("leak", 1, ["train", "validation"])
    assert leak["examples"] == [["0.jpg", "same.jpg"]]
    # What is the same file is not told twice.
    assert "near_picture" not in found and "same_file_ages" not in found


def test_a_picture_that_was_stored_again_in_the_other_split(faces, tmp_path, capsys):
    out = prepared(faces, tmp_path / "a", ("again.jpg", age_of(0), "validation", 0))
    leak = findings(out)["near_picture"]
    assert (leak["severity"], leak["count"], leak["examples"]) == ("leak", 1, [["0.jpg", "again.jpg"]])
    with pytest.raises(LeakFound, match="--allow-leak") as ended:
        door.main([str(out)])
    assert ended.value.status == 7
    told = capsys.readouterr().out
    assert "leak: 1 of 25 images of validation are also in train: nearly the same picture (0.jpg, again.jpg)" in told


@pytest.mark.parametrize("seed", range(3))
def test_a_split_that_is_made_here_keeps_nearly_the_same_pictures_together(faces, tmp_path, seed):
    rows = [f"{i}.jpg,{age_of(i)}" for i in range(12)] + ["again.jpg,5", "same.jpg,5"]
    (tmp_path / "faces.csv").write_text("\n".join(["path,age", *rows]) + "\n")
    how = planted.crops_of(faces)
    prepare.prepare(tmp_path / "faces.csv", tmp_path / "out", ratio="1:1", seed=seed, **how)
    dataset = records.open_dataset(tmp_path / "out")
    sides = [{*dataset.column("name")[dataset.rows(name)]} for name in ("train", "validation")]
    assert any({"0.jpg", "again.jpg", "same.jpg"} <= side for side in sides)


@pytest.fixture
def program(monkeypatch):
    """`prepare` as a program, whose settings for TensorFlow end with the test."""
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.setenv(name, "1")
    return preparing.main


def words(table, faces, out) -> list[str]:
    given = {"reader": "csv", "source": table, "images": faces, "out": out, "align": "none", "workers": 1}
    return [f"--{name}={value}" for name, value in given.items()]


def test_people_without_ages_are_audited(faces, tmp_path, program):
    (tmp_path / "people.csv").write_text("path,identity\n" + "".join(f"{i}.jpg,anna{i // 2}\n" for i in range(8)))
    program(words(tmp_path / "people.csv", faces, tmp_path / "out"))
    assert "identity_unknown" not in findings(tmp_path / "out")


def test_the_same_file_and_the_same_picture_with_two_ages(faces, tmp_path):
    out = prepared(faces, tmp_path / "a", ("same.jpg", 60, "train", 0), ("again.jpg", 70, "train", 0))
    found = findings(out)
    assert found["same_file_ages"]["severity"] == found["near_picture_ages"]["severity"] == "warning"
    assert found["same_file_ages"]["examples"] == [["0.jpg (5)", "same.jpg (60)"]]
    assert found["near_picture_ages"]["examples"] == [["0.jpg (5)", "again.jpg (70)"]]
    out = prepared(faces, tmp_path / "b", ("same.jpg", 7, "train", 0), ("again.jpg", 6.5, "train", 0))
    assert not {"same_file_ages", "near_picture_ages"} & {*findings(out)}


def test_more_near_pictures_than_are_looked_at_are_counted(monkeypatch):
    hashes = np.ones((60, perceptual_hash.BYTES), np.uint8)
    hashes[:, 0] = np.arange(60)
    table = checks.Table(
        path="alike", hash="0", protocol="column", names=np.array([f"{i}.jpg" for i in range(60)]),
        ranges=np.repeat(np.where(np.arange(60) % 2, 20.0, 60.0), 2).reshape(-1, 2),
        identities=np.full(60, None), sha256=np.arange(60).astype(str),
        phash=hashes, sides=np.full(60, 99), image_size=40, faces=None, all_faces=False,
        splits={"train": np.arange(40), "validation": np.arange(40, 60)},
    )  # fmt: skip

    def told():
        return {finding["kind"]: finding for finding in checks.audit([table])[0]}

    found = told()
    assert "many_near_pictures" not in found and found["near_picture"]["message"].startswith("20 of 20 images")
    assert found["near_picture_ages"]["message"].endswith("apart: 900")
    monkeypatch.setattr(perceptual_hash, "MAX_PAIRS", 500)
    found = told()
    assert found["many_near_pictures"]["count"] == 60 * 59 // 2
    assert "at least 1770 pairs of pictures are nearly the same, and only 500" in found["many_near_pictures"]["message"]
    assert found["near_picture"]["message"].startswith("at least ")
    assert "years apart: at least " in found["near_picture_ages"]["message"]


@pytest.mark.parametrize(("protocol", "severity"), [("identity", "leak"), ("image", "note"), ("column", "warning")])
def test_a_person_on_both_sides_is_judged_by_the_protocol(faces, tmp_path, protocol, severity):
    out = prepared(faces, tmp_path / "a", named=True)
    rows = np.arange(TRAIN + VALIDATION)
    rewrite(out, protocol, train=rows[:TRAIN], validation=rows[TRAIN:])
    assert "same_identity" not in findings(out)
    more = ("again.jpg", age_of(0), "train", 50), ("same.jpg", age_of(0), "train", 50)
    out = prepared(faces, tmp_path / "b", *more, named=True)
    rewrite(out, protocol)
    found = findings(out)["same_identity"]
    assert (found["severity"], found["count"]) == (severity, 1)
    assert found["examples"] == [["again.jpg", "50.jpg"]]


def table(count, path="a", ages=None, splits=None, identities=None, **fields):
    rng = np.random.default_rng(fields.pop("seed", 0))
    ages = rng.integers(1, 82, count).astype(float) if ages is None else np.asarray(ages, float)
    given = {
        "path": path,
        "hash": (path * 64)[:64],
        "protocol": "identity",
        "names": np.array([f"{path}{i}" for i in range(count)], object),
        "ranges": ages if ages.ndim == 2 else np.stack([ages, ages], axis=1),
        "identities": np.array([f"p{i}" for i in range(count)] if identities is None else identities, object),
        "sha256": np.array([f"{path}{i}" for i in range(count)], object),
        "phash": rng.integers(0, 256, (count, 32), np.uint8),
        "sides": np.full(count, 256),
        "image_size": 224,
        "faces": None,
        "all_faces": False,
        "splits": splits or {"all": np.arange(count)},
    }
    return checks.Table(**{**given, **fields})


def kinds(*tables):
    return [{(f["kind"], *f["splits"]) for f in found} for found in checks.audit(tables)]


def test_folds_are_compared_with_themselves_and_not_with_each_other():
    assert checks.disjoint("fold0-train", "fold0-validation") and checks.disjoint("fold0-train", "test")
    assert checks.disjoint("train", "test") and checks.disjoint("validation", "test")
    assert not checks.disjoint("fold0-train", "fold1-validation")
    assert not checks.disjoint("fold0-train", "fold1-train") and not checks.disjoint("train", "train_noisy")
    half = np.arange(200), np.arange(200, 400)
    folds = {f"fold{k}-{name}": half[k ^ (name == "train")] for k in (0, 1) for name in ("train", "validation")}
    files = np.array([f"{i}" for i in range(400)], object)
    assert kinds(table(400, splits=folds, sha256=files)) == [set()]
    files[399] = "0"
    expected = {("same_file", f"fold{k}-train", f"fold{k}-validation") for k in (0, 1)}
    assert kinds(table(400, splits=folds, sha256=files, ages=np.full(400, 30.0))) == [
        expected | {("group_without_images", name) for name in folds}
    ]


def test_data_sets_are_compared_with_each_other_by_role():
    people_a = ["17", "Ada Lovelace", *(f"p{i}" for i in range(398))]
    people_b = ["17", "ada_lovelace", *(f"p{i}" for i in range(398))]
    a = table(400, "a", splits={"train": np.arange(400)}, identities=people_a)
    b = table(400, "b", splits={"test": np.arange(400)}, identities=people_b, seed=1)
    b.sha256[7] = a.sha256[9]
    b.phash[20] = a.phash[30]
    a.ranges[[9, 30]], b.ranges[[7, 20]] = 10, 50
    found_a, found_b = checks.audit([a, b])
    assert {f["kind"]: (f["severity"], f["count"]) for f in found_b if f["severity"] != "note"} == {
        "same_file": ("leak", 1), "near_picture": ("leak", 1), "same_identity": ("warning", 1),
        "same_file_ages": ("warning", 1), "near_picture_ages": ("warning", 1),
    }  # fmt: skip
    assert all(f["other"] == {"path": "a", "hash": "a" * 64} for f in found_b if f["severity"] == "leak")
    assert saved.leaks(found_b, "train", "test", "a" * 64) and not saved.leaks(found_b, "train", "test")
    assert {f["kind"] for f in found_a if f["severity"] == "leak"} == {"same_file", "near_picture"}


def test_labels_that_contradict_each_other_are_told_for_ranges_too():
    """0, 1: adjoining ranges; 2, 3: an age in a range; 4, 5: an age beside a range; 6, 7: ages a year apart."""
    ranges = np.array([[20, 29], [30, 39], [20, 29], [25, 25], [40, 40], [41, 49], [7, 7], [8, 8], [70, 100], [1, 1]])
    files = np.array(["a", "a", "b", "b", "c", "c", "d", "d", "e", "f"], object)
    hashes = np.random.default_rng(0).integers(0, 256, (6, 32), np.uint8)[[0, 0, 1, 1, 2, 2, 3, 3, 4, 5]]
    (found,) = checks.audit([table(10, ages=ranges.astype(float), sha256=files, phash=hashes)])
    told = {finding["kind"]: finding for finding in found}
    assert told["same_file_ages"]["examples"] == [["a0 (20-29)", "a1 (30-39)"], ["a4 (40)", "a5 (41-49)"]]
    assert "more than 2 years apart, or ranges that do not overlap: 2" in told["same_file_ages"]["message"]
    assert told["group_without_images"]["message"].endswith("51-60, 61-70: sigma is undefined there")
    assert not {"heaped_ages", "class_numbers"} & {*told}


def test_an_empty_group_small_images_and_missing_knowledge_are_said():
    ages = np.arange(1000) % 70 + 1.0
    splits = {"train": np.arange(900), "test": np.arange(900, 1000)}
    sides = np.full(1000, 224)
    sides[:30] = 223
    identities = np.array([None] * 1000, object)
    (found,) = checks.audit([table(1000, ages=ages, splits=splits, sides=sides, identities=identities, phash=None)])
    told = {f["kind"]: f for f in found}
    assert told["group_without_images"]["message"].startswith("test has no image of age 71-81")
    assert (told["small_images"]["count"], len(told["small_images"]["examples"])) == (30, 30)
    assert told["identity_unknown"]["severity"] == told["no_perceptual_hash"]["severity"] == "note"
    assert [f["severity"] for f in found] == ["warning"] * 2 + ["note"] * 3


def test_ages_are_heaped_where_multiples_of_5_stand_out_of_their_neighbourhood():
    counts = np.array(synthetic.MIVIA_AGE_COUNTS)
    smooth = np.repeat(np.arange(1, 82), np.maximum(counts // 50, 1)).astype(float)
    assert implausible.heaping(smooth)[0] == pytest.approx(1, abs=0.02)
    rounded = smooth.copy()
    rounded[::4] = 5 * np.round(rounded[::4] / 5)
    assert implausible.heaping(rounded)[0] > 1.5
    assert {kind for kind, *_ in kinds(table(len(smooth), ages=smooth))[0]} == set()
    assert ("heaped_ages",) in kinds(table(len(rounded), ages=rounded))[0]
    # A few ages, and ages of a narrow range, are no histogram.
    assert ("heaped_ages",) not in kinds(table(4, ages=np.array([20.0, 30, 40, 50])))[0]
    assert implausible.heaping(np.repeat([20.0, 21], 500)) is None and implausible.heaping(np.zeros(0)) is None


def mivia_ages():
    counts = np.array(synthetic.MIVIA_AGE_COUNTS)
    return np.repeat(np.arange(1, 82), np.maximum(counts // 50, 1)).astype(float)


@pytest.mark.parametrize(("ages", "found"), [
    (np.repeat(np.arange(49), 20), True),  # CACD's ages minus 14
    (np.repeat(np.arange(26), 5), True), (mivia_ages() - 1, True), (mivia_ages(), False),
    (np.repeat(np.arange(101), 20), False),  # IMDB-WIKI's
    (np.repeat([*range(60), 69], 20), False), (np.repeat(np.arange(49), 4), False), (np.arange(49) + 0.5, False),
    (np.repeat([0, 1, 2], 500), False), (np.zeros(0), False),
])  # fmt: skip
def test_ages_that_begin_at_0_without_a_gap_may_be_classes(ages, found):
    ages = np.asarray(ages, float)
    names = np.array([f"{i:06d}.jpg" for i in range(len(ages))], object)
    kinds = [kind for kind, *_ in implausible.findings(names, ages)]
    assert [kind for kind in kinds if kind != "heaped_ages"] == ["class_numbers"] * found


@pytest.mark.parametrize(("name", "shift", "kinds"), [
    ("images/{age}_0_1_2017{i:04d}.jpg", 0, []), ("images/{age}_0_1_2017{i:04d}.jpg", 14, ["age_unlike_name"]),
    ("{age}_Aaron_{i}.jpg", -3, ["age_unlike_name"]), ("{i}_0.jpg", 14, []), ("{age}.jpg", 14, []),
    ("p{age}_{i}.jpg", 14, []), ("{third}_{i}.jpg", 14, []),
])  # fmt: skip
def test_names_that_begin_with_another_number_than_the_age(name, shift, kinds, monkeypatch):
    ages = np.array([15.0 + i % 47 for i in range(500)])
    given = [name.format(age=int(age) + shift, i=i, third=i % 3 + 20) for i, age in enumerate(ages)]
    for most in (20_000, 300):
        monkeypatch.setattr(implausible, "_LOOKED_AT", most)
        found = list(implausible.findings(np.array(given, object), ages))
        assert [kind for kind, *_ in found] == kinds
        for _, severity, count, message in found:
            sign = "+ 14" if shift > 0 else "- 3"
            assert severity == "warning" and count == 500 and f"the age {sign} ({given[0]}: 15)" in message


def test_class_numbers_in_a_set_whose_names_have_the_age_are_told_by_the_names_alone():
    ages = np.repeat(np.arange(40.0), 20)
    names = np.array([f"{age + 21:.0f}_1_0_{i}.jpg" for i, age in enumerate(ages)], object)
    assert [kind for kind, *_ in implausible.findings(names, ages)] == ["age_unlike_name"]
    right = np.array([f"{age:.0f}_1_0_{i}.jpg" for i, age in enumerate(ages)], object)
    assert [*implausible.findings(right, ages)] == []


def test_several_faces_of_one_photograph_with_their_landmarks_are_no_contradiction():
    one = table(3, ages=np.array([4.0, 30, 34]), sha256=np.array(["x"] * 3, object), identities=[None] * 3)
    found = {f["kind"]: f for f in checks.audit([one])[0]}
    assert "same_file_ages" not in found
    one.phash[1:] = one.phash[0]
    found = {f["kind"]: f for f in checks.audit([one])[0]}
    assert found["same_file_ages"]["count"] == 1 and "give the landmarks of each" in found["same_file_ages"]["message"]


def test_a_damaged_shard_is_a_finding_and_ends_with_bad_input(faces, tmp_path, capsys):
    out = prepared(faces, tmp_path / "a")
    (shard,) = out.glob("*array_record*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match="cannot be used"):
        door.main([str(out)])
    (found,) = json.loads((out / saved.FILE).read_text())["findings"]
    assert found["kind"] == "damaged" and shard.name in found["message"] and shard.name in capsys.readouterr().out
    with pytest.raises(InputError, match="not a prepared data set"):
        door.main([str(tmp_path)])
    with pytest.raises(InputError, match="named twice"):
        audit.audit([out, out])


def test_prepare_ends_with_an_audit_and_does_not_fail_for_it(faces, tmp_path, capsys, program):
    lines = "".join(f"{name},{age},{split}\n" for name, age, split in [
        ("0.jpg", 5, "train"), ("again.jpg", 5, "train"), ("2.jpg", 7, "validation"), ("same.jpg", 5, "validation"),
    ])  # fmt: skip
    (tmp_path / "faces.csv").write_text("path,age,split\n" + lines)
    program(words(tmp_path / "faces.csv", faces, tmp_path / "out"))
    told = capsys.readouterr().out
    assert "leak: 1 of 2 images of validation" in told
    # 0.jpg, whose other copy is validated on.
    assert "0 rejected, 1 omitted from the splits because another split holds the same file (see " in told
    assert saved.read(records.open_dataset(tmp_path / "out"))[1] == "read"


def test_an_audit_that_is_missing_stale_or_damaged_is_said_and_not_believed(faces, tmp_path, caplog):
    out = prepared(faces, tmp_path / "a", ("again.jpg", age_of(0), "validation", 0))
    dataset = records.open_dataset(out)
    assert saved.read(dataset) == ([], "missing")
    saved.run([out])
    assert len(saved.read(dataset)[0]) > 1
    report = json.loads((out / saved.FILE).read_text())
    for text, state in [
        (json.dumps({**report, "data_hash": "0" * 64}), "stale"), ("{", "damaged"), ("[]", "damaged"),
        (json.dumps({name: value for name, value in report.items() if name != "data_hash"}), "stale"),
        (json.dumps({**report, "findings": [{"kind": "x"}]}), "damaged"),
    ]:  # fmt: skip
        (out / saved.FILE).write_text(text)
        assert saved.read(dataset) == ([], state)
    assert "python -m lae_jax.audit" in caplog.text


def test_people_are_compared_only_where_their_names_mean_the_same():
    known = people.hashed(np.array(["Ada Lovelace", "n000017", "17", None], object), "a" * 64)
    assert "lovelace" not in json.dumps(known).casefold()
    names = np.array(["ada_lovelace", "Alan Turing", "n000018", "17", "m.0a1b", None], object)
    assert people.compare(known, names, "b" * 64) == {"people": 5, "compared": 3, "shared": ["ada_lovelace"]}
    assert people.compare(known, names, "a" * 64)["shared"] == ["ada_lovelace", "17"]
    assert people.compare(known, np.array(["17", "s3"], object), "b" * 64)["compared"] == 0
    assert people.compare(None, names, "b" * 64)["compared"] == 0
    both = people.hashed(np.array(["Alan Turing"], object), "b" * 64, known)
    assert people.compare(both, names, "b" * 64)["shared"] == ["ada_lovelace", "Alan Turing"]


def test_an_audit_of_another_format_counts_as_none(faces, tmp_path, caplog):
    out = prepared(faces, tmp_path / "a", ("again.jpg", age_of(0), "validation", 0))
    (report,) = audit.audit([out])
    dataset = records.open_dataset(out)
    assert saved.read(dataset) == (report["findings"], "read") and report["findings"]
    (out / saved.FILE).write_text(json.dumps(report | {"format": 99}))
    assert saved.read(dataset) == ([], "damaged") and "leaks between its splits are unknown" in caplog.text
