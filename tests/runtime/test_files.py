"""Files are written completely, whatever text they hold."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from lae_jax.runtime import errors, files, layout, typed
from lae_jax.runtime.errors import InputError


def test_a_text_with_a_name_that_is_not_utf_8_is_written_with_escapes(tmp_path):
    files.write_text(tmp_path / "card.md", f"run of {os.fsdecode(b'Zo%b' % bytes([235]))} and Zo\u00eb")
    assert (tmp_path / "card.md").read_text("utf-8") == "run of Zo\\udceb and Zo\u00eb"


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"5", b"null", bytes([0xFF])])
def test_a_file_that_holds_no_object_is_damaged(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path))}/a.json is damaged \(.+\): restore it"):
        files.read_json(tmp_path / "a.json")


HOSTILE = {
    "deep nesting": b"[" * 100_000,
    "deep objects": b'{"a":' * 200 + b"1" + b"}" * 200,
    "a field twice": b'{"a": 1, "a": 2}',
    "NaN": b'{"a": NaN}',
    "infinity by overflow": b'{"a": 1e999}',
    "beyond 64 bits": b'{"a": 1' + b"0" * 4000 + b"}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_json_that_is_not_strict_is_refused_and_named(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path))}/a.json is damaged \(.+\): restore it"):
        files.read_json(tmp_path / "a.json")


def test_what_stands_in_place_of_a_file_does_not_block(tmp_path):
    path = tmp_path / "a.json"
    for make, told in (
        (lambda: os.mkfifo(path), "is not a file"),
        (lambda: path.symlink_to("/dev/zero"), "is not a file"),
        (lambda: path.mkdir(), "is not a file"),
        (lambda: path.symlink_to(path), "cannot be read"),
        (lambda: path.symlink_to("gone"), "is missing"),
    ):
        make()
        for read in (files.read_json, files.read_text, files.sha256_of):
            with pytest.raises(InputError, match=f"a.json {told}"):
                read(path)
        path.rmdir() if path.is_dir() else path.unlink()
    path.write_text('{"a": 1234567}')
    with pytest.raises(InputError, match="more than"):
        files.read_text(path, limit=10)


def test_a_damaged_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert files.read_lines(path) == []
    path.write_text('{"step": 1}\n{"step": 2')
    assert files.read_lines(path) == [{"step": 1}]
    for line in ("noise", "[]", '{"step": -1}', '{"step": "2"}', ""):
        path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
        with pytest.raises(InputError, match=r"metrics.jsonl line 2 is damaged \(.+\): restore it"):
            files.read_lines(path, typed.fields({"step": typed.whole(0)}))


def test_a_wrong_field_is_named_with_its_value_and_what_it_must_be():
    form = typed.fields(
        {
            "step": typed.whole(0, 9),
            "temperature": typed.number(above=0),
            "kind": typed.optional(typed.one_of((1, "a"))),
            "sizes": typed.named(typed.many(typed.whole(), 2)),
            "flip": typed.flag(),
        }
    )
    right = {"step": 3, "temperature": 0.5, "sizes": {"a": [1, 2]}, "flip": False, "more": "ignored"}
    form(right, "")
    for change, told in (
        ({"step": True}, "step is True: it must be a whole number at least 0 and at most 9"),
        ({"step": 3.0}, "step is 3.0"),
        ({"step": 10}, "step is 10"),
        ({"temperature": 0}, "temperature is 0: it must be a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"kind": True}, "kind is True: it must be 1 or 'a'"),
        ({"sizes": {"a": [1]}}, r"sizes.a is \[1\]: it must be a list of 2"),
        ({"sizes": {"a": [1, "x"]}}, r"sizes.a\[1\] is 'x'"),
        ({"sizes": 5}, "sizes is 5: it must be an object"),
        ({"flip": 0}, "flip is 0: it must be true or false"),
        ({"flip": "x" * 1000}, r"^run.json is damaged \(flip is '.{59}\.\.\.: it must"),
    ):
        with pytest.raises(InputError, match=told):
            typed.require({**right, **change}, form, "run.json")
    with pytest.raises(InputError, match=r"run.json is damaged \(no flip\)"):
        typed.require({name: value for name, value in right.items() if name != "flip"}, form, "run.json")


def test_folders_of_programs_that_were_killed_are_removed_and_those_of_others_are_not(tmp_path):
    code = """
import os, pathlib, signal, sys
from lae_jax.runtime import files
with files.together(sys.argv[1], "last") as place:
    (place / "half").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], cwd=ROOT, timeout=60)
    (killed,) = (tmp_path / "out").glob(".lae_jax-*/out/half")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("keep")
    (tmp_path / "out" / ".lae_jax-link").symlink_to(tmp_path / "elsewhere")
    with files.together(tmp_path / "out", "last") as first:
        assert not killed.parent.parent.exists()
        (first / "one").write_text("1")
        with files.together(tmp_path / "out", "last") as second:
            (second / "two").write_text("2")
        assert (first / "one").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one", "two", ".lae_jax-link"}
    assert (tmp_path / "elsewhere" / "mine").exists()


def test_a_run_in_a_bucket_needs_a_package_and_cloud_storage(monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gs://bucket/runs/a.* needs the package google-cloud-storage: .*\[gcs\]"):
        layout.require_workdir("gs://bucket/runs/a")
    with pytest.raises(InputError, match=r"^s3://bucket/runs/a: a run is on a local disk, on a mount or in a bucket"):
        layout.require_run("s3://bucket/runs/a")


class _Of(Exception):
    """An error of a library, by the name of its module."""


def _error(module: str, text: str) -> Exception:
    return type("Error", (_Of,), {"__module__": module})(text)


TENSORSTORE = (
    'PERMISSION_DENIED: Error opening "zarr" driver: Error writing "a/.zarray" in OCDBT database at gs://b/r/: no'
    " [http_response_code='403'] [tensorstore_spec='" + "x" * 3000 + "']"
)
AWAY = "All 10 retry attempts failed. The last failure: Error executing an HTTP request: HTTP response code 503"
FORBIDDEN = "403 GET https://storage.googleapis.com/storage/v1/b/b: no"


@pytest.mark.parametrize(("error", "kind", "told"), [
    (ValueError(TENSORSTORE), errors.SaveFailed, r"^gs://b/r/7: the bucket refused access \(PERMISSION_[^[]+ no\)"),
    (_error("tensorflow.python", f"{AWAY} with body 'x'\n\t when uploading gs://b/r/7"), errors.Unreachable,
     r"^gs://b/r/7: the bucket did not answer \(All 10 retry .* code 503\); step 3 is complete: check the network"),
    (_error("google.api_core.exceptions", FORBIDDEN), errors.SaveFailed, r"refused access .*storage.buckets.get"),
    (_error("google.auth.exceptions", "Your default credentials were not found"), errors.SaveFailed, "refused access"),
    (OSError("Could not resolve host: x when uploading gs://b/r/7"), errors.Unreachable, "resolve host"),
])  # fmt: skip
def test_an_error_of_a_bucket_is_a_short_sentence(error, kind, told):
    with pytest.raises(kind, match=told) as found, errors.saving("gs://b/r/7", "step 3 is complete"):
        raise error
    assert len(str(found.value)) < 600 and "\n" not in str(found.value)


@pytest.mark.parametrize("error", [
    ValueError("gs://b/r is no number"),
    _error("tensorflow.python", "Invalid JPEG data: /disk/a.jpg"),
    InputError("gs://b/r: choose another folder"),
])  # fmt: skip
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as found, errors.saving("gs://b/r/7"):
        raise error
    assert found.value is error
