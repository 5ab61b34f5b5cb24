"""Lists of pairs: LFW's file, tables and .bin files give the same pairs, and a faulty list is one sentence."""

import hashlib
import pickle

import numpy as np
import pytest

from lae_jax.evaluate import pair_list
from lae_jax.runtime.errors import InputError


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lfw(folds, size):
    """The text of a pairs.txt of `folds` folds with `size` pairs of each kind, and its pairs as paths."""
    lines, pairs = [f"{folds}\t{size}"], []
    for fold in range(folds):
        names = [f"Person_{fold}_{n}" for n in range(size)]
        lines += [f"{name}\t1\t{n + 2}" for n, name in enumerate(names)]
        pairs += [(f"{name}/{name}_0001", f"{name}/{name}_{n + 2:04d}", True) for n, name in enumerate(names)]
        others = [f"Other_{fold}_{n}" for n in range(size)]
        lines += [f"{name}\t1\t{other}\t3" for name, other in zip(names, others, strict=True)]
        two = zip(names, others, strict=True)
        pairs += [(f"{name}/{name}_0001", f"{other}/{other}_0003", False) for name, other in two]
    return "\n".join(lines) + "\n", pairs


def as_paths(found):
    return [
        (*(found.names[n] for n in pair), same) for pair, same in zip(found.pairs, found.same.tolist(), strict=True)
    ]


def test_lfw_names_files_people_and_folds(tmp_path):
    text, pairs = lfw(10, 3)
    found = pair_list.read(written(tmp_path / "pairs.txt", text))
    assert as_paths(found) == pairs
    assert found.folds.tolist() == [n // 6 for n in range(60)]
    assert {
        person for name, person in zip(found.names, found.people, strict=True) if name.startswith("Person_7_2/")
    } == {"Person_7_2"}


def test_a_list_without_folds_is_cut_into_those_that_lfw_has(tmp_path):
    text, pairs = lfw(10, 3)
    own = pair_list.read(written(tmp_path / "pairs.txt", text)).folds.tolist()
    for name, line in (("table.txt", "{}.jpg {}.jpg {}"), ("table.csv", "{}.jpg,{}.jpg,{}")):
        lines = [line.format(first, second, int(same)) for first, second, same in pairs]
        found = pair_list.read(written(tmp_path / name, "\n".join(lines)))
        assert found.folds.tolist() == own and found.people is None
        assert as_paths(found) == [(f"{first}.jpg", f"{second}.jpg", same) for first, second, same in pairs]
    images = [one.encode() for first, second, _ in pairs for one in (first, second)]
    content = pickle.dumps((images, [same for *_, same in pairs]))
    found = pair_list.read(written(tmp_path / "lfw.bin", content))
    assert found.folds.tolist() == own
    assert [tuple(found.encoded[n].decode() for n in pair) for pair in found.pairs] == [(a, b) for a, b, _ in pairs]
    assert len(found.encoded) == len({*images}) < len(images) and found.names[:2] == ["image 0", "image 1"]


def test_one_set_has_the_pairs_of_one_person_first(tmp_path):
    lines = ["2", "A 1 2", "B 1 2", "A 1 B 1", "A 2 C 1"]
    found = pair_list.read(written(tmp_path / "pairsDevTest.txt", "\n".join(lines)))
    assert found.same.tolist() == [True, True, False, False] and found.folds.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,b.jpg,1\nc.jpg,d.jpg,true\na.jpg,c.jpg,0\nb.jpg,d.jpg,False\n",
        "\ufefffirst,second,same\r\na.jpg,b.jpg,1\r\nc.jpg,d.jpg,1\r\na.jpg,c.jpg,0\r\nb.jpg,d.jpg,0\r\n",
        "1 a.jpg b.jpg\n1 c.jpg d.jpg\n0 a.jpg c.jpg\n0 b.jpg d.jpg\n",
        "a.jpg\tb.jpg\t1\n\nc.jpg\td.jpg\t1\na.jpg\tc.jpg\t0\nb.jpg\td.jpg\t0\n",
        '"a.jpg","b.jpg",1\n"c.jpg","d.jpg",1\n"a.jpg","c.jpg",0\n"b.jpg","d.jpg",0\n',
    ],
)
def test_forms_of_a_table(tmp_path, text):
    found = pair_list.read(written(tmp_path / "list.csv", text))
    assert as_paths(found) == [
        ("a.jpg", "b.jpg", True),
        ("c.jpg", "d.jpg", True),
        ("a.jpg", "c.jpg", False),
        ("b.jpg", "d.jpg", False),
    ]


def test_what_would_feign_precision_is_left_out_and_told(tmp_path, caplog):
    text = "a,b,1\nc,d,1\nb,a,1\ne,e,1\na,c,0\nb,d,0\na,c,0\n"
    found = pair_list.read(written(tmp_path / "list.csv", text))
    assert as_paths(found) == [("a", "b", True), ("c", "d", True), ("a", "c", False), ("b", "d", False)]
    assert "2 pairs that occur again are left out" in caplog.text
    assert "1 pair of an image with itself is left out" in caplog.text


