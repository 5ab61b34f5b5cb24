"""The server under load: many clients, with batches and without, and uploads that are no photographs.

    python -m benchmarks.serve_load                                    # trains a small run on drawn faces first
    python -m benchmarks.serve_load --run runs/classify --seconds 60 --clients 16 --rounds 3

16 clients on this machine each send a photograph, wait for its age, and send the next one. Sides alternate: batches of
up to 32 and 4 photographs, and one of each by itself (--max-batch 1). Any answer other than 200 fails it. Then 50
malformed uploads, many times over: each must be answered with 4xx and a sentence, and the memory must not grow.
Writes build/serve_load/results.json and table.md.
"""

import contextlib
import http.client
import io
import json
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import psutil
from PIL import Image

from benchmarks import harness
from lae_jax.data.sources import synthetic
from lae_jax.runtime import console

OUT = pathlib.Path("build/serve_load")
SIDES = {"batched": 32, "one by one": 1}
MALFORMED_ROUNDS = 40
GROWTH = 0.003  # share of the memory that later rounds may add


def photographs() -> list[bytes]:
    """JPEGs of 640 x 480 with a drawn face each."""
    encoded = []
    for k in range(16):
        scene = Image.new("RGB", (640, 480), (118, 132, 140))
        face = Image.fromarray(synthetic.draw_face(k, 5.0 * k + 3, 1, 256, k)[0])
        scene.paste(face, (40 + 20 * k, 100))
        buffer = io.BytesIO()
        scene.save(buffer, "JPEG", quality=92)
        encoded.append(buffer.getvalue())
    return encoded


def small_run(folder: pathlib.Path) -> pathlib.Path:
    """A run of little worth, on crops that were cut from drawn photographs: what is measured is the server."""
    from lae_jax import prepare
    from lae_jax.configs import represent
    from lae_jax.train import loop

    if (folder / "run" / "summary.json").exists():
        return folder / "run"
    (folder / "photographs").mkdir(parents=True, exist_ok=True)
    rows = ["path,age"]
    for k, content in enumerate(photographs()):
        (folder / "photographs" / f"{k}.jpg").write_bytes(content)
        rows.append(f"photographs/{k}.jpg,{5 * k + 3}")
    (folder / "faces.csv").write_text("\n".join(rows) + "\n")
    prepare.prepare(folder / "faces.csv", folder / "data", ratio="1:1", size=96)
    c = represent.get_config()
    c.workdir, c.data.path, c.data.image_size = str(folder / "run"), str(folder / "data"), 64
    c.model.name, c.batch_size, c.eval_batch_size, c.epochs = "resnet18", 8, 8, 1.0
    c.init_from = "scratch"
    loop.train(c)
    return folder / "run"


