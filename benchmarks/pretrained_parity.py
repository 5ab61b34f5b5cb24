"""Published layouts against their own networks: random weights go through a file, pooled features are compared.

    python -m benchmarks.pretrained_parity                         all; in `make check-long`
    python -m benchmarks.pretrained_parity efficientnet_v2_l

Float64, images of 65 x 64 pixels (an odd and an even side). EfficientNetV2 is held against Keras (a .keras file and one
in timm's layout), ResNet against torchvision's stated in TensorFlow, EfficientNet-Lite0, the ViTs and ConvNeXt against
timm's in the peers' environment (`make setup-peers`; without it these rows are left out). A ViT sees 224 pixels, and 96
and 240, for which its position embeddings are interpolated. Fails where a relative error is above 1e-10, or where
reading a file takes more than 10 seconds, or adds more than three times its size to the process.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import foreign_models as foreign
from benchmarks import harness
from lae_jax.models import pretrained
from lae_jax.runtime import console

NAMES = [f"efficientnet_v2_{size}" for size in "sml"] + ["efficientnet_lite0", "resnet18", "resnet50"]
NAMES += ["vit_s16", "vit_b16", "vit_b16_clip", "convnext_tiny"]
PEERS = pathlib.Path(".venv-peers/bin/python")
SECONDS, SIZES = 10.0, 3.0
_MEASURE = """
import sys, time
from lae_jax.models import pretrained
def memory(what):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(what))
before, start = memory("VmRSS"), time.perf_counter()
pretrained.load(*sys.argv[1:])
print(time.perf_counter() - start, memory("VmHWM") - before, memory("VmHWM"))
"""


def cost(path: pathlib.Path, model_name: str) -> tuple[float, float, float]:
    """Of reading a file in a new process: seconds, and peak bytes, what reading added and in all."""
    command = [sys.executable, "-c", _MEASURE, str(path), model_name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(float(word) for word in output.split())


def rows(name: str, folder: pathlib.Path):
    """(layout, file, relative error) of a model; the file is there until the next is asked for."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (4, 65, 64, 3)).astype(np.float64)
    path = folder / "model.safetensors"
    if name.startswith("resnet"):
        depth, images = int(name.removeprefix("resnet")), pixels / 127.5 - 1
        state = foreign.resnet_state(depth, images)
        foreign.write_safetensors(path, state)
        theirs = foreign.resnet_features(depth, state, images)
        yield "torchvision", path, foreign.relative_error(ours_of(path, name, images), theirs)
        return
    if name.startswith(("efficientnet_lite", "vit", "convnext")):
        if not PEERS.exists():
            print(f"{name} left out: there is no {PEERS}; make setup-peers installs it", file=sys.stderr)
            return
        images = (pixels - 127) / 128
        if not name.startswith("vit"):
            yield from rows_of_timm(name, images, folder)
            return
        for side in (224, 96, 240):
            images = rng.standard_normal((1, side, side, 3))
            for layout, *row in rows_of_timm(name, images, folder):
                yield f"{layout}, {side} px", *row
        return
    with foreign.keras_in_float64() as keras:
        model = foreign.keras_model(keras, name[-1], pixels)
        theirs = np.asarray(model(pixels))
        model.save(folder / "model.keras")
    images = pixels / 128 - 1
    yield "Keras", folder / "model.keras", foreign.relative_error(ours_of(folder / "model.keras", name, images), theirs)
    (folder / "model.keras").unlink()
    foreign.write_safetensors(path, foreign.timm_state(model))
    yield "timm", path, foreign.relative_error(ours_of(path, name, images), theirs)


def rows_of_timm(name: str, images: np.ndarray, folder: pathlib.Path):
    """The rows of a model that is held against timm's, one for each library whose names it is read under."""
    np.save(folder / "images.npy", images)
    network = pretrained.naming.ARCHITECTURES[name]
    subprocess.run([PEERS, "-m", "benchmarks.timm_features", network, str(folder)], check=True)
    theirs = np.load(folder / "features.npy")
    for path in sorted(folder.glob("*.safetensors")):
        yield path.stem, path, foreign.relative_error(ours_of(path, name, images), theirs)


def ours_of(path: pathlib.Path, name: str, images: np.ndarray) -> np.ndarray:
    return foreign.our_features(name, pretrained.load(path, name), images)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help=f"models (default: {' '.join(NAMES)})")
    lines, failed, start = [], False, time.perf_counter()
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            for layout, path, error in rows(name, pathlib.Path(folder)):
                seconds, added, peak = cost(path, name)
                size = path.stat().st_size
                failed |= not error <= 1e-10 or seconds > SECONDS or added > SIZES * size
                numbers = [f"{size / 1e6:.0f}", f"{seconds:.1f}", f"{added / size:.2f}", f"{peak / size:.2f}"]
                lines.append([name, layout, f"{error:.1e}", *numbers])
                print(*lines[-1], flush=True)
    header = ["model", "layout", "relative error", "file, MB", "read, s", "added peak / file", "peak / file"]
    print(console.table(header, lines))
    print(f"{time.perf_counter() - start:.0f} seconds")
    sys.exit(failed)


if __name__ == "__main__":
    main()
