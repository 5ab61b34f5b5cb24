"""What prepare refuses, rejects, keeps and tells."""

import json
import re
import types

import numpy as np
import pytest
from PIL import Image
from sources import make_source, rejected, run

from lae_jax.audit import saved
from lae_jax.data import joining, records
from lae_jax.prepare import __main__ as door
from lae_jax.prepare import assembly, sheets
from lae_jax.runtime.errors import InputError


def test_a_command_that_found_nothing_leaves_only_its_reasons(source, tmp_path):
    told = "none of 30 images can be used: 30 x file not found, for example 0.jpg.*--images"
    with pytest.raises(InputError, match=told):
        run(tmp_path / "out", "--source", source, "--images", str(tmp_path))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejected.csv"]
    assert rejected(tmp_path / "out") == {f"{i}.jpg": "file not found" for i in range(30)}
    (tmp_path / "no.csv").write_text("path,age\na.jpg,old\nb.jpg,130\nc.jpg,140\n")
    with pytest.raises(InputError, match="no usable row. 3 rejected: 2 x age … is outside 0 to 100.*column of ages"):
        run(tmp_path / "no", "--source", tmp_path / "no.csv")
    assert rejected(tmp_path / "no")["c.jpg"] == "age '140' is outside 0 to 100"
    with pytest.raises(InputError, match="holds only rejected.csv"):
        records.open_dataset(tmp_path / "no")
    with pytest.raises(InputError, match="is a folder: name its CSV, or use --reader folders"):
        run(tmp_path / "out", "--source", source.parent)
    run(tmp_path / "out", "--source", source)
    fewer = make_source(tmp_path / "fewer", [(f"{i}.jpg", 20 + i, f"p{i // 3}") for i in range(24)])
    with pytest.raises(InputError, match=r"another recipe \(other rows: 30 there, 24 now"):
        run(tmp_path / "out", "--source", fewer)


def test_what_a_file_manager_left_does_not_keep_what_cannot_be_used(source, tmp_path, monkeypatch):
    def looked_at(*args):
        for folder in (tmp_path / "out", tmp_path / "out" / "parts"):
            (folder / ".DS_Store").write_text("litter")
        return write(*args)

    write = joining.refusals.write
    monkeypatch.setattr(joining.refusals, "write", looked_at)
    with pytest.raises(InputError, match="nothing else was kept"):
        run(tmp_path / "out", "--source", source, "--images", str(tmp_path))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rejected.csv", ".DS_Store"}


@pytest.mark.parametrize(
    "out, complete, told",
    [
        ("out", 0, r"out: no shard was complete yet \(3 shards of at most 64 images\): run .* to start again"),
        ("out", 2, r"out keeps 2 of 3 shards \(128 of 150 images\): run .* to continue"),
        ("gs://b/out", 2, "gs://b/out keeps the complete shards: run .* to continue"),
    ],
)
def test_what_a_stopped_preparation_keeps_is_told(out, complete, told, tmp_path):
    tasks = []
    for number, rows in enumerate((64, 64, 22)):
        path = tmp_path / str(number)
        if number < complete:
            path.touch()
        tasks.append(types.SimpleNamespace(path=path, num_rows=rows, source_rows=150))
    assert re.fullmatch(told, assembly._kept(out, tasks))


def test_another_recipe_in_the_same_folder_is_refused(source, tmp_path):
    run(tmp_path / "out", "--source", source)
    with pytest.raises(InputError, match="size: 256 there, 64 now"):
        run(tmp_path / "out", "--source", source, "--size", 64)
    with pytest.raises(InputError, match="images:"):
        run(tmp_path / "out", "--source", source, "--images", tmp_path)


@pytest.mark.parametrize(("words", "message"), [
    (["--seed", "-1"], "seed is -1: it must be at least 0"),
    (["--ratio", "4x1"], "4:1"), (["--folds", "1"], "at least 2"),
    (["--quality", "0"], "1 to 100"), (["--by", "identity"], "no identities"),
    (["--folds", "3", "--ratio", "8:1:1"], "write 9:1, all folds : test"),
    (["--folds", "6", "--ratio", "9:1"], "too few for 6 folds and a test split. What works: --folds 6 without --ratio"),
    (["--folds", "7"], r"6 images: too few for 7 folds. What works: --folds 6, or more images"),
    (["--ratio", "1:9000000"], "at most 1,000,000"),
    (["--align", "landmarks", "--smallest-face", "19"], "--smallest-face must be at least 20 pixels, got 19"),
    (["--align", "none", "--rotate"], "--rotate is for photographs, and the images are face crops: omit it"),
])  # fmt: skip
def test_wrong_flags(tmp_path, words, message):
    source = make_source(tmp_path / "src", [(f"{i}.jpg", 20, "") for i in range(6)])
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", "--source", source, *words)
    assert not (tmp_path / "out").exists()


