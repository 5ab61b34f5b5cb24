"""Files are written completely, whatever text they hold."""

import os
import re

import pytest

from lae_jax.runtime import files
from lae_jax.runtime.errors import InputError


def test_a_text_with_a_name_that_is_not_utf_8_is_written_with_escapes(tmp_path):
    files.write_text(tmp_path / "card.md", f"run of {os.fsdecode(b'Zo%b' % bytes([235]))} and Zo\u00eb")
    assert (tmp_path / "card.md").read_text("utf-8") == "run of Zo\\udceb and Zo\u00eb"


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"5", b"null", bytes([0xFF])])
def test_a_file_that_holds_no_object_is_damaged(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path))}/a.json is damaged \(.+\): restore it"):
        files.read_json(tmp_path / "a.json")
