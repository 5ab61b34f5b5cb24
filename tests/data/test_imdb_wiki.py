"""IMDB-WIKI's Matlab files: ages as their authors compute them, and nothing for scipy that was not looked at before."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import scipy.io

from benchmarks import raw_sources
from lae_jax.data.sources import imdb_wiki
from lae_jax.data.sources.readers import READERS, Options
from lae_jax.runtime.errors import InputError


def read(path, content, images=None):
    path.write_bytes(content)
    return READERS["imdb_wiki"]([str(path)], Options(images=images))


@pytest.mark.parametrize("compressed", [True, False])
def test_ages_people_and_reasons(tmp_path, compressed):
    source = read(tmp_path / "imdb.mat", raw_sources.imdb_mat(compressed=compressed))
    table = source.table.to_pydict()
    assert table["age"] == [34, 35] and table["identity"] == ["Fred Astaire", "Zoë Ünal"]
    assert table["gender"] == ["male", "female"] and table["face_score"] == ["1.5", "3.25"]
    assert table["name"][1] == "01/nm0000001_rm1_1976-1-1_2011.jpg" and table["photo_taken"] == ["2010", "2011"]
    reasons = [reason for _, reason in source.rejected]
    assert "face_score -inf" in reasons[0] and "second face" in reasons[1] and "outside 0 to 100" in reasons[2]


def test_images_lie_beside_the_file_or_where_they_are_said_to_lie(tmp_path):
    raw_sources.write_images(tmp_path / "crop", ["00/nm0000000_rm0_1976-1-1_2011.jpg"])
    for images, folder in ((None, tmp_path / "crop"), (str(tmp_path / "crop"), tmp_path)):
        source = read(folder / "wiki.mat", raw_sources.imdb_mat("wiki"), images)
        assert source.read(source.table.to_pylist()[0]).encoded == raw_sources.jpeg(0)


@pytest.mark.parametrize(("born", "year", "age"), [
    (721720, 2011, 35), (721720.9, 2011, 35),  # 1 January 1976
    (721900, 2011, 35), (721901, 2011, 34), (721902, 2011, 34),  # 29 and 30 June, 1 July 1976
    (721903, 2011, 34), (734320, 2011, 0), (734685, 2011, 0), (734686, 2011, -1),  # 1 July 2010, 1 and 2 July 2011
])  # fmt: skip
def test_age_is_that_of_the_authors_formula_in_the_middle_of_the_year(born, year, age):
    assert imdb_wiki.age_in(year, born) == age


@pytest.mark.parametrize("born", [float("nan"), float("inf"), -5.0, 1e300])
def test_an_impossible_date_of_birth_is_refused_alone(tmp_path, born):
    dob = np.array([[721720.0, born, 721720, 721720, 721720]])
    source = read(tmp_path / "imdb.mat", raw_sources.imdb_mat(dob=dob))
    assert len(source.table) == 2 and "date of birth" in source.rejected[0][1]


@pytest.mark.parametrize(("content", "message"), [
    (b"", "not a Matlab file"), (b"text", "not a Matlab file"), (bytes(200), "not a Matlab file"),
    (b"\x89HDF\r\n\x1a\n" + bytes(200), "v7.3"), (b"MATLAB 7.3".ljust(124) + b"\x00\x02IM", "-v7"),
    (b"MATLAB 5.0".ljust(124) + b"\x01\x00MI", "little-endian"),
    (b"MATLAB 5.0".ljust(124) + b"\x00\x01IM", "no variable"),
    (raw_sources.imdb_mat("other"), "no variable imdb or wiki"), (raw_sources.imdb_mat(dob=np.ones((1, 4))), "equal"),
    (raw_sources.imdb_mat(dob=raw_sources.cells(["a"] * 5)), "dob does not hold numbers"),
    (raw_sources.imdb_mat()[:-9], "cut off"), (raw_sources.imdb_mat(gender=np.ones((5, 1, 1, 1))), "kind"),
    (raw_sources.imdb_mat(gender=np.ones((1, 5), complex)), "neither numbers"),
    (raw_sources.imdb_mat(name=raw_sources.cells([raw_sources.cells([raw_sources.cells(["x"])])] * 5)), "too deep"),
])  # fmt: skip
def test_files_that_are_no_imdb_wiki_are_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path / "imdb.mat", content)


def test_a_missing_field_is_named(tmp_path):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"imdb": {"dob": np.ones((1, 2))}})
    with pytest.raises(InputError, match="no field face_score"):
        read(tmp_path / "imdb.mat", buffer.getvalue())


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(kind, rows, columns, content, name=b""):
    flags = element(6, struct.pack("<II", kind, 0))
    return element(14, flags + element(5, struct.pack("<ii", rows, columns)) + element(1, name) + content)


@pytest.mark.parametrize("content", [
    matrix(1, 1 << 30, 1, b""),  # cells of 8 GB
    matrix(4, 1 << 30, 1, element(4, b"")),  # characters, which scipy fills up with blanks
    matrix(6, 1 << 30, 1, element(9, b"")), matrix(2, 1 << 20, 1 << 10, b""), matrix(5, 1 << 30, 1, b""),
    matrix(3, 1, 1, b""), matrix(16, 1, 1, b""), matrix(17, 1, 1, b""), matrix(6, -1, -1, element(9, b"x" * 8)),
])  # fmt: skip
def test_claims_without_content_cost_nothing(tmp_path, content):
    fields = element(5, struct.pack("<i", 32)) + element(1, b"dob".ljust(32, b"\0"))
    variable = matrix(2, 1, 1, fields + content, b"imdb")
    tracemalloc.start()
    with pytest.raises(InputError, match="imdb.mat is damaged"):
        read(tmp_path / "imdb.mat", b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + variable)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_cells_within_cells_are_not_followed_down(tmp_path):
    content = matrix(6, 1, 1, element(9, b"x" * 8))
    for _ in range(2000):
        content = matrix(1, 1, 1, content)
    fields = element(5, struct.pack("<i", 32)) + element(1, b"dob".ljust(32, b"\0"))
    with pytest.raises(InputError, match="too deep"):
        read(tmp_path / "imdb.mat", b"".ljust(124) + b"\x00\x01IM" + matrix(2, 1, 1, fields + content, b"imdb"))


def test_a_small_file_does_not_become_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr(imdb_wiki, "MAX_VARIABLE_BYTES", 1 << 20)
    variable = matrix(2, 1, 1, bytes(1 << 26), b"imdb")
    packed = zlib.compress(variable)
    content = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed
    tracemalloc.start()
    with pytest.raises(InputError, match="more than 1,048,576 bytes"):
        read(tmp_path / "imdb.mat", content)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()
