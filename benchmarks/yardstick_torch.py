"""PyTorch's side of `benchmarks.yardstick`: the recipe, plainly, and one switch for each thing a recipe leaves open.

    .venv-peers/bin/python -m benchmarks.yardstick_torch JOB.json

Its environment needs torch and torchvision alone. A job is {data, out, seed, switches, epochs, threads}: `data` is an
.npz of `benchmarks.yardstick`; the results are written to `out`: results.json and the predictions, .npz. `weights` and
`batches` are there with the switches of our weights and batches. A run that was killed goes on after its last epoch.
"""

import json
import math
import os
import pathlib
import sys
import time

import numpy as np
import torch
import torchvision

AGES = 101
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, PEAK, DECAY, CLIP, SIZE, RESIZED = 64, 0.02, 5e-4, 5.0, 64, 72
HEAD_EPOCHS, HEAD_PEAK = 4, 0.002
# What each switch of stage 2 changes; without one, the run is ours in PyTorch.
SWITCHES = {
    "fc_default": "FC as torch draws it, U(+-1/sqrt(512)), not N(0, 0.01)",
    "conv_default": "convolutions as torch draws them, not as torchvision's ResNet does",
    "drop_last": "last partial batch dropped, not filled from the next epoch",
    "no_norm_decay": "no decay of biases and BatchNorm",
    "batch_all": "one crop, flip, brightness and offset a batch, not one an image",
    "kl_mean": "L_ld as kl_div(reduction='mean') gives it, divided by the number of ages too; also in the heads",
    "half": "mean and std 0.5, not ImageNet's",
    "patches": "the paper's random patches, resized, in place of crops; evaluated at all of EVALUATED",
    "our_batches": "the batches of our pipeline in stage 2: the same images, order, crops, flips and light",
    "our_weights": "the initial weights of our run",
}
EVALUATED = (64, 67, 70, 72, 75, 78, 82)  # pixels that the whole image is resized to before the centre is cut
# The heads that are trained on one stage 2; the first is ours.
HEADS = {
    "ours": {},
    "square of the batch's mean error": {"square": "mean"},
    "new FC": {"new": True},
    "new FC, square of the batch's mean error": {"new": True, "square": "mean"},
    "no clipping": {"clip": math.inf},
    "last epoch kept": {"keep": "last"},
    "mae of training": {"mae": "train"},
    "no augmentation": {"augment": False},
    "no momentum": {"momentum": 0.0},
    "no augmentation, no momentum": {"augment": False, "momentum": 0.0},
}


def network(switches: set[str]) -> torch.nn.Module:
    model = torchvision.models.resnet18(num_classes=AGES)
    if "conv_default" in switches:
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.reset_parameters()
    if "fc_default" not in switches:
        torch.nn.init.normal_(model.fc.weight, std=0.01)
        torch.nn.init.zeros_(model.fc.bias)
    return model


def take(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Loads weights; only BatchNorm's counts of batches may be missing."""
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown or any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"the weights do not fit: {missing} are missing, {unknown} are unknown")


def normalised(images: torch.Tensor, switches: set[str]) -> torch.Tensor:
    """(B, H, W, 3) grey levels -> (B, 3, H, W) in the order of memory that is fast on a CPU."""
    mean, std = ((0.5,) * 3, (0.5,) * 3) if "half" in switches else (MEAN, STD)
    return ((images / 255 - torch.tensor(mean, dtype=images.dtype)) / torch.tensor(std, dtype=images.dtype)).permute(
        0, 3, 1, 2
    )


