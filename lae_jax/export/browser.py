"""The page of an ONNX export: one HTML file with the model and onnxruntime-web, which runs in a browser from a disk."""

import base64
import gzip
import hashlib
import importlib.resources
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

import jinja2
import markupsafe

from lae_jax.faces import MAX_KEPT_PIXELS
from lae_jax.report import markdown
from lae_jax.runs import conformal
from lae_jax.runtime import files, foreign, layout
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign.places import without_places

FILE, SOFTWARE = layout.PAGE
# The files of npm's package that the page holds, of the version that the tests run.
VERSION = "1.30.0"
SHA256 = {
    "ort.wasm.min.js": "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
INSTALL = f"npm install --prefix . --no-save --ignore-scripts {SOFTWARE}@{VERSION}"
_GET = f"get it with {INSTALL}"
PLACE = f"node_modules/{SOFTWARE}"  # where INSTALL puts it
# npm's package has neither; Python's has both, and an ONNX export needs it.
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
LEVEL = 0.9  # of the intervals, as those of predict and serve
_PART = 24 * 2**20  # bytes of a file in one element: strings of browsers have at most 2**29 letters
_OWN = importlib.resources.files(__package__) / "page"
_SHARED = importlib.resources.files("lae_jax.report") / "ages_page"
# Each file follows those that it imports.
_SCRIPT = ("drawing.js", "foreign.js", "downloads.js", "cards.js", "offline.js")
_WORKER = ("intervals.js", "pixels.js", "worker.js")
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w.]+)";\n', re.MULTILINE)


def check(folder: os.PathLike | str) -> None:
    """Checks that a folder is npm's package onnxruntime-web, in the version that the page needs.

    Raises:
      InputError: It is not; the message has the command that installs it.
    """
    path = pathlib.Path(folder)
    if not path.is_dir():
        raise InputError(f"there is no folder {folder}, npm's package {SOFTWARE}, which the page needs: {_GET}")
    if not (path / "package.json").is_file():
        raise InputError(f"{folder} is not the package {SOFTWARE} of npm: {_GET}")
    version = files.read_json(path / "package.json", again=_GET).get("version")
    if version != VERSION:
        told = foreign.quoted(str(version), 20)
        raise InputError(f"{folder} has version {told}, and the page needs {VERSION}: {_GET}")
    for name, digest in SHA256.items():
        file = path / "dist" / name
        if not file.is_file() or files.sha256_of(file) != digest:
            raise InputError(f"{file} is missing or was changed: {_GET}")


def write(folder: pathlib.Path, content: Mapping, card: str, software: os.PathLike | str) -> dict:
    """Writes the page of an ONNX export into its folder, with the licences of onnxruntime-web.

    Args:
      folder: Folder that has model.onnx.
      content: Content of export.json.
      card: The model card, Markdown.
      software: Folder of npm's package onnxruntime-web.

    Returns:
      The field 'page' of export.json.
    """
    (folder / SOFTWARE).mkdir()
    for name in LICENCES:
        files.write_bytes(folder / SOFTWARE / name, (importlib.resources.files("onnxruntime") / name).read_bytes())
    dist = pathlib.Path(software) / "dist"
    embedded = dict(zip(("script", "glue", "wasm"), (dist / name for name in SHA256), strict=True))
    with (folder / FILE).open("w", encoding="utf-8") as file:
        for text in _html(content, card, {**embedded, "onnx": folder / "model.onnx"}):
            file.write(text)
    return {"file": FILE, "software": SOFTWARE, "version": VERSION, "sha256": SHA256}


def _html(content: Mapping, card: str, embedded: Mapping[str, pathlib.Path]) -> Iterator[str]:
    source, taken, is_calibrated = content["source"], content["input"], content["temperature"] != 1
    run = os.path.abspath(source["run"])
    model = without_places(f"{source['model']} of {source['run']} step {source['step']}", run)
    versions = {"lae-jax": content["versions"]["lae-jax"], SOFTWARE: VERSION}
    fitted = content["conformal"] and conformal.from_json(content["conformal"])
    contract = {
        "size": taken["image_size"],
        "resize": taken["resize"],
        "most": MAX_KEPT_PIXELS,
        "level": LEVEL if is_calibrated else None,
        "conformal": fitted and {"level": LEVEL, "groups": fitted.groups(LEVEL)},
    }
    style, script = _read("page.css"), _joined(_SCRIPT)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        _read("index.html.j2")
    )
    return template.generate(
        policy=f"default-src 'none'; script-src {_digest(script)} blob: 'wasm-unsafe-eval'; worker-src blob:; style-src"
        f" {_digest(style)}; img-src blob: data:; base-uri 'none'; form-action 'none'",
        icon=base64.b64encode(_read("icon.svg").encode()).decode(),
        style=markupsafe.Markup(style),
        model=foreign.shown(model),
        calibrated=is_calibrated,
        cut=_cut(content["crop"]),
        card=markupsafe.Markup(markdown.html(without_places(card, run), below=2)),
        versions=versions,
        digests=SHA256,
        licence=f"{SOFTWARE}/{LICENCES[0]}",
        notices=f"{SOFTWARE}/{LICENCES[1]}",
        facts=markupsafe.Markup(
            json.dumps({"model": model, "versions": versions, "contract": contract}).replace("<", "\\u003c")
        ),
        worker=markupsafe.Markup(_joined(_WORKER)),
        parts=((name, part) for name, path in embedded.items() for part in _parts(path)),
        script=markupsafe.Markup(script),
    )


def _cut(crop: Mapping) -> str:
    """What pictures the page takes, in sentences."""
    if crop["align"] == "none":
        return (
            "Choose crops that were cut like those of the training data, which were ready-made: how they were"
            " cut is not recorded. Other crops get larger errors."
        )
    return (
        f"Choose crops that were cut like those of the training data: {crop['size']} x {crop['size']} pixels, the"
        f" five landmarks at their places in the {crop['template']} template, and a margin of {crop['margin']:g} of the"
        " template's side. docs/serving.md of lae_jax shows how to cut them. A picture that one upright face fills,"
        " from the chin to the hair, gets an age with a larger error."
    )


def _parts(path: pathlib.Path) -> Iterator[str]:
    """Yields a file, compressed, as Base64 in parts."""
    packed = gzip.compress(path.read_bytes(), 6, mtime=0)
    for start in range(0, len(packed), _PART):
        yield base64.b64encode(packed[start : start + _PART]).decode()


def _joined(names: tuple[str, ...]) -> str:
    """Returns modules as one script: a file on a disk cannot import others in a browser."""
    text = ""
    for number, name in enumerate(names):
        script = _read(name)
        assert {*_IMPORT.findall(script)} <= {*names[:number]}, name
        text += re.sub(r"^export ", "", _IMPORT.sub("", script), flags=re.MULTILINE)
    assert "</script" not in text and "<!--" not in text
    return text


def _read(name: str) -> str:
    own = _OWN / name
    return (own if own.is_file() else _SHARED / name).read_text("utf-8")


def _digest(text: str) -> str:
    """Returns a text's hash, as a Content-Security-Policy names what may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
