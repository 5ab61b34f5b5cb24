"""Tables and folders as people have them: what is meant is read, and the rest is refused with a hint."""

import os
import unicodedata

import pytest

from benchmarks import raw_sources
from lae_jax.data.sources import age_text, csv_file, interface
from lae_jax.data.sources.readers import READERS, Options
from lae_jax.faces.images import BadImage
from lae_jax.predict import photographs
from lae_jax.runtime.errors import InputError


def read(reader, path):
    return READERS[reader]([str(path)], Options())


def column(source, name):
    return source.table[name].to_pylist()


@pytest.mark.parametrize(("text", "hint"), [
    *((text, "a range of ages: write one age") for text in (
        "25-32", "(25, 32)", "25 to 32", "25\u201332 years", "0-2", "60+", "more than 70", ">=70", "70 and over",
        "under 3 years", "9-Mar", "Oct-19",
    )),
    ("25, 32", "write a range as 25-32"), ("25/32", "write a range as 25-32"), ("Jun-85", "a date, perhaps of birth"),
    ("1992-05-03", "a date"), ("3.5.1992", "a date"), ("3-May-92", "a date"),
    ("1992-05-03 00:00:00", "a date"), ("1992", "a year"), ("1992.0", "a year"), ("7,5", "a decimal comma"),
    ("age 34 years", "number alone"), ("34y", "number alone"), ("34 years old", "number alone"),
    ("18 months", "in years"),
])  # fmt: skip
def test_what_is_no_age_is_refused_with_what_it_looks_like(text, hint):
    """By readers whose ages are numbers."""
    with pytest.raises(age_text.BadAge, match="is not a number|is outside 0 to 100") as refused:
        age_text.parse_age(text)
    assert "it looks like" in str(refused.value) and hint in str(refused.value)


@pytest.mark.parametrize(("text", "low", "high"), [
    ("25-32", 25, 32), ("(25, 32)", 25, 32), ("[25; 32]", 25, 32), ("25 to 32", 25, 32), ("25\u201332 years", 25, 32),
    ("0-2", 0, 2), ("2.5-4", 2.5, 4), ("60+", 60, 100), ("more than 70", 70, 100), (">=70", 70, 100), (">70", 70, 100),
    ("70 and over", 70, 100), ("70 years or older", 70, 100), ("at least 18", 18, 100), ("under 3 years", 0, 2),
    ("<18", 0, 17), ("less than 18", 0, 17), ("up to 3", 0, 3), ("<= 3", 0, 3), ("3 and under", 0, 3),
    ("9-Mar", 3, 9), ("03-Sep", 3, 9), ("3-Sept", 3, 9), ("Oct-19", 10, 19), ("19-Oct", 10, 19), ("90-110", 90, 100),
    ("03-Mar", 3, 3), ("3-September", 3, 9), ("20\u221229", 20, 29), ("70 years+", 70, 100),
])  # fmt: skip
def test_a_range_is_read(text, low, high):
    found = age_text.parse_age_or_range(text)
    assert (found.low, found.high) == (low, high)
    assert bool(found.read_as) == any(month in text for month in ("Mar", "Sep", "Oct"))


@pytest.mark.parametrize(("text", "age"), [("34", 34), ("7.5", 7.5), ("20-20", 20), ("100+", 100), ("(3, 3)", 3)])
def test_an_age_is_read_as_before(text, age):
    assert age_text.parse_age_or_range(text) == age


