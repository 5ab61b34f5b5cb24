"""Stage 1 on 2,000 drawn people: do class weights that are split over 8 devices verify as well as copies?

    python -m benchmarks.drawn_people --out build/drawn_people

Trains a small model at 32 px on 8 simulated devices three times, with the same seed: each device has all class weights
(copied), a part of them (split), or a part of which a tenth takes part in a step (sampled). Then it verifies 300 other
people on the same pairs. Prints the equal error rate, the area under the curve and the true accept rates with 95 %
intervals over people, and the paired differences to copies. A run that is finished is not trained again.
"""

import pathlib

import numpy as np

from benchmarks import harness
from lae_jax.runtime import start

SIDES = {"copied": ("copied", 1.0), "split": ("split", 1.0), "sampled": ("split", 0.1)}
DEVICES, PIXELS, PAIRS = 8, 32, 60_000
# 26 of the 256 class weights of a device take part where a tenth is sampled: a batch may not have more images.
BATCH = 24
RATES = [1e-2, 1e-3]


def prepared(folder: pathlib.Path) -> pathlib.Path:
    """Draws 2,000 people of about six images to train on, and 300 to verify."""
    from lae_jax import prepare

    if not (folder / "dataset_info.json").exists():
        prepare.prepare({"train": "12000", "validation": "1800"}, folder, reader="synthetic", size=36, workers=1)
    return folder


def train(name: str, data: pathlib.Path, out: pathlib.Path, epochs: float) -> pathlib.Path:
    """Trains a side, unless it is finished, and returns its folder."""
    from lae_jax.configs import pretrain
    from lae_jax.train import loop

    config, run = pretrain.get_config(), out / name
    if (run / "summary.json").exists():
        return run
    config.workdir, config.init_from = str(run), "scratch"
    config.data.path, config.data.image_size, config.data.threads = str(data), PIXELS, 1
    config.model.name, config.model.embedding_size = "efficientnet_v2_pico", 64
    config.model.class_weights, config.model.class_sampling = SIDES[name]
    config.loss.scale, config.loss.margin = 32.0, 0.2
    config.optim.schedule, config.optim.cycle_momentum, config.optim.clip_norm = "one_cycle", False, 5.0
    config.optim.base_learning_rate = 0.05 * 256 / BATCH
    config.batch_size, config.eval_batch_size = BATCH, 200
    config.epochs = config.eval_epochs = epochs
    config.log_steps, config.save_steps = 100, 200
    loop.train(config)
    return run


def embeddings(run: pathlib.Path, data: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings of all validation images, and their people."""
    from lae_jax import stages
    from lae_jax.data import records
    from lae_jax.runs import build, fields, inputs
    from lae_jax.runtime import checkpoints, parallel

    checkpoint, dataset, par = checkpoints.load_run(run), records.open_dataset(data), parallel.Parallel()
    config, stage = fields.from_json(checkpoint.meta["config"]), stages.PRETRAIN
    rows = dataset.rows("validation")
    forward = build.forward(config, stage, build.model(config, stage, checkpoint.meta["num_outputs"]), par)
    outputs = inputs.outputs_of(config, dataset, rows, forward, par.place(checkpoint.variables), par, 200)
    return outputs, dataset.column("identity")[rows].astype(str)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the data set and the runs")
    parser.add_argument("--epochs", type=float, default=3.0)
    args = parser.parse_args()
    start.devices(DEVICES)
    from lae_jax.evaluate import pair_scores
    from lae_jax.report import bootstrap
    from lae_jax.stages import verification

    data = prepared(args.out / "people")
    content, rows, drawn = {"epochs": args.epochs}, [], {}
    for name in SIDES:
        found, identities = embeddings(train(name, data, args.out, args.epochs), data)
        pairs = verification.draw_pairs(identities, PAIRS)
        both = np.concatenate([pairs.genuine, pairs.impostor])
        same = np.arange(len(both)) < len(pairs.genuine)
        person = np.unique(identities, return_inverse=True)[1][pairs.images]
        left, right = (found[pairs.images[places]] for places in both.T)
        values, replicates = pair_scores.estimates(verification.cosine(left, right), same, person[both], RATES)
        error = verification.score(found[pairs.images], pairs).equal_error_rate
        drawn[name] = replicates
        row, content[name] = [name, f"{error:.1%}"], {"equal_error_rate": error, "pairs": [int(same.sum()), len(same)]}
        for place, title in enumerate(["area_under_curve", *(f"true_accept_rate_{rate:g}" for rate in RATES)]):
            low, high = bootstrap.interval(values[place], replicates[:, place])
            apart = values[place] - content["copied"].get(title, [values[place]])[0]
            ends = bootstrap.interval(apart, replicates[:, place] - drawn["copied"][:, place])
            content[name][title] = [values[place], low, high, apart, *ends]
            row += [f"{values[place]:.3f} ({low:.3f} to {high:.3f})"]
            row += [f"{apart:+.3f} ({ends[0]:+.3f} to {ends[1]:+.3f})" if name != "copied" else ""]
        rows.append(row)
    titles = ["AUC", *(f"TAR at {rate:g}" for rate in RATES)]
    header = ["class weights", "EER", *(word for title in titles for word in (title, "- copied"))]
    harness.show(content, header, rows)


if __name__ == "__main__":
    harness.run(main)
