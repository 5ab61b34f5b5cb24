"""Verification of people on a list of pairs: run a checkpoint of stage 1 over its images, score, write the folder."""

import dataclasses
import io
import itertools
import logging
from collections.abc import Iterator

import numpy as np
from etils import epath

from lae_jax import stages
from lae_jax.data import people, stored
from lae_jax.evaluate import pair_scores
from lae_jax.evaluate.pair_list import PairList
from lae_jax.faces import crops, images
from lae_jax.faces.images import BadImage
from lae_jax.report import evaluation_page, loading, page, wording
from lae_jax.runs import build, fields, inference, precision
from lae_jax.runs.preprocessing import Input
from lae_jax.runtime import console, files, origin, parallel
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.foreign import quoted, spreadsheets
from lae_jax.stages import verification

logger = logging.getLogger("lae_jax")

PAIRS = "pairs.csv"
SPLIT = "pairs"  # in report.json
_READ_TOGETHER = 64


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the images of a list become inputs of a model.

    Attributes:
      recipe: How faces are cut; of crops, how they are stored.
      crop: Crop contract of the result.
      is_other: Whether the model was trained on faces that were cut in another way.
      is_unknown: Whether that is unknown.
    """

    recipe: crops.Recipe
    crop: dict
    is_other: bool = False
    is_unknown: bool = False


def cut_of(checkpoint: origin.Checkpoint, found: PairList, aligned: bool, allow_other_crop: bool) -> Cut:
    """Returns how the images of a list are cut for a run.

    The images of a .bin file are crops, and so are those for a run that was trained on ready-made crops. Other images
    are photographs: the face in their middle is cut by the crop contract of the run, and where none is found, the
    middle of the photograph.

    Args:
      checkpoint: A checkpoint of the run.
      found: The list.
      aligned: The images are crops that match the crop contract of the run.
      allow_other_crop: Continue where the crops are others than those of the run.

    Raises:
      InputError: They are others, or this version cuts faces in another way.
    """
    contract, ready = checkpoint.meta["crop"], crops.Recipe()
    if aligned:
        return Cut(ready, contract)
    if contract == crops.UNKNOWN:
        return Cut(ready, crops.UNKNOWN, is_unknown=True)
    if found.encoded is not None:
        if not allow_other_crop:
            raise InputError(
                f"{checkpoint.workdir} was trained on other crops than {found.path} holds"
                f" ({crops.differing(contract, crops.UNKNOWN)}): use a list of photographs, or add --aligned if the"
                " crops match the run's, or --allow-other-crop (the scores may be low)"
            )
        return Cut(ready, crops.UNKNOWN, is_other=True)
    recipe = crops.Recipe.of_contract(contract, allow_other_crop, faces="centre", undetected="centre")
    return Cut(recipe, recipe.contract(), is_other=recipe.contract() != contract)


def embeddings(
    checkpoint: origin.Checkpoint, found: PairList, root: str | None, cut: Cut, flip: bool, batch_size: int | None
) -> tuple[np.ndarray, int]:
    """Returns the embeddings of the images of a list, (N, D), and the number of photographs without a face.

    Args:
      checkpoint: A checkpoint of a run of stage 1.
      found: The list.
      root: Folder of its images; None for a .bin file.
      cut: How its images are cut.
      flip: Average the embeddings of the images and of their mirror images.
      batch_size: Images in a batch, over all devices, rounded up (default: the run's eval_batch_size).

    Raises:
      InputError: An image cannot be used.
    """
    config = precision.for_inference(fields.from_json(checkpoint.meta["config"]))
    par, stage, count = parallel.Parallel(form=config.parallel), stages.PRETRAIN, len(found.names)
    size = min(batch_size or config.eval_batch_size, count)
    size = -(-size // par.device_count) * par.device_count
    counts = crops.Counts()
    pixels = _pixels(found, root, cut.recipe, Input(config.data.image_size, config.data.resize), counts)
    module = build.model(config, stage, checkpoint.meta["num_outputs"])
    outputs = inference.over_batches(
        build.forward(config, stage, module, par, flip=flip),
        par.place(checkpoint.variables),
        _batches(pixels, count, size),
        count,
        par=par,
        total=-(-count // size),
    )
    return outputs, counts.without_face


def _pixels(
    found: PairList, root: str | None, recipe: crops.Recipe, to_input: Input, counts: crops.Counts
) -> Iterator[np.ndarray]:
    """Yields the input of each image, made as `prepare` and an evaluation make it."""
    records = stored.stored(found.rows(root), 0, found.read, recipe)
    while some := [*itertools.islice(records, _READ_TOGETHER)]:
        for _, name, record in some:
            if isinstance(record, BadImage):
                raise InputError(f"{found.path}: {quoted(name, 120)} cannot be used: {record}. Correct the image")
            counts.without_face += record.columns["cut_by"] == "centre"
        for decoded in images.decode_all([record.encoded for *_, record in some]):
            yield to_input.pixels(decoded.image)


def _batches(pixels: Iterator[np.ndarray], count: int, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches; the last one is filled with its last image at places from `count` on."""
    for first in range(0, count, size):
        batch = [*itertools.islice(pixels, size)]
        batch += batch[-1:] * (size - len(batch))
        yield {"image": np.stack(batch), "position": first + np.arange(size)}


def write(
    checkpoint: origin.Checkpoint, found: PairList, outputs: np.ndarray, cut: Cut, folder: epath.Path, **told
) -> dict:
    """Scores a list and writes the folder of the evaluation: report.json, report.html and pairs.csv.

    Args:
      checkpoint: The checkpoint.
      found: The list.
      outputs: (N, D) embeddings of its images.
      cut: How its images were cut.
      folder: The folder.
      **told: Further fields of report.json.

    Returns:
      The content of report.json.

    Raises:
      InputError: The embeddings are not finite.
    """
    genuine, impostor = found.pairs[found.same], found.pairs[~found.same]
    error = verification.score(outputs, verification.Pairs(np.arange(len(outputs)), genuine, impostor))
    similarities = verification.cosine(*(outputs[side] for side in found.pairs.T))
    numbers = None if found.people is None else np.unique(found.people, return_inverse=True)[1][found.pairs]
    names = np.array([] if found.people is None else found.people, object)
    shared = people.compare(checkpoint.meta.get("identities"), names, found.digest)
    report = {
        "equal_error_rate": error.equal_error_rate,
        **pair_scores.score(similarities, found.same, found.folds, numbers),
        "images": len(found.names),
        "run": str(checkpoint.workdir),
        "step": checkpoint.step,
        "stage": stages.PRETRAIN.name,
        "model": checkpoint.meta["model"],
        "data": found.path,
        "data_hash": found.digest,
        "same_data_as_training": False,
        "split": SPLIT,
        "protocol": "a list of pairs",
        "crop": cut.crop,
        "other_crop_than_training": cut.is_other,
        "unknown_crops": cut.is_unknown,
        "same_people_on_both_sides": len(shared["shared"]) if shared["compared"] else None,
        **told,
    }
    with files.together(folder, loading.REPORT, checkpoint.workdir) as place:
        files.write_text(place / PAIRS, _table(found, similarities, report["fold_threshold"]))
        files.write_json(place / loading.REPORT, report)
        page.write(place / loading.PAGE, evaluation_page.of_pairs(checkpoint.workdir, report))
    return report


def _table(found: PairList, similarities: np.ndarray, thresholds: list[float]) -> str:
    """The text of pairs.csv, one line per pair."""
    text = io.StringIO(newline="")
    writer = spreadsheets.Writer(text)
    writer.writerow(["first", "second", "same", "fold", "similarity", "accepted"])
    accepted = similarities >= np.array(thresholds)[np.unique(found.folds, return_inverse=True)[1]]
    for pair, *values in zip(
        found.pairs.tolist(),
        found.same.astype(int).tolist(),
        found.folds.tolist(),
        similarities.tolist(),
        accepted.astype(int).tolist(),
        strict=True,
    ):
        writer.writerow([*(found.names[place] for place in pair), *values])
    return text.getvalue()


def place(run: epath.Path, found: PairList, suffix: str) -> epath.Path:
    """Returns the folder of the evaluation: RUN/evaluation/<name of the list>-pairs<suffix>.

    Where that is the evaluation of another list with the same name, a number is added.
    """
    name = f"{epath.Path(found.path).stem}-{SPLIT}{suffix}"
    folders = (run / "evaluation" / f"{name}{f'-{number}' * (number > 1)}" for number in itertools.count(1))
    return next(folder for folder in folders if _hash(folder) in (None, found.digest))


def _hash(folder: epath.Path) -> str | None:
    try:
        return loading.read_report(folder)["data_hash"] if (folder / loading.REPORT).exists() else None
    except InputError as error:
        logger.warning("%s. It is replaced", error)
        return None


def tell(report: dict) -> list[str]:
    """Returns the scores of a list, as lines for a terminal."""
    rows = [(title, score.text, score.interval or "-") for title, score in wording.of_pairs(report)]
    lines = console.table(["score", "value", "95 % interval"], rows).splitlines()
    return [*lines, "", *wording.about_pairs(report), *wording.warnings(report)]