def test_too_few_people_are_told_what_works(tmp_path):
    source = make_source(tmp_path / "src", [(f"{i}.jpg", 20 + i, f"p{i % 2}") for i in range(6)])
    told = r"2 people in 6 images: too few for 3 splits. What works: --ratio 4:1 \(without test\), or --by image"
    with pytest.raises(InputError, match=told):
        run(tmp_path / "out", "--source", source)
    assert run(tmp_path / "two", "--source", source, "--ratio", "4:1")["splits"] == {"train": 3, "validation": 3}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="2 people in 6 images"):
        patch.setattr(assembly, "_FEW", 5)
        run(tmp_path / "many", "--source", source)
    by_image = run(tmp_path / "three", "--source", source, "--by", "image")["splits"]
    assert by_image == {"train": 4, "validation": 1, "test": 1}


def test_too_few_usable_rows_are_told_with_the_reasons_of_the_others(tmp_path):
    source = make_source(tmp_path / "src", [(f"{i}.jpg", 20 if i < 2 else "thirty", "") for i in range(26)])
    told = "2 images: too few for 3 splits.*24 rejected: 24 x age 'thirty'.*column of ages.*/out/rejected.csv lists all"
    with pytest.raises(InputError, match=told):
        run(tmp_path / "out", "--source", source)
    assert rejected(tmp_path / "out").keys() == {f"{i}.jpg" for i in range(2, 26)}
    run(tmp_path / "out", "--source", source, "--ratio", "1:1")
    written = (tmp_path / "out" / "rejected.csv").read_bytes()
    source.write_text(source.read_text().replace("1.jpg,20", "1.jpg,"))
    with pytest.raises(InputError, match="1 image: too few.*25 rejected: 24 x age 'thirty'.* 2.jpg; 1 x no age"):
        run(tmp_path / "out", "--source", source)
    assert (tmp_path / "out" / "rejected.csv").read_bytes() == written


@pytest.mark.parametrize("spoilt", [5, 1])
def test_a_split_that_rejected_images_leave_empty_is_told_with_their_reasons(tmp_path, spoilt):
    people = [f"p{i % 3}" for i in range(6)] if spoilt == 5 else ["a"] * 5 + ["b"]
    source = make_source(tmp_path / "src", [(f"{i}.jpg", 20, people[i]) for i in range(6)])
    for i in range(6 - spoilt, 6):
        (source.parent / f"{i}.jpg").write_text("no image")
    why = (
        rf"'validation' would be empty \({6 - spoilt} of 6 images .*Rejected: {spoilt} x not an image that can be read"
    )
    end = {5: "Correct the source; or choose another --ratio.*images are kept", 1: "Choose another .* images are kept"}
    with pytest.raises(InputError, match=f"{why}, for example.*{end[spoilt]}"):
        run(tmp_path / "out", "--source", source, "--ratio", "4:1", "--shards", 2)
    assert len(rejected(tmp_path / "out")) == spoilt
    # What was cut and checked in hours is kept, however many images were rejected.
    assert (tmp_path / "out" / "recipe.json").exists() and len([*(tmp_path / "out").glob("*array_record-*")]) == 2


def test_the_program_shows_groups_crops_and_reasons_and_warns_of_many_rejected(tmp_path, capsys, caplog):
    ages = [0, 0.4, 10.5, 81.5, 81.4, 20]
    source = make_source(tmp_path / "src", [(f"{i}.jpg", ages[i % 6], "") for i in range(30)])
    source.write_text(source.read_text() + "3.jpg,130,\n" + "".join(f"gone{i}.jpg,5,\n" for i in range(8)))
    words = ["--reader", "csv", "--source", str(source), "--align", "none", "--workers", "1", "--out"]
    caplog.set_level("INFO", "lae_jax")
    door.main([*words, str(tmp_path / "out")])
    told = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines()[:14] if line.strip()}
    assert rows["age"] == ["train", "validation", "test"] and sum(map(int, rows["all"])) == 30
    assert {name: sum(map(int, rows[name])) for name in ("0", "1-10", "11-20", "71-81", "82+")} == {
        "0": 10, "1-10": 0, "11-20": 10, "71-81": 5, "82+": 5
    }  # fmt: skip
    assert all(int(count) for name in ("0", "82+") for count in rows[name])
    assert "rejected: 8 x file not found" in told and "rejected: 1 x age '130' is outside 0 to 100" in told
    assert f"look at {tmp_path}/out/crops.jpg and {tmp_path}/out/rejected.jpg" in told and "next: python -m" in told
    last = caplog.records[-1].getMessage()
    assert last.startswith("WARNING: 9 of 39 images (23%) were rejected, 8 x file not found.") and "--images" in last
    # The sheets are of this state, and do not change what a run checks.
    before = records.open_dataset(tmp_path / "out", "full").hash
    make_source(tmp_path / "src", [(f"{i}.jpg", 20, "") for i in range(30)])
    caplog.clear()
    door.main([*words, str(tmp_path / "few")])
    assert records.open_dataset(tmp_path / "few").hash != before and not (tmp_path / "few" / "rejected.jpg").exists()
    assert "WARNING" not in caplog.text


