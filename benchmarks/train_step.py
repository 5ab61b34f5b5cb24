"""Images a second of the train and the forward step, in turns with timm's model under PyTorch, on one device.

    python -m benchmarks.train_step --out build/step                    stages 1 to 3 and inference of EfficientNetV2-M
    python -m benchmarks.train_step --out build/step --model efficientnet_v2_tiny --image_size 64 --modes "stage 2"
    python -m benchmarks.train_step --out build/step --variants         other forms and flags against the default

Runs without TensorFlow, TFDS, ml_collections and clu. PyTorch's side runs in the peers' environment (`make
setup-peers`) if that exists, else in this one; without torch and timm our side runs alone. Both sides have a process
each, the same cores and batch, and take turns; on an accelerator our process may take `--memory_share` of its memory,
and the batch is halved until both fit. Writes OUT/train_step.json after every row, so that a run that is stopped leaves
what it measured.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable

from benchmarks import harness, sides, step_variants
from lae_jax.models import BACKBONES, efficientnet
from lae_jax.runtime import console

PEERS = pathlib.Path(".venv-peers/bin/python")
MODES = ("stage 2", "inference", "stage 3", "stage 1")  # the most asked for first: --minutes may end them
TIMM = (
    {f"efficientnet_v2_{size}": f"tf_efficientnetv2_{size}" for size in "sml"}
    | {f"resnet{depth}": f"resnet{depth}" for depth in (18, 50)}
    | {"efficientnet_lite0": "tf_efficientnet_lite0", "convnext_tiny": "convnext_tiny"}
    | {"vit_s16": "vit_small_patch16_224", "vit_b16": "vit_base_patch16_224"}
    | {"vit_b16_clip": "vit_base_patch16_clip_quickgelu_224"}
)


# What is printed of a row: key, format, factor.
COLUMNS = {
    "batch": ("batch", "d"),
    "images/s": ("images_s", ".1f"),
    "of CPU time": ("images_cpu_s", ".1f"),
    "ratio": ("ratio", ".2f"),
    "of CPU time ": ("cpu_ratio", ".2f"),
    "peak, GB": ("peak_bytes", ".2f", 1e-9),
    "compile, s": ("compile_seconds", ".0f"),
    "GFLOP/image": ("gflop_image", ".2f"),
    "by XLA": ("xla_gflop_image", ".2f"),
}


def timm_architecture(architecture: efficientnet.Architecture) -> dict:
    """A member of the family in the words of timm's builder."""

    def words(group: efficientnet.BlockGroup) -> str:
        kind = "ir" if not group.fused else "er" if group.expand > 1 else "cn"
        text = f"{kind}_r{group.blocks}_k3_s{group.stride}_e{group.expand}_c{group.features}"
        return text + {"ir": "_se0.25", "er": "", "cn": "_skip"}[kind]

    blocks = [[words(group)] for group in architecture.stages]
    drop_path = architecture.stochastic_depth
    return {"blocks": blocks, "stem": architecture.stem, "top": architecture.top, "drop_path": drop_path}


def make_case(args: argparse.Namespace, mode: str, batch: int, **changes) -> dict:
    architecture = BACKBONES[args.model][1]
    small = args.model.startswith("efficientnet") and args.model not in TIMM
    case = {
        "model": args.model, "mode": mode, "image_size": args.image_size, "batch": batch, "dtype": args.dtype,
        "identities": args.identities, "remat": False, "variant": "", "timm": TIMM.get(args.model),
        "architecture": timm_architecture(architecture) if small else None, "dropout": architecture.dropout,
        "compile": False, "channels_last": True,
    }  # fmt: skip
    return case | changes