GOOD = "a,b,1\nc,d,1\na,c,0\nb,d,0\n"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("pairs.txt", "", "is empty"),
        ("pairs.txt", "10 300\nA 1 2\n", "promises 6,000 pairs, and there are 1 lines"),
        ("pairs.txt", "1 1\nA 1 2\nA 1 3\n", "line 3: 'A 1 3' is not `name 1 other 2`"),
        ("pairs.txt", "1 1\nA one 2\nA 1 B 3\n", "line 2: 'A one 2' is not `name 1 4`"),
        (
            "pairs.txt",
            "1 1\nA 1 2\nA 1 A 3\n",
            "line 3: 'A 1 A 3' names one person twice, where two people are expected",
        ),
        ("pairs.txt", "1 1\nA 1 2\nA 1 B 2\n", "has 1 pair of the same person"),
        ("list.csv", "a,b,1\nc,d,1\n", "has 0 pairs of different people"),
        ("list.csv", GOOD + "b,a,0\n", "line 5 calls two images two people, and an earlier pair says the opposite"),
        ("list.csv", GOOD + "a,a,0\n", "line 5 calls an image different from itself"),
        ("list.csv", GOOD + "a,b\n", "line 5: 'a,b' is not two paths"),
        ("list.csv", GOOD + "a,e,2\n", "line 5: 'a,e,2' is not two paths"),
        ("list.csv", "first,second\na,b\n", "line 1: 'first,second' is not two paths"),
        ("list.txt", "a;b;1\n", "separate the fields with commas, not semicolons"),
        ("list.txt", b"\xff\xfe\x00", "is damaged"),
        ("lfw.bin", pickle.dumps(([b"a"] * 3, [True])), "does not hold two images for each bool"),
        ("lfw.bin", pickle.dumps([b"a"]), "does not hold two images for each bool"),
        ("lfw.bin", pickle.dumps((["a", "b"], [True])), "does not hold two images for each bool"),
        ("lfw.bin", pickle.dumps(([b"a", b"b"], [True, 7])), "does not hold two images for each bool"),
        ("lfw.bin", pickle.dumps(([b"a", b"b"], np.array([0.5]))), "is not read: an array is neither"),
        ("lfw.bin", b"cos\nsystem\n(S'touch hostile'\ntR.", "is not read: it has the instruction STRING"),
        ("lfw.bin", b"\x80\x02cos\nsystem\n(U\rtouch hostiletR.", "is not read: it names os.system"),
        ("lfw.bin", b"not a pickle", "is not read: "),
    ],
)
def test_a_faulty_list_is_one_sentence(tmp_path, name, text, told):
    with pytest.raises(InputError) as error:
        pair_list.read(written(tmp_path / name, text))
    assert told in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


def test_images_are_found_with_their_suffix_or_named(tmp_path):
    lines = ["2", "A 1 2", "B 1 2", "A 1 B 1", "A 2 C 1"]
    found = pair_list.read(written(tmp_path / "pairs.txt", "\n".join(lines)))
    root = tmp_path / "lfw"
    for name, suffix in (("A/A_0001", ".png"), ("A/A_0002", ".jpg"), ("B/B_0001", ".jpg"), ("B/B_0002", ".jpg")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}{suffix}").write_bytes(b"image")
    with pytest.raises(InputError, match=r"1 of the 5 images .* such as 'C/C_0001.jpg': file not found.* --images"):
        pair_list.require_images(found, str(root))
    (root / "C").mkdir()
    (root / "C" / "C_0001.jpg").write_bytes(b"image")
    names = pair_list.require_images(found, str(root)).names
    assert names == ["A/A_0001.png", "A/A_0002.jpg", "B/B_0001.jpg", "B/B_0002.jpg", "C/C_0001.jpg"]
    table = pair_list.read(written(tmp_path / "list.csv", GOOD.replace("d,", "../secret,")))
    with pytest.raises(InputError, match="4 of the 4 images"):
        pair_list.require_images(table, str(root))


def test_a_bin_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pair_list, "MAX_BIN_BYTES", 20)
    with pytest.raises(InputError, match="more than 20 bytes: use a list of paths"):
        pair_list.read(written(tmp_path / "lfw.bin", pickle.dumps(([b"a" * 9, b"b"], [True]))))
    monkeypatch.setattr(pair_list, "MAX_PAIRS", 3)
    with pytest.raises(InputError, match="more than 3 pairs"):
        pair_list.read(written(tmp_path / "list.csv", GOOD))


def test_a_picture_that_occurs_many_times_is_hashed_once(tmp_path, monkeypatch):
    hashed, sha256 = [], hashlib.sha256
    monkeypatch.setattr(pair_list.hashlib, "sha256", lambda one: hashed.append(len(one)) or sha256(one))
    images = [bytes([number]) * 1000 for number in range(4)]
    order = [0, 1, 0, 1, 2, 3, 0, 2, 1, 3] * 100
    same = [True, True, True, False, False] * 100
    path = written(tmp_path / "lfw.bin", pickle.dumps(([images[number] for number in order], same)))
    found = pair_list.read(path)
    assert found.encoded == images and len(found.pairs) == 4
    assert sum(hashed) < 2 * path.stat().st_size
