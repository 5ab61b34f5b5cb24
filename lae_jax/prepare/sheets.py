"""What to look at after a preparation: images by age group, and contact sheets of crops and of rejected photographs."""

import itertools
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lae_jax import metrics
from lae_jax.audit import checks
from lae_jax.data import rejected
from lae_jax.data.records import Dataset
from lae_jax.data.sources.interface import read_inside
from lae_jax.faces import images
from lae_jax.runtime import console, files, foreign, layout
from lae_jax.runtime.foreign import spreadsheets

CROPS, REJECTED = "crops.jpg", "rejected.jpg"
_CROPS, _REFUSED = 64, 24  # pictures of a sheet
_REFUSED_SIZE = (160, 120)  # pixels of a rejected photograph
_SEARCHED = 100_000  # rows of rejected.csv
_FEW_SPLITS = 6  # so many have a column in a terminal
_GAP, _LINE, _EMPTY = 6, 13, (232, 232, 232)


def table(dataset: Dataset) -> list[str]:
    """Returns the number of images of each split, by age group where ages are known, as lines for a terminal.

    A range counts in the group of the age that stands for it. Babies and people over 81, whom the paper's groups leave
    out, are groups of their own.
    """
    sizes, ages = dataset.manifest["splits"], dataset.label_ages()
    sizes = {name: sizes[name] for name in sorted(sizes, key=checks.place)}
    if np.isnan(ages).all():
        return console.table(["split", "images"], list(sizes.items())).splitlines()
    kind = np.full(len(ages), len(metrics.ALL_GROUPS))
    kind[~np.isnan(ages)] = metrics.extended_group(ages[~np.isnan(ages)])
    parts = {name: dataset.rows(name) for name in sizes} if len(sizes) <= _FEW_SPLITS else {"all": slice(None)}
    count = np.array([np.bincount(kind[rows], minlength=len(metrics.ALL_GROUPS) + 1) for rows in parts.values()])
    groups = zip((*metrics.ALL_GROUPS, "unknown"), count.T, strict=True)
    lines = [(group, *row) for group, row in groups if group in metrics.GROUPS or row.any()]
    shown = console.table(["age", *parts], [*lines, ("all", *count.sum(axis=1))]).splitlines()
    if len(sizes) > _FEW_SPLITS:
        shown += console.table(["split", "images"], list(sizes.items())).splitlines()
    return shown


def write(dataset: Dataset) -> list[str]:
    """Writes the contact sheets into the folder of a data set.

    crops.jpg shows up to 64 crops over all ages, each with its age or range. rejected.jpg shows up to 24 rejected
    photographs, of every reason, each with its name and reason; there is none if no rejected photograph can be read.

    Returns:
      The names of the files.
    """
    made = {CROPS: _crops(dataset), REJECTED: _rejected(dataset)}
    for name, sheet in made.items():
        if sheet is None:
            (dataset.path / name).unlink(missing_ok=True)  # of another split or source
            continue
        with files.replacing(dataset.path / name) as temporary:
            sheet.save(temporary, "JPEG", quality=88)
    return [name for name, sheet in made.items() if sheet is not None]


def over_ages(ages: np.ndarray, count: int) -> np.ndarray:
    """Chooses rows over the range of ages: as many different whole ages as possible, each about equally often.

    Args:
      ages: (N,) years, NaN where unknown.
      count: Number of rows.

    Returns:
      Rows in the order of their ages, (count,) or (N,) if there are fewer.
    """
    years = np.nan_to_num(ages, nan=-1.0)
    whole = metrics.age_class(years)
    shuffled = np.random.default_rng(0).permutation(len(ages))
    order = shuffled[np.argsort(whole[shuffled], kind="stable")]
    first = np.flatnonzero(np.diff(whole[order], prepend=-2))  # of each age, in `order`
    if len(first) >= count:
        return order[first[np.linspace(0, len(first) - 1, count).astype(int)]]
    turn = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    chosen = order[np.argsort(turn, kind="stable")[:count]]
    return chosen[np.argsort(years[chosen], kind="stable")]


def _crops(dataset: Dataset) -> Image.Image:
    rows = over_ages(dataset.label_ages(), _CROPS)
    tiles = []
    for label, decoded in zip(dataset.age_ranges()[rows], images.decode_all(dataset.encoded(rows)), strict=True):
        picture = None if isinstance(decoded, images.BadImage) else decoded.image
        tiles.append((picture, [metrics.label_text(*label)]))
    return _sheet(tiles, 8, (112, 112), 1)


def _rejected(dataset: Dataset) -> Image.Image | None:
    root = layout.read_recipe(dataset.path).get("images")
    if root is None:
        return None
    with open(dataset.path / rejected.FILE, newline="", encoding="utf-8") as file:
        rows = [tuple(row[:2]) for row in itertools.islice(spreadsheets.rows(file), 1, _SEARCHED)]
    tiles, any_readable = [], False
    for name, reason in in_turn(rows, _REFUSED):
        picture = None
        try:
            picture = _fitted(images.load(read_inside(root, name)), _REFUSED_SIZE)  # 100 MB before
            any_readable = True
        except images.BadImage:  # a grey field stands for it
            pass
        tiles.append((picture, [foreign.shown(name)[-25:], *textwrap.wrap(foreign.shown(reason), 28)[:2]]))
    return _sheet(tiles, 6, _REFUSED_SIZE, 3) if any_readable else None


def in_turn(rows: Iterable[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Chooses rejected rows (name, reason): of each reason the first, then of each the second, and so on."""
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        some = by_reason.setdefault(rejected.kind_of(row[1]), [])
        if len(some) < count:
            some.append(row)
    turns = itertools.zip_longest(*by_reason.values())
    return [row for turn in turns for row in turn if row is not None][:count]


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Returns the whole picture, as large as fits into `size`; of a very narrow one, a line of it."""
    scale = min(most / side for most, side in zip(size, picture.size, strict=True))
    return picture.resize([max(1, round(scale * side)) for side in picture.size], Image.Resampling.BICUBIC)


def _sheet(tiles: Sequence[tuple[Image.Image | None, Sequence[str]]], columns: int, size: tuple[int, int], lines: int):
    """Draws pictures, fitted into `size` pixels, with up to `lines` lines of text below each."""
    width, height = size[0] + _GAP, size[1] + lines * _LINE + _GAP
    columns = min(columns, len(tiles))
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(tiles) // columns) * height + _GAP), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (picture, text) in enumerate(tiles):
        x, y = _GAP + number % columns * width, _GAP + number // columns * height
        fitted = Image.new("RGB", size, _EMPTY)
        if picture is not None:
            small = _fitted(picture, size)
            fitted.paste(small, ((size[0] - small.width) // 2, (size[1] - small.height) // 2))
        sheet.paste(fitted, (x, y))
        for line, words in enumerate(text):
            # The font has Latin letters only.
            canvas.text((x, y + size[1] + line * _LINE), words.encode("ascii", "replace"), fill="black", font=font)
    return sheet