def begin(side: sides.Side, case: dict, smallest: int = 1) -> tuple[dict, int]:
    """Starts a case at its batch, or at the largest half of it that fits. Returns its facts and that batch."""
    while True:
        try:
            return side.ask("start", case=case), case["batch"]
        except sides.OutOfMemory as error:
            print(f"{side.name}: {case['mode']} does not fit at batch {case['batch']}: {error}"[:160], file=sys.stderr)
            if case["batch"] // 2 < smallest:
                raise
            case = case | {"batch": case["batch"] // 2}


def race(ours: sides.Side, ours_case: dict, other: sides.Side | None, other_case: dict, turns: int) -> list[dict]:
    """Rows of both sides at the largest batch that both can take; of ours alone where the other one cannot."""
    facts, batch = {}, ours_case["batch"]
    facts[ours.name], batch = begin(ours, ours_case)
    racing = [ours]
    if other is not None:
        try:
            facts[other.name], fits = begin(other, other_case | {"batch": batch})
            racing.append(other)
            if fits < batch:
                batch = fits
                facts[ours.name], _ = begin(ours, ours_case | {"batch": batch}, batch)
        except sides.SideError as error:
            print(f"{other.name} left out: {error}", file=sys.stderr)
    found = sides.take_turns(racing, turns)
    rows = []
    for side in racing:
        seconds, cpu = found[side.name]["seconds"], found[side.name]["cpu_seconds"]
        rates = {"images_s": batch / seconds, "images_cpu_s": batch / cpu}
        rows.append({"side": side.name, "mode": ours_case["mode"], "batch": batch, **rates, **facts[side.name]})
    rows[0]["tflops"] = rows[0]["gflop_image"] * rows[0]["images_s"] / 1e3
    if len(rows) == 2:
        rows[0]["ratio"] = rows[0]["images_s"] / rows[1]["images_s"]
        rows[0]["cpu_ratio"] = rows[0]["images_cpu_s"] / rows[1]["images_cpu_s"]
    if other is not None:  # ours keeps its program for the next race
        other.ask("stop")
    return rows


def table(rows: list[dict]) -> str:
    def cell(row: dict, key: str, form: str, scale: float = 1.0) -> str:
        value = row.get(key)
        return "" if value is None else format(value if form == "d" else scale * value, form)

    lines = []
    for row in rows:
        peak = row.get("peak_tflops")
        share = f"{row['tflops'] / peak:.1%}" if peak and "tflops" in row else ""
        cells = [cell(row, *column) for column in COLUMNS.values()]
        lines.append([f"{row['mode']}, {row['side']}", *cells, share])
    return console.table(["", *COLUMNS, "of the peak"], lines)


def measure_modes(args: argparse.Namespace, ours: sides.Side, peer: sides.Side | None, add: Callable) -> None:
    """Every mode against each of PyTorch's ways."""
    ways = {"compiled": {"compile": True}, "eager": {}}
    if args.platform == "cpu":
        ways = {"eager, channels last": {}, "eager, channels first": {"channels_last": False}}
    for mode in args.modes:
        for way, changes in ways.items() if peer else {"": {}}.items():
            if peer:
                peer.name = f"PyTorch, {way}"
            case = make_case(args, mode, args.batch)
            if not add(lambda case=case, changes=changes: race(ours, case, peer, case | changes, args.turns)):
                return
        if args.profile:
            ours.ask("start", case=make_case(args, mode, args.batch))
            ours.ask("profile", folder=str(args.out.resolve() / f"profile-{mode.replace(' ', '-')}"))


def measure_variants(args: argparse.Namespace, ours: sides.Side, side: Callable, add: Callable) -> None:
    """Every variant, in a process of its own, against the default."""
    shapes = ours.ask("depthwise", model=args.model, image_size=args.image_size, batch=args.batch, dtype=args.dtype)
    lines = [[str(row["shape"]), row["kernel"], row["stride"], row["xla"], row["shifted"]] for row in shapes["rows"]]
    print(
        console.table(["depthwise, forward and backward", "kernel", "stride", "XLA's, ms", "shifted, ms"], lines),
        end="\n\n",
    )
    (args.out / "depthwise.json").write_text(json.dumps(shapes["rows"], indent=1))
    for mode in args.modes:
        for name, variant in step_variants.named(args.platform).items():
            flags = f"{os.environ.get('XLA_FLAGS', '')} {variant.flags}".strip()
            with side(name, "benchmarks.jax_side", {"XLA_FLAGS": flags}) as other:
                case = make_case(args, mode, args.batch)
                changed = case | {"variant": name} | variant.case
                if not add(
                    lambda other=other, case=case, changed=changed: race(ours, case, other, changed, args.turns)
                ):
                    return


def parse_args() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the results")
    parser.add_argument("--model", default="efficientnet_v2_m", choices=sorted(BACKBONES))
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument(
        "--batch", type=int, help="(default: 256 on an accelerator, 64 up to 96 pixels on a CPU, else 4)"
    )
    parser.add_argument("--dtype", help="of the computation (default: bfloat16 on an accelerator, float32 on a CPU)")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--identities", type=int, default=10_575, help="of stage 1 (default: CASIA-WebFace's)")
    peers = str(PEERS) if PEERS.exists() else sys.executable
    parser.add_argument("--peer_python", default=peers, help="interpreter with torch and timm; '': none (default:"
                        f" {PEERS} if it exists, else this one)")  # fmt: skip
    parser.add_argument("--cores", type=int, default=0, help="of both sides, 0: all; with one, CPU time tells even on a"
                        " loaded machine")  # fmt: skip
    parser.add_argument("--turns", type=int, default=7, help="of a second each")
    parser.add_argument("--minutes", type=float, default=0, help="no row is begun after so many, 0: all of them")
    parser.add_argument("--memory_share", type=float, default=0.45, help="of an accelerator's memory, for each process")
    parser.add_argument("--variants", action="store_true", help="other forms and flags instead of PyTorch")
    parser.add_argument("--profile", action="store_true", help="also write traces for TensorBoard and Perfetto")
    return parser.parse_args()


def complete(args: argparse.Namespace, platform: str) -> None:
    """Fills in the defaults that depend on the device."""
    accelerator = platform != "cpu"
    args.platform = platform
    args.dtype = args.dtype or ("bfloat16" if accelerator else "float32")
    args.batch = args.batch or (256 if accelerator else 64 if args.image_size <= 96 else 4)


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began, rows = time.perf_counter(), []

    def side(name: str, module: str, env: dict, python: str = sys.executable) -> sides.Side:
        return sides.Side(name, [python, "-m", module], env, args.cores)

    def add(measure: Callable[[], list[dict]]) -> bool:
        """Whether there was time for a row; one that fails is named and left out."""
        if args.minutes and time.perf_counter() - began > 60 * args.minutes:
            print(f"stopped after {args.minutes} minutes", file=sys.stderr)
            return False
        try:
            rows.extend(measure())
        except sides.SideError as error:
            print(f"left out: {error}", file=sys.stderr)
        report = {"arguments": {k: str(v) for k, v in vars(args).items()}, "rows": rows}
        (args.out / "train_step.json").write_text(json.dumps(report, indent=1))
        return True

    # Another process needs the rest of the memory; XLA would take three quarters at once and never give it back.
    memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": str(args.memory_share)}
    with side("lae_jax", "benchmarks.jax_side", memory) as ours:
        complete(args, ours.ask("platform")["platform"])
        if args.variants:
            measure_variants(args, ours, lambda n, m, env: side(n, m, {**memory, **env}), add)
        elif not args.peer_python:
            measure_modes(args, ours, None, add)
        else:
            with side("PyTorch", "benchmarks.torch_side", {}, args.peer_python) as peer:
                measure_modes(args, ours, peer if answers(peer) else None, add)
    print(f"{args.model} at {args.image_size} px, {args.dtype}, {rows[0]['device'] if rows else 'nothing measured'}")
    print(table(rows))
    rates = {row["mode"]: row["images_s"] for row in rows if row["side"] == "lae_jax"}
    if {"stage 2", "stage 3"} <= rates.keys():
        print(f"stage 3 / stage 2, images/s: {rates['stage 3'] / rates['stage 2']:.2f}")


def answers(peer: sides.Side) -> bool:
    """Whether the other side has what it needs."""
    try:
        print(peer.ask("versions")["versions"], file=sys.stderr)
        return True
    except sides.SideError as error:
        print(f"no torch or timm in --peer_python ({error}): our side alone", file=sys.stderr)
        return False


if __name__ == "__main__":
    harness.run(main)