@pytest.mark.parametrize(("splits", "has_ages", "commands"), [
    (("train", "validation"), True, ["main --config configs/represent.py --config.data.path=o", "configs/finetune.py"]),
    (("train", "validation"), False, ["main --config configs/pretrain.py --config.data.path=o"]),
    (("fold0-train", "fold0-validation"), True, ["configs/represent.py --config.data.path=o --config.data.fold=0"]),
    (("test",), True, ["evaluate --run RUN --data o --split test"]),
])  # fmt: skip
def test_the_next_command_fits_the_splits(splits, has_ages, commands):
    ages = np.array([np.nan, 20.0 if has_ages else np.nan])
    ranges = np.stack([ages, ages], axis=1)
    dataset = types.SimpleNamespace(manifest={"splits": dict.fromkeys(splits, 2)}, age_ranges=lambda: ranges)
    lines = saved.next_commands(dataset, "o")
    assert len(lines) == len(commands) and all(part in line for part, line in zip(commands, lines, strict=True))
    assert all(("--config.init_from=" in line) == ("data.path" in line) for line in lines)


def test_a_sheet_shows_many_ages_and_every_reason():
    ages = np.r_[np.full(500, 25.0), np.arange(1, 81), np.nan]
    chosen = ages[sheets.over_ages(ages, 64)]
    assert len({*chosen[1:]}) == 63 and np.isnan(chosen[0]) and (np.diff(chosen[1:]) > 0).all()
    few = ages[sheets.over_ages(ages[490:520], 25) + 490]
    assert (few == 25).sum() == 5 and len({*few}) == 21 and len(few) == 25
    assert sorted(sheets.over_ages(ages[:3], 64)) == [0, 1, 2]
    rows = [*((f"a{i}", f"age '{i}' is wrong") for i in range(30)), ("b", "empty file"), ("c", "file not found")]
    assert [name for name, _ in sheets.in_turn(rows, 5)] == ["a0", "b", "c", "a1", "a2"]


def test_the_flag_of_another_program_names_the_one_that_is_meant():
    with pytest.raises(InputError, match=r"unknown flag --split; did you mean --ratio\?"):
        door.parse_args(["--reader", "csv", "--source", "a.csv", "--out", "b", "--split", "4:1"])


def test_rejected_photographs_wait_for_their_sheet_in_its_size(tmp_path, monkeypatch):
    """24 photographs of a phone take 2 GB."""
    (tmp_path / "recipe.json").write_text(json.dumps({"images": str(tmp_path)}))
    Image.new("RGB", (900, 1200)).save(tmp_path / "a.png")
    (tmp_path / "rejected.csv").write_text("name,reason\na.png,no face found\n")
    monkeypatch.setattr(sheets, "_sheet", lambda tiles, *_: [picture.size for picture, _ in tiles])
    assert sheets._rejected(types.SimpleNamespace(path=tmp_path)) == [(90, 120)]


def test_bad_rows_and_images_are_rejected_with_their_reason(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:3000])
    Image.new("1", (11000, 10000)).save(folder / "bomb.png")
    rows = [
        ("good.jpg", 5, ""),
        ("fine.jpg", 6, ""),
        ("text.jpg", 5, ""),
        ("empty.jpg", 5, ""),
        ("cut.jpg", 5, ""),
        ("bomb.png", 5, ""),
        ("old.jpg", 101, ""),
        ("young.jpg", -1, ""),
        ("word.jpg", "five", ""),
        ("nan.jpg", "nan", ""),
        ("none.jpg", "", ""),
    ]
    path = make_source(folder, rows)
    path.write_text(path.read_text() + "missing.jpg,5,\n../outside.jpg,5,\n/etc/hostname,5,\n")
    manifest = run(tmp_path / "out", "--source", path, "--ratio", "1:1")
    reasons = rejected(tmp_path / "out")
    assert manifest["count"] == 2 and manifest["rejected"] == len(reasons) == 12
    for name, reason in [
        ("text.jpg", "not an image"),
        ("empty.jpg", "empty file"),
        ("cut.jpg", "does not decode"),
        ("bomb.png", "11000 x 10000 pixels as PNG take 550 MB to decode, more than 500"),
        ("old.jpg", "outside 0 to 100"),
        ("young.jpg", "outside 0 to 100"),
        ("word.jpg", "not a number"),
        ("nan.jpg", "no age ('nan')"),
        ("none.jpg", "no age"),
        ("missing.jpg", "not found"),
        ("../outside.jpg", "leads out"),
        ("/etc/hostname", "leads out"),
    ]:
        assert reason in reasons[name], (name, reasons[name])
