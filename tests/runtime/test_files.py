"""Files are written completely, whatever text they hold."""

import os

from lae_jax.runtime import files


def test_a_text_with_a_name_that_is_not_utf_8_is_written_with_escapes(tmp_path):
    files.write_text(tmp_path / "card.md", f"run of {os.fsdecode(b'Zo%b' % bytes([235]))} and Zo\u00eb")
    assert (tmp_path / "card.md").read_text("utf-8") == "run of Zo\\udceb and Zo\u00eb"
