"""Names that attack: a terminal, a log, a spreadsheet, Markdown and HTML; and what a person sees of them."""

import os

NAMES = {
    os.fsdecode(b"\xff\xfe.jpg"): r"\udcff\udcfe.jpg",
    "\x1b]0;x\x07\x1b[2J.jpg": r"\x1b]0;x\x07\x1b[2J.jpg",
    "a\n12:00:00 all is well.jpg": r"a\n12:00:00 all is well.jpg",
    "a\rb.jpg": r"a\rb.jpg",
    "\t=1+1.jpg": r"\t=1+1.jpg",
    "c1\x9b31m\x7f.jpg": r"c1\x9b31m\x7f.jpg",
    "\u202egpj.exe": r"\u202egpj.exe",
    "a\u2066b\u2069\u200bc\ufeff\u2028.jpg": r"a\u2066b\u2069\u200bc\ufeff\u2028.jpg",
    "=cmd|'!A1.jpg": "=cmd|'!A1.jpg",
    '"=1+1".jpg': '"=1+1".jpg',
    "'=1+1.jpg": "'=1+1.jpg",
    "＝1+1.jpg": "＝1+1.jpg",
    "x;=1+1.jpg": "x;=1+1.jpg",
    'y; "=1+1;＠SUM.jpg': 'y; "=1+1;＠SUM.jpg',
    "-1.jpg": "-1.jpg",
    "+1": "+1",
    "@SUM": "@SUM",
    "<img src=x onerror=alert(1)>.jpg": "<img src=x onerror=alert(1)>.jpg",
    "`**b**`|[x](javascript:y).jpg": "`**b**`|[x](javascript:y).jpg",
    r"\x1b.jpg": r"\x1b.jpg",
    "Zoë 1, 张伟.jpg": "Zoë 1, 张伟.jpg",
}  # fmt: skip
# What none of the outlets may have.
RAW = [c for name, told in NAMES.items() for c in name if c not in told]


def write(folder, content: bytes) -> list[str]:
    """Writes a file of each name into a folder; the names in the order in which a folder is read."""
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(content)
    return sorted(NAMES)