@contextlib.contextmanager
def started(run: pathlib.Path, *words: str) -> Iterator[tuple[str, int, psutil.Process, Callable[[], str]]]:
    """(host, port, process, last line of the log once it has ended) of a warm server, which ends with the block."""
    command = [sys.executable, "-m", "lae_jax.serve", "--run", str(run), "--port", "0", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        found = next(found for line in process.stderr if (found := re.search(r"http://([0-9.]+):(\d+)", line)))
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
        reader.start()
        host, port = found[1], int(found[2])
        while ask(http.client.HTTPConnection(host, port), "GET", "/readyz")[0] != 200:
            time.sleep(0.2)

        def last() -> str:
            reader.join(10)
            return lines[-1].strip()

        yield host, port, psutil.Process(process.pid), last
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def server(run: pathlib.Path, *words: str) -> Iterator[tuple[str, int, psutil.Process]]:
    """(host, port, process) of a warm server; it must end with 0 on SIGTERM."""
    with started(run, *words) as (host, port, process, _):
        yield host, port, process
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, "the server did not end with 0"


def ask(connection, method: str, path: str, body: bytes = b"", kind: str = "") -> tuple[int, dict]:
    connection.request(method, path, body, {"Content-Type": kind} if kind else {})
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def form(content: bytes, name: str = "photo.jpg") -> tuple[bytes, str]:
    head = f'--edge\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode()
    return head + content + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"


def loaded(host: str, port: int, clients: int, seconds: float) -> dict:
    """Clients that send one photograph after the other: images a second, and the times of the answers."""
    forms, times, problems = [form(content) for content in photographs()], [], []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        connection, turn = http.client.HTTPConnection(host, port, timeout=120), number
        try:
            while time.monotonic() < end:
                started = time.perf_counter()
                status, answer = ask(connection, "POST", "/v1/predict", *forms[turn % len(forms)])
                times.append(time.perf_counter() - started)
                turn += 1
                if status != 200 or not answer["images"][0]["faces"]:
                    problems.append(f"{status}: {answer}")
        except Exception as error:
            problems.append(repr(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p50, p95 = np.percentile(times, [50, 95]).tolist() if times else (None, None)
    took = time.perf_counter() - started
    return {"images": len(times), "per_second": len(times) / took, "p50": p50, "p95": p95, "errors": problems[:5]}


def malformed(seed: int = 0) -> list[tuple[bytes, str]]:
    """50 bodies, each wrong in a way of its own."""
    random, (good, kind) = np.random.default_rng(seed), form(photographs()[0])
    png = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (200, 200, 3)).astype(np.uint8)).save(png, "PNG")
    contents = [b"", b"\xff\xd8\xff", b"GIF89a", b"RIFF....WEBP", b"<svg/>", b"%PDF-1.7", b"\x00" * 2_000_000]
    contents += [photographs()[0][:size] for size in (50, 300, 600)] + [
        png.getvalue()[:size] for size in (20, 40, 9000)
    ]
    # Headers that claim a picture of gigabytes.
    contents += [b"P6 60000 60000 255\n" + b"x" * 100, b"BM" + random.bytes(60), b"II*\x00" + random.bytes(80)]
    contents += [random.bytes(int(size)) for size in random.integers(1, 100_000, 14)]
    bodies = [form(content, f"{number}.jpg") for number, content in enumerate(contents)]
    bodies += [(good[: len(good) * part // 10], kind) for part in range(10)]
    bodies += [(good, "multipart/form-data"), (good, "image/jpeg"), (good, kind + "x"), (b"--edge--\r\n", kind)]
    bodies += [(b"--edge\r\n" + b"x: y\r\n" * 500 + good, kind), (random.bytes(5000), kind)]
    bodies += [(good + b"x" * 33_000_000, kind)]
    bodies += [(b"".join(form(b"x")[0].removesuffix(b"--edge--\r\n") for _ in range(40)) + b"--edge--\r\n", kind)]
    bodies += [(b'--edge\r\nContent-Disposition: form-data; name="threshold"\r\n\r\n18\r\n--edge--\r\n', kind)]
    bodies += [(b"\r\n" * 1000, kind)]
    return bodies


def hostile(host: str, port: int, process: psutil.Process) -> dict:
    """Sends all malformed uploads again and again. Returns the memory in MB after each round, and the statuses."""
    bodies, statuses, memory, problems = malformed(), {}, [], []
    for _ in range(MALFORMED_ROUNDS):
        for number, (body, kind) in enumerate(bodies):
            connection = http.client.HTTPConnection(host, port, timeout=120)
            status, answer = ask(connection, "POST", "/v1/predict", body, kind)
            connection.close()
            statuses[status] = statuses.get(status, 0) + 1
            if not 400 <= status < 500 or len(answer.get("error", "").split()) < 3:
                problems.append(f"body {number}: {status} {answer}")
        memory.append(process.memory_info().rss / 1e6)
    alive = ask(http.client.HTTPConnection(host, port), "POST", "/v1/predict", *form(photographs()[0]))[0]
    if alive != 200:
        problems.append(f"a photograph afterwards: {alive}")
    half = len(memory) // 2
    growth = statistics.median(memory[-5:]) / statistics.median(memory[half - 5 : half]) - 1
    if growth > GROWTH:
        problems.append(f"the memory grew by {growth:.1%} in the last {half} rounds")
    return {
        "uploads": len(bodies), "rounds": len(memory), "statuses": statuses, "growth": growth,
        "megabytes": [round(value) for value in memory], "errors": problems[:5],
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--run", type=pathlib.Path, help="default: a ResNet-18 at 64 px on drawn faces")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1, help="of the two sides; medians are told")
    args = parser.parse_args(argv)
    OUT.mkdir(parents=True, exist_ok=True)
    run = args.run or small_run(OUT / "small")
    rounds: dict[str, list[dict]] = {name: [] for name in SIDES}
    for _ in range(args.rounds):
        for name, batch in SIDES.items():
            with server(run, "--max-batch", str(batch)) as (host, port, _):
                rounds[name].append(loaded(host, port, args.clients, args.seconds))
                print(name, rounds[name][-1], flush=True)
    with server(run) as (host, port, process):
        attacked = hostile(host, port, process)
    content = {"load": rounds, "malformed": attacked, "args": str(vars(args))}
    (OUT / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    rows = [
        [name, sum(one["images"] for one in of_side), sum(len(one["errors"]) for one in of_side)]
        + [f"{statistics.median(one[key] for one in of_side):.2f}" for key in ("per_second", "p50", "p95")]
        for name, of_side in rounds.items()
    ]
    table = console.table(["side", "images", "errors", "images/s", "p50 (s)", "p95 (s)"], rows)
    memory = attacked["megabytes"]
    told = (
        f"{attacked['uploads']} malformed uploads, {attacked['rounds']} times: {attacked['statuses']}; memory"
        f" {memory[0]} MB after the first round, {memory[len(memory) // 2]} in the middle, {memory[-1]} at the end"
    )
    (OUT / "table.md").write_text(f"{table}\n\n{told}\n")
    print(f"{table}\n\n{told}")
    problems = attacked["errors"] + [error for of_side in rounds.values() for one in of_side for error in one["errors"]]
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    harness.run(main)
