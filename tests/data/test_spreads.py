"""Spreads of labels: read from a column of the source, stored, and told."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources import make_source, rejected, run

from lae_jax.audit import saved
from lae_jax.data import parquet, records
from lae_jax.data.sources import spreads
from lae_jax.data.sources.readers import READERS, Options
from lae_jax.faces.images import BadImage
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.files import read_json


@pytest.mark.parametrize(("text", "spread"), [
    ("4.5", 4.5), ("0", 0), ("100", 100), ("1e0", 1), ("", None), ("nan", None), ("NA", None), ("unknown", None),
])  # fmt: skip
def test_a_spread_is_read(text, spread):
    assert spreads.parse_spread(text) == spread


@pytest.mark.parametrize("text", ["-0.1", "-1", "inf", "101", "4,5", "1_0", "wide", "x" * 100_000])
def test_what_is_not_a_spread_is_refused(text):
    with pytest.raises(BadImage, match="^spread '.* is (not a number of years|outside 0 to 100 years)$") as refused:
        spreads.parse_spread(text)
    assert len(str(refused.value)) < 100


def appa_real(folder):
    """Of the set's form, with a bad spread and a missing one."""
    header = "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n"
    (folder / "gt_avg_train.csv").write_text(
        header + "0.jpg,36,5.194444,1.069045,4\n1.jpg,1,2,-3,30\n2.jpg,1,25,,28\n3.jpg,30,61,0,60\n"
    )
    return READERS["appa_real"]([str(folder)], Options())


def test_the_spreads_of_appa_real_are_a_column_of_numbers_beside_the_text(tmp_path):
    found = spreads.with_spreads(appa_real(tmp_path), "apparent_age_std")
    assert found.table[parquet.SPREAD].to_pylist() == [1.069045, None, 0.0]
    assert found.table["apparent_age_std"].to_pylist() == ["1.069045", None, "0"]
    assert found.table["age"].to_pylist() == [4, 28, 60] and found.recipe["label_spread"] == "apparent_age_std"
    assert [*found.rejected] == [("train/1.jpg_face.jpg", "spread '-3' is outside 0 to 100 years")]


def test_a_column_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(InputError, match="--label-spread: unknown column 'apparent_std'; did you mean"):
        spreads.with_spreads(appa_real(tmp_path), "apparent_std")
    (tmp_path / "faces.csv").write_text("path,age,Age_Spread,note\na.jpg,3,2.5,\nb.jpg,4,,\n")
    source = READERS["csv"]([str(tmp_path / "faces.csv")], Options())
    with pytest.raises(InputError, match="--label-spread note: no row has a number of years in this column"):
        spreads.with_spreads(source, "note")
    with pytest.raises(InputError, match="unknown column 'age'"):
        spreads.with_spreads(source, "age")
    # The name of the stored column may be that of the source's.
    assert spreads.with_spreads(source, "Age_Spread").table[parquet.SPREAD].to_pylist() == [2.5, None]
    with pytest.raises(InputError, match="--label-spread x: the source has no further columns"):
        spreads.with_spreads(READERS["synthetic"](["train=2"], Options(size=32)), "x")


@pytest.fixture(scope="module")
def spread_faces(tmp_path_factory):
    """24 pictures: of three, one has a spread of 2 to 5 years, one of 0, one none; the last one cannot be read."""
    folder = tmp_path_factory.mktemp("spread")
    rows = [(f"{i}.png", 20 + i, f"p{i},{('', '0', 2 + i / 8)[i % 3]}") for i in range(24)] + [("24.png", 30, "p,wide")]
    source = make_source(folder / "source", rows, "path,age,identity,std")
    manifest = run(folder / "faces", "--source", source, "--size", 32, "--shards", 2, "--label-spread", "std")
    assert manifest["count"] == 24 and manifest["rejected"] == 1
    return folder / "faces"


def test_spreads_go_through_prepare_into_the_data_set_and_its_audit(spread_faces):
    dataset = records.open_dataset(spread_faces)
    order = np.argsort([int(name.split(".")[0]) for name in dataset.column("name")])
    expected = [(np.nan, 0, 2 + i / 8)[i % 3] for i in range(24)]
    assert dataset.has_spreads
    np.testing.assert_array_equal(dataset.spreads()[order], expected)
    assert rejected(spread_faces)["24.png"] == "spread 'wide' is not a number of years"
    (report,) = saved.run([spread_faces])
    (finding,) = (one for one in report["findings"] if one["kind"] == "label_spread")
    assert finding["severity"] == "note" and finding["count"] == 16
    low, middle, high = np.nanquantile(expected, (0.25, 0.5, 0.75))
    told = f"16 of 24 labels have a spread: quartiles {low:.1f}, {middle:.1f}, {high:.1f} years, from 0.0 to 4.9"
    assert finding["message"] == told and f"note: {told}" in saved.tell(report)
    assert read_json(spread_faces / "recipe.json")["label_spread"] == "std"


def test_another_column_of_spreads_is_another_recipe(spread_faces, tmp_path):
    out = shutil.copytree(spread_faces, tmp_path / "faces")
    with pytest.raises(InputError, match="label_spread: 'std' there, None now"):
        run(out, "--source", spread_faces.parent / "source" / "faces.csv", "--size", 32, "--shards", 2)


def test_a_data_set_without_spreads_is_as_before(drawn, tmp_path):
    dataset = records.open_dataset(drawn)
    assert not dataset.has_spreads and np.isnan(dataset.spreads()).all()
    assert "age_spread" not in dataset._columns.column_names and "label_spread" not in read_json(drawn / "recipe.json")
    # An older one may have a column of texts with this name.
    table = pq.read_table(drawn / "columns.parquet")
    path = tmp_path / "columns.parquet"
    pq.write_table(table.append_column(parquet.SPREAD, pa.array(["x"] * len(table))), path)
    found = records.Dataset(drawn, dataset.manifest, parquet.read_columns(path, len(table), ""), [])
    assert not found.has_spreads and np.isnan(found.spreads()).all()


@pytest.mark.parametrize("value", [-1.0, 101.0, np.nan, np.inf])
def test_stored_spreads_that_cannot_be_are_refused(drawn, tmp_path, value):
    table = pq.read_table(drawn / "columns.parquet")
    values = pa.array([value] + [None] * (len(table) - 1), pa.float64())
    pq.write_table(table.append_column(parquet.SPREAD, values), tmp_path / "columns.parquet")
    with pytest.raises(InputError, match=r"columns.parquet is damaged \(a spread of a label does not lie in 0 to 100"):
        parquet.read_columns(tmp_path / "columns.parquet", len(table), "restore it")


@pytest.mark.parametrize("kind", [pa.float32(), pa.int32(), pa.int64(), pa.list_(pa.float32())])
def test_stored_spreads_of_another_type_are_refused(drawn, tmp_path, kind):
    table = pq.read_table(drawn / "columns.parquet")
    values = pa.array([None] * len(table), kind)
    pq.write_table(table.append_column(parquet.SPREAD, values), tmp_path / "columns.parquet")
    with pytest.raises(InputError, match=r"columns.parquet is damaged \(column age_spread is .+, not double\)"):
        parquet.read_columns(tmp_path / "columns.parquet", len(table), "restore it")