@pytest.mark.parametrize(("text", "hint"), [
    ("32-25", "the younger age first"), ("101-120", "outside 0 to 100"), ("110+", "outside 0 to 100"),
    ("20-150", "outside 0 to 100"), ("under 0", "outside 0 to 100"), ("25, 32", "write a range as 25-32"),
    ("1992-05-03", "a date"), ("Oct-00", "a date"), ("Jun-85", "a date"), ("3-May-92", "a date"), ("7,5", "a decimal"),
    ("decent-5", "is not a number"), ("mary 5", "is not a number"),
    ("1992", "a year"), ("age 34 years", "number alone"), ("(25, 32", "is not a number"), ("25-", "is not a number"),
    ("5-Foo", "is not a number"), ("nan", "no age"), ("20-30-40", "is not a number"),
])  # fmt: skip
def test_what_is_neither_an_age_nor_a_range_is_refused(text, hint):
    with pytest.raises(age_text.BadAge, match=hint):
        age_text.parse_age_or_range(text)


@pytest.mark.parametrize("text", ["", "nan", "NA", "?", "unknown", "None"])
def test_a_missing_age_is_said_to_be_missing(text):
    with pytest.raises(age_text.BadAge, match="^no age"):
        age_text.parse_age(text)


@pytest.mark.parametrize("text", ["thirty", "1_0", "inf", "-3", "1" * 100, "12 34", "x" * 100_000])
def test_what_looks_like_nothing_gets_no_hint(text):
    with pytest.raises(age_text.BadAge) as refused:
        age_text.parse_age(text)
    assert "looks like" not in str(refused.value)


def test_many_ages_of_one_kind_are_a_warning(tmp_path, caplog):
    others = "".join(f"a{i}.jpg,{i}\n" for i in range(95))
    (tmp_path / "faces.csv").write_text("path,age\n" + "".join(f"{i}.jpg,3{i} years\n" for i in range(5)) + others)
    assert len(read("csv", tmp_path / "faces.csv").rejected) == 5
    assert "5 of 100 rows were rejected because their age looks like an age with words" in caplog.text
    caplog.clear()
    (tmp_path / "faces.csv").write_text("path,age\nb.jpg,1992\n" + others)
    assert len(read("csv", tmp_path / "faces.csv").rejected) == 1 and not caplog.text


def test_ranges_that_a_spreadsheet_made_dates_of_are_read_with_a_warning(tmp_path, caplog):
    rows = "".join(f"{i}.jpg,{3 + i % 2}-Sep\n" for i in range(5))
    (tmp_path / "faces.csv").write_text("path,age\n" + rows + "x.jpg,34\n")
    found = read("csv", tmp_path / "faces.csv")
    assert column(found, "age_low") == [3, 4, 3, 4, 3, 34] and column(found, "age_high") == [9] * 5 + [34]
    assert column(found, "age") == [None] * 5 + [34] and not found.rejected
    told = "age: 5 rows have a date that a spreadsheet made of a range, such as 03-Sep of 3-9. Read as 3-9 (3), 4-9 (2)"
    assert told in caplog.text


def test_a_table_without_a_range_has_no_columns_of_ranges(tmp_path):
    (tmp_path / "faces.csv").write_text("path,age\na.jpg,34\nb.jpg,20-20\n")
    found = read("csv", tmp_path / "faces.csv")
    assert not {"age_low", "age_high"} & {*found.table.column_names} and column(found, "age") == [34, 20]


def test_a_table_of_ranges_without_a_header_is_read(tmp_path):
    (tmp_path / "faces.csv").write_text("a.jpg,25-32\nb.jpg,4-6\n")
    assert column(read("csv", tmp_path / "faces.csv"), "age_high") == [32, 6]