def augmented(images: torch.Tensor, switches: set[str]) -> torch.Tensor:
    """uint8 (B, 72, 72, 3) -> float (B, 64, 64, 3): crop, flip, brightness x 0.8-1.2 and +-20, in either order."""
    count, room = len(images), images.shape[1] - SIZE + 1
    place = torch.randint(0, room, (count, 2))
    flip = torch.rand(count) < 0.5
    factor, offset = 0.8 + 0.4 * torch.rand(count), 40 * torch.rand(count) - 20
    first = torch.rand(count) < 0.5
    if "batch_all" in switches:
        place, flip = place[:1].expand(count, 2), flip[:1].expand(count)
        factor, offset, first = (x[:1].expand(count) for x in (factor, offset, first))
    rows, columns = (place[:, i, None] + torch.arange(SIZE) for i in range(2))
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    if "patches" in switches:
        images = torch.stack([patch(image) for image in images])
        rows, columns = torch.arange(SIZE).expand(count, SIZE), columns - place[:, 1, None]
    images = images[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].float()
    factor, offset, first = (x.view(-1, 1, 1, 1) for x in (factor, offset, first))
    one = ((images * factor).clamp(0, 255) + offset).clamp(0, 255)
    other = ((images + offset).clamp(0, 255) * factor).clamp(0, 255)
    return torch.where(first, one, other).round()


def patch(image: torch.Tensor) -> torch.Tensor:
    """A random patch, resized: uint8 (H, W, 3) -> (SIZE, SIZE, 3)."""
    image = image.permute(2, 0, 1)
    box = torchvision.transforms.RandomResizedCrop.get_params(image, (0.5, 1.0), (3 / 4, 4 / 3))
    return torchvision.transforms.functional.resized_crop(image, *box, [SIZE, SIZE], antialias=True).permute(1, 2, 0)


def centres(images: torch.Tensor, side: int) -> torch.Tensor:
    """Resizes, if they have another size, and cuts the middle: uint8 (B, H, W, 3) -> float (B, SIZE, SIZE, 3)."""
    if images.shape[1] != side:
        wide = torch.nn.functional.interpolate(images.permute(0, 3, 1, 2), (side, side), mode="bicubic", antialias=True)
        images = wide.permute(0, 2, 3, 1)
    corner = (side - SIZE) // 2
    return images[:, corner : corner + SIZE, corner : corner + SIZE].float()


