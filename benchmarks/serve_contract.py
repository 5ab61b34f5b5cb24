"""The API under a fuzzer: each answer is one that openapi.json describes, whatever is asked.

    make setup-contract
    python -m benchmarks.serve_contract --seconds 1200

Schemathesis, in an environment of its own, makes requests from the description of a server that runs the model of the
package on face crops and asks for a key: those that are right, and those that are wrong in one way. All its checks are
on: statuses, bodies and headers that are described, no 5xx, no 2xx for a request that is wrong, no refusal of one that
is right, methods, the key. It fails with what schemathesis found.
Writes build/serve_contract/found.txt.
"""

import io
import os
import pathlib
import secrets
import subprocess
import sys

from PIL import Image

from benchmarks import harness, serve_load
from lae_jax.data.sources import synthetic
from lae_jax.runtime.model_file import builtin
from lae_jax.serve.operating import api_key

OUT = pathlib.Path("build/serve_contract").absolute()
HOOKS = pathlib.Path(__file__).absolute().parent / "contract"


def pictures(folder: pathlib.Path) -> None:
    """Writes what a client may send: crops, small and large, in several formats, one turned by its EXIF."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, form in enumerate(("PNG", "JPEG", "WEBP", "BMP")):
        face = Image.fromarray(synthetic.draw_face(k, 20.0 * k + 5, 1, 64 + 60 * k, k)[0])
        exif = Image.Exif()
        exif[0x0112] = 1 + 5 * (form == "JPEG")
        buffer = io.BytesIO()
        face.save(buffer, form, **({"exif": exif} if form == "JPEG" else {}))
        (folder / f"{k}.{form.lower()}").write_bytes(buffer.getvalue())


def main(argv: list[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--seconds", type=int, default=1200, help="time of the fuzzer")
    parser.add_argument("--fuzzer", type=pathlib.Path, default=".venv-contract/bin/schemathesis", help="the program")
    args = parser.parse_args(argv)
    pictures(OUT / "pictures")
    key = secrets.token_hex(16)
    os.environ[api_key.VARIABLE] = key
    with serve_load.server(pathlib.Path(builtin.DEFAULT), "--aligned", "--allow-other-crop") as (host, port, _):
        command = [str(args.fuzzer.absolute()), "--config-file", str(HOOKS / "schemathesis.toml"), "run"]
        command += [f"http://{host}:{port}/openapi.json", "--header", f"Authorization: Bearer {key}", "--no-color"]
        command += ["--checks", "all", "--max-time", str(args.seconds), "--continue-on-failure", "--max-failures", "20"]
        environment = os.environ | {
            "PICTURES": str(OUT / "pictures"),
            "PYTHONPATH": str(HOOKS),
            "SCHEMATHESIS_HOOKS": "hooks",
        }
        # It writes a folder of its own where it is started.
        result = subprocess.run(
            command, cwd=OUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    (OUT / "found.txt").write_text(result.stdout)
    print(result.stdout[-4000:])
    if result.returncode:
        sys.exit(f"schemathesis ended with {result.returncode}: all that it found is in {OUT / 'found.txt'}")


if __name__ == "__main__":
    harness.run(main)