@pytest.mark.parametrize(("begin", "end"), [
    ('0.png,30,"5 ft', '20.png,40,6 ft"'),  # closed
    ('0.png,30,"5 ft', "20.png,40,6 ft"),  # not closed at all
    ('0.png,"30,5 ft', '20.png,40",6 ft'), ('"0.png,30,5 ft', '20.png",40,6 ft'),
])  # fmt: skip
@pytest.mark.parametrize("between", [0, 19])
def test_a_quote_that_swallows_rows_is_refused(tmp_path, begin, end, between):
    lines = ["path,age,note", "x.png,3,", begin, *(f"{i}.png,31,x" for i in range(between)), end, "30.png,5,y"]
    (tmp_path / "faces.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"faces\.csv: a quote opens in line 3 and closes only in line .* such as '"):
        read("csv", tmp_path / "faces.csv")


def test_a_quote_that_swallows_more_than_a_field_may_hold_is_told_with_its_line(tmp_path):
    lines = ["path,age,note", 'x.png,3,"5 ft', *(f"{i},31,x" for i in range(20_000))]
    (tmp_path / "faces.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match="row that begins in line 2. Is a quote not closed"):
        read("csv", tmp_path / "faces.csv")


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_table_with_other_separators_is_told_so(tmp_path, mark, name):
    (tmp_path / "faces.csv").write_text(f"path{mark}age\na.png{mark}30\n")
    for reads in (lambda path: read("csv", path), lambda path: [*photographs.in_csv(path)]):
        with pytest.raises(InputError, match=f"add a header, and separate the fields with commas, not {name}$"):
            reads(str(tmp_path / "faces.csv"))


def test_a_note_of_several_lines_is_kept_and_told(tmp_path, caplog):
    note = "taken at home,\nfrom a.png, with care\n\nsee also b.png"
    (tmp_path / "faces.csv").write_text(f'path,age,note\nx.png,3,"{note}"\n')
    read("csv", tmp_path / "faces.csv")
    assert "1 row goes over several lines, the first over lines 2 to 5" in caplog.text
    (tmp_path / "faces.csv").write_text(f'path,age,note\nx.png,3,"{note}"\ny.png,4,"one\ntwo"\nz.png,5,\n')
    found = read("csv", tmp_path / "faces.csv")
    assert column(found, "note") == [note, "one\ntwo", None] and column(found, "age") == [3, 4, 5]
    assert "2 rows go over several lines, the first over lines 2 to 5" in caplog.text
    caplog.clear()
    (tmp_path / "faces.csv").write_text('path,age,note\n\nx.png,3,"a, b"\n\n\r\ny.png,4,\n')
    assert [line for line, _ in csv_file.csv_rows(tmp_path / "faces.csv")] == [1, 3, 6] and not caplog.text


@pytest.mark.parametrize(("name", "content"), [
    ("sub\\0.png", "0"), (".\\sub\\0.png", "0"), ("sub\\Zoe\u0308\\a.png", "a"), ("sub/Zoe\u0308/a.png", "a"),
    ("sub/Zoe\u0308/\u00e9.png", "e"),  # one part composed on the disk, one decomposed
])  # fmt: skip
def test_a_path_of_another_system_is_found(tmp_path, name, content):
    (tmp_path / "sub" / "Zo\u00eb").mkdir(parents=True)
    for path in ("0.png", "Zo\u00eb/a.png", "Zo\u00eb/e\u0301.png"):
        (tmp_path / "sub" / path).write_text(unicodedata.normalize("NFD", path.split("/")[-1])[0])
    assert interface.read_inside(str(tmp_path), name).decode() == content


@pytest.mark.parametrize(("name", "reason"), [
    ("..\\secret.png", "leads out"), ("sub\\..\\..\\secret.png", "leads out"), ("sub\\missing.png", "^file not found$"),
    ("C:\\Users\\me\\0.png", "a Windows path"), ("sub/img_1.PNG", r"there is 'IMG_1\.png', which differs in upper and"),
    ("SUB/img_1.png", r"there is 'sub/IMG_1\.png', which differs"), ("SUB/2.png", "^file not found$"),
    ("..\\SECRET.png", "^file not found$"), ("dead.png", "^file not found$"), ("out/SECRET.png", "leads out"),
])  # fmt: skip
def test_a_path_that_is_not_found_is_told_what_differs(tmp_path, name, reason):
    (tmp_path / "top" / "sub").mkdir(parents=True)
    (tmp_path / "top" / "sub" / "IMG_1.png").write_text("x")
    (tmp_path / "top" / "dead.png").symlink_to("gone.png")
    (tmp_path / "top" / "out").symlink_to("..")
    (tmp_path / "secret.png").write_text("x")
    with pytest.raises(BadImage, match=reason):
        interface.read_inside(str(tmp_path / "top"), name)


def people_of(tmp_path, *names):
    raw_sources.write_images(tmp_path, names)
    found = read("folders", tmp_path)
    return list(zip(column(found, "name"), column(found, "identity"), column(found, "split"), strict=True)), found


def test_folders_of_splits_hold_the_people(tmp_path, caplog):
    caplog.set_level("INFO", "lae_jax")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "readme.txt").write_text("no image")
    names = ["train/anna/1.jpg", "train/ben/x/1.jpg", "Val/anna/2.jpg", "train/3.jpg", "train/unknown/1.jpg"]
    found, source = people_of(tmp_path, *names)
    assert found == [
        ("Val/anna/2.jpg", "anna", "validation"), ("train/anna/1.jpg", "anna", "train"),
        ("train/ben/x/1.jpg", "ben", "train"),
    ]  # fmt: skip
    assert "Val, train are splits, and the people are the folders in them" in caplog.text
    assert dict(source.rejected) == {
        "train/3.jpg": "not in the folder of a person",
        "train/unknown/1.jpg": "the name of the folder 'unknown' means an unknown person",
    }  # fmt: skip


@pytest.mark.parametrize(("names", "message"), [
    (["all/anna/1.jpg", "all/ben/1.jpg"], r"name the folder that holds the people, with --source .*/all$"),
    (["a/b/train/anna/1.jpg", "a/b/val/ben/1.jpg"], "--source .*/a/b$"),
    (["train/anna/1.jpg", "test/ben/1.jpg", "extra/carl/1.jpg"], r"holds splits \(test, train\) and others \(extra"),
    (["train/1.jpg", "val/2.jpg"], "holds train, val, without a folder for each person"),
])  # fmt: skip
def test_people_that_are_nested_otherwise_are_refused_with_the_folder_to_name(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        people_of(tmp_path, *names)


def test_folders_below_a_person_are_the_persons(tmp_path, caplog):
    caplog.set_level("INFO", "lae_jax")
    found, _ = people_of(tmp_path, "anna/2001/1.jpg", "anna/2002/1.jpg", "dev/2001/1.jpg")
    assert [person for _, person, _ in found] == ["anna", "anna", "dev"]
    assert "each folder in it, such as anna, is one person, with all its subfolders" in caplog.text
    caplog.clear()
    found, _ = people_of(tmp_path, "anna/2.jpg")
    assert [person for _, person, _ in found] == ["anna"] * 3 + ["dev"] and not caplog.text


@pytest.mark.parametrize("reader", ["folders", "utkface"])
def test_what_a_system_leaves_in_a_folder_is_no_image_and_no_person(tmp_path, caplog, reader):
    caplog.set_level("INFO", "lae_jax")
    name = "26_0_1_20170116184024662.jpg"
    left = [".ipynb_checkpoints", "__MACOSX/anna", "@eaDir", "lost+found", ".AppleDouble", ".hidden", "anna/.cache"]
    raw_sources.write_images(tmp_path, [f"anna/{name}", f"ben/{name}", f"ben/._{name}", *(f"{x}/{name}" for x in left)])
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    source = read(reader, tmp_path)
    assert column(source, "name") == [f"anna/{name}", f"ben/{name}"] and not source.rejected
    assert caplog.text.count("9 system files or folders are ignored, such as '.AppleDouble'") == 1


def test_a_name_that_is_not_utf_8_is_refused_and_written_with_escapes(tmp_path):
    raw_sources.write_images(tmp_path, ["anna/1.jpg"])
    (tmp_path / "anna" / os.fsdecode(b"\xe9.jpg")).write_bytes(b"x")
    assert [name for name, _ in read("folders", tmp_path).rejected] == ["anna/\\udce9.jpg"]