def terms(logits: torch.Tensor, ages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) equations 1 and 2: the divergence of the label distribution, and the absolute error."""
    labels = torch.arange(AGES, dtype=logits.dtype)
    wanted = (-0.5 * (labels - ages[:, None]) ** 2).log_softmax(-1)
    log_p = logits.log_softmax(-1)
    return (wanted.exp() * (wanted - log_p)).sum(-1), (log_p.exp() @ labels - ages).abs()


def predictions(model: torch.nn.Module, images: torch.Tensor, switches: set[str], side: int) -> np.ndarray:
    model.eval()
    dtype, found = model.fc.weight.dtype, []
    labels = torch.arange(AGES, dtype=dtype)
    with torch.inference_mode():
        for part in images.split(128):
            logits = model(normalised(centres(part, side).to(dtype), switches))
            found.append(logits.softmax(-1) @ labels)
    return torch.cat(found).double().numpy()


def optimiser(parameters, peak: float, steps: int, momentum: float = 0.9):
    sgd = torch.optim.SGD(parameters, peak, momentum=momentum, nesterov=momentum > 0, weight_decay=DECAY)
    return sgd, torch.optim.lr_scheduler.OneCycleLR(sgd, peak, total_steps=steps, cycle_momentum=False)


def groups_of(model: torch.nn.Module, switches: set[str]) -> list[dict]:
    """The parameters that decay, and those that do not."""
    parameters = list(model.parameters())
    if "no_norm_decay" not in switches:
        return [{"params": parameters}]
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


def order(count: int, steps: int, seed: int, drop_last: bool) -> torch.Tensor:
    """(steps, BATCH) places: one permutation after the other, whose ends are dropped or not."""
    generator = torch.Generator().manual_seed(seed)
    kept = count // BATCH * BATCH if drop_last else count
    epochs = -(-steps * BATCH // kept)
    stream = torch.cat([torch.randperm(count, generator=generator)[:kept] for _ in range(epochs)])
    return stream[: steps * BATCH].view(steps, BATCH)


class Run:
    """One stage 2 and the heads on it."""

    def __init__(self, job: dict):
        torch.set_num_threads(job["threads"])
        self.out = pathlib.Path(job["out"])
        self.out.mkdir(parents=True, exist_ok=True)
        self.seed, self.switches, self.epochs = job["seed"], set(job["switches"]), job["epochs"]
        if unknown := self.switches - {*SWITCHES}:
            raise SystemExit(f"unknown switches {sorted(unknown)}: one of {', '.join(SWITCHES)}")
        self.ld_weight = 1 / AGES if "kl_mean" in self.switches else 1.0
        self.side = SIZE if "patches" in self.switches else RESIZED
        self.weights = job.get("weights")
        self.stream = tuple(
            np.load(pathlib.Path(job["batches"]) / f"{name}.npy", mmap_mode="r")
            for name in ("images", "ages")
            if "batches" in job
        )
        with np.load(job["data"]) as data:
            self.images = {name: torch.from_numpy(data[f"{name}_images"]) for name in ("train", "validation", "test")}
            self.ages = {name: torch.from_numpy(data[f"{name}_ages"]).float() for name in self.images}

    def errors(self, model: torch.nn.Module, split: str) -> np.ndarray:
        return np.abs(self.predicted(model, split) - self.ages[split].numpy())

    def predicted(self, model: torch.nn.Module, split: str, side: int = 0) -> np.ndarray:
        return predictions(model, self.images[split], self.switches, side or self.side)

    def batch(self, step: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images and ages of a step of stage 2, of our stream or of these rows."""
        if self.stream:
            images, ages = (torch.from_numpy(np.array(of[step])).float() for of in self.stream)
        else:
            images, ages = augmented(self.images["train"][rows], self.switches), self.ages["train"][rows]
        return normalised(images, self.switches), ages

    def represent(self) -> dict:
        """Trains stage 2; each epoch is kept. Returns validation MAE by epoch."""
        torch.manual_seed(self.seed)
        model = network(self.switches).to(memory_format=torch.channels_last)
        if self.weights:
            with np.load(self.weights) as weights:
                take(model, {name: torch.from_numpy(weights[name]) for name in weights.files})
        drop_last = "drop_last" in self.switches
        count = len(self.ages["train"])
        in_epoch = count // BATCH if drop_last else -(-count // BATCH)
        sgd, schedule = optimiser(groups_of(model, self.switches), PEAK, in_epoch * self.epochs)
        places = order(count, in_epoch * self.epochs, self.seed, drop_last)
        found, begun = [], 0
        if (self.out / "state.pt").exists():
            state = torch.load(self.out / "state.pt", weights_only=False)
            model.load_state_dict(state["model"])
            sgd.load_state_dict(state["sgd"])
            schedule.load_state_dict(state["schedule"])
            found, begun = state["found"], len(state["found"])
        for epoch in range(begun, self.epochs):
            started = time.time(), time.process_time()
            torch.manual_seed(1000 * self.seed + epoch)
            model.train()
            for step in range(epoch * in_epoch, (epoch + 1) * in_epoch):
                images, ages = self.batch(step, places[step])
                divergence, error = terms(model(images), ages)
                sgd.zero_grad(set_to_none=True)
                (self.ld_weight * divergence + error).mean().backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                sgd.step()
                schedule.step()
            found.append(float(self.errors(model, "validation").mean()))
            torch.save(model.state_dict(), self.out / f"epoch{epoch + 1}.pt")
            state = {"model": model.state_dict(), "sgd": sgd.state_dict(), "schedule": schedule.state_dict()}
            torch.save({**state, "found": found}, self.out / "state.incomplete")
            os.replace(self.out / "state.incomplete", self.out / "state.pt")
            took = time.time() - started[0], time.process_time() - started[1]
            print(
                f"{self.out.name} epoch {epoch + 1}: validation MAE {found[-1]:.2f}, %.0f s, %.0f of CPU" % took,
                flush=True,
            )
        return found

    def kept(self, epoch: int) -> torch.nn.Module:
        model = network(self.switches).to(memory_format=torch.channels_last)
        model.load_state_dict(torch.load(self.out / f"epoch{epoch}.pt"))
        return model.eval()

    def drawn(self) -> torch.Tensor:
        """The rows of stage 3: an age uniformly, then an image of it."""
        ages = self.ages["train"].long()
        steps = -(-len(ages) // BATCH) * HEAD_EPOCHS
        torch.manual_seed(10_000 + self.seed)
        return torch.multinomial(1 / torch.bincount(ages)[ages].double(), steps * BATCH, replacement=True)

    def balanced(self, model: torch.nn.Module) -> torch.Tensor:
        """(draws, 512) features of the rows that were drawn, augmented anew each time."""
        path = self.out / "balanced.pt"
        if not path.exists():
            features = [
                self.features(model, normalised(augmented(self.images["train"][part], self.switches), self.switches))
                for part in self.drawn().split(BATCH)
            ]
            torch.save(torch.cat(features), path)
        return torch.load(path)

    def features(self, model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        fc, model.fc = model.fc, torch.nn.Identity()
        with torch.inference_mode():
            found = model(pixels)
        model.fc = fc
        return found.clone()

    def centres(self, model: torch.nn.Module, split: str) -> torch.Tensor:
        parts = (centres(part, self.side) for part in self.images[split].split(128))
        return torch.cat([self.features(model, normalised(part, self.switches)) for part in parts])

    def head(self, model: torch.nn.Module, maes: dict[str, float], crops: dict[str, torch.Tensor], how: dict) -> dict:
        """Trains a head as stage 3 does; returns ages by split, of the epoch with the lowest MAE + sigma."""
        drawn = self.drawn()
        features, ages = self.balanced(model), self.ages["train"][drawn]
        if how.get("augment") is False:
            features = crops["train"][drawn]
        torch.manual_seed(20_000 + self.seed)
        fc = torch.nn.Linear(512, AGES)
        if how.get("new"):
            torch.nn.init.normal_(fc.weight, std=0.01)
            torch.nn.init.zeros_(fc.bias)
        else:
            fc.load_state_dict(model.fc.state_dict())
        steps = len(ages) // BATCH
        sgd, schedule = optimiser(fc.parameters(), HEAD_PEAK, steps, how.get("momentum", 0.9))
        mae, labels = maes[how.get("mae", "validation")], torch.arange(AGES, dtype=torch.float32)
        best, kept = math.inf, {}
        for step in range(steps):
            rows = slice(step * BATCH, (step + 1) * BATCH)
            divergence, error = terms(fc(features[rows]), ages[rows])
            square = (error.mean() - mae) ** 2 if how.get("square") == "mean" else ((error - mae) ** 2).mean()
            sgd.zero_grad(set_to_none=True)
            (self.ld_weight * divergence.mean() + square).backward()
            torch.nn.utils.clip_grad_norm_(fc.parameters(), how.get("clip", CLIP))
            sgd.step()
            schedule.step()
            if (step + 1) % (steps // HEAD_EPOCHS):
                continue
            with torch.inference_mode():
                found = {
                    name: (fc(crops[name]).softmax(-1) @ labels).double().numpy() for name in ("validation", "test")
                }
            score = aim(self.ages["validation"].numpy(), found["validation"])
            if score < best or how.get("keep") == "last":
                best, kept = score, found
        return kept

    def whole(self) -> None:
        found = self.represent()
        results = {"validation_mae": found, "stages": []}
        for keep, epoch in (("best", 1 + int(np.argmin(found))), ("last", self.epochs)):
            if keep == "last" and epoch == 1 + int(np.argmin(found)):
                results["last_is_best"] = True
                continue
            model = self.kept(epoch)
            for side in EVALUATED if "patches" in self.switches else (self.side,):
                ages = {name: self.predicted(model, name, side) for name in ("validation", "test")}
                where = f" at {side}" if side != self.side else ""
                results["stages"].append(self.written(f"represent, {keep} epoch{where}", ages))
        model = self.kept(1 + int(np.argmin(found)))
        maes = {"validation": min(found), "train": float(self.errors(model, "train").mean())}
        results["maes"] = maes
        crops = {name: self.centres(model, name) for name in self.images}
        for name, how in HEADS.items():
            results["stages"].append(self.written(f"classify, {name}", self.head(model, maes, crops, how)))
        (self.out / "results.json").write_text(json.dumps(results, indent=1))

    def written(self, name: str, ages: dict[str, np.ndarray]) -> dict:
        file = name.replace(" ", "_").replace(",", "").replace("'", "") + ".npz"
        np.savez(self.out / file, **ages)
        return {"name": name, "file": file}


def aim(ages: np.ndarray, found: np.ndarray) -> float:
    """MAE + sigma, by which stage 3's epoch is chosen: groups 1-10, ..., 61-70, 71-81."""
    error = np.abs(found - ages)
    group = np.minimum((ages - 1) // 10, 7)
    return error.mean() + math.sqrt(np.mean([(error[group == g].mean() - error.mean()) ** 2 for g in range(8)]))


def steps(job: dict) -> None:
    """Takes steps from given weights; a job is {data, out, dtype, mae, total: steps of the schedule}.

    `data` holds weights by torch's names, images (steps, BATCH, SIZE, SIZE, 3), ages (steps, BATCH) and images of a
    validation split, whose ages are predicted at the end. Without a mae the steps are stage 2's, with one stage 3's.
    """
    with np.load(job["data"]) as data:
        given = {name: torch.from_numpy(data[name]) for name in data.files}
    images, ages, validation = (given.pop(name) for name in ("images", "ages", "validation"))
    model = torchvision.models.resnet18(num_classes=AGES).to(getattr(torch, job["dtype"]))
    take(model, given)
    head_only = job["mae"] is not None
    model.train(not head_only).requires_grad_(not head_only)
    parameters = list((model.fc if head_only else model).requires_grad_().parameters())
    sgd, schedule = optimiser(parameters, HEAD_PEAK if head_only else PEAK, job["total"])
    losses, norms = [], []
    for pixels, target in zip(images, ages, strict=True):
        pixels, target = pixels.to(model.fc.weight.dtype), target.to(model.fc.weight.dtype)
        divergence, error = terms(model(normalised(pixels, set())), target)
        loss = (divergence + ((error - job["mae"]) ** 2 if head_only else error)).mean()
        model.zero_grad(set_to_none=True)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, CLIP)))
        losses.append(loss.item())
        sgd.step()
        schedule.step()
    found = {"losses": losses, "norms": norms, "predicted": predictions(model, validation, set(), RESIZED)}
    np.savez(job["out"], **found, **{k: v.numpy() for k, v in model.state_dict().items()})


def draw(job: dict) -> None:
    """Draws what a run draws; a job is {data: a test card, out, seed, draws: batches, images, steps: of the order}."""
    with np.load(job["data"]) as data:
        card = torch.from_numpy(data["card"]).expand(BATCH, RESIZED, RESIZED, 3)
    torch.manual_seed(job["seed"])
    weights = {name: value.numpy() for name, value in network(set()).state_dict().items()}
    cards = [augmented(card, set()).to(torch.uint8).numpy() for _ in range(job["draws"])]
    places = order(job["images"], job["steps"], job["seed"], False).numpy()
    np.savez(job["out"], cards=np.stack(cards), order=places, **weights)


if __name__ == "__main__":
    given = json.loads(pathlib.Path(sys.argv[1]).read_text())
    if "switches" in given:
        Run(given).whole()
    elif "total" in given:
        steps(given)
    else:
        draw(given)
