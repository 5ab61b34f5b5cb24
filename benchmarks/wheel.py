"""The wheel, as a user has it: built, checked by twine, installed into a new environment, used there.

    make wheel                                       # beside the packages of .venv, for CI
    python -m benchmarks.wheel --fresh               # with packages of its own: minutes, 3 GB

It fails if a file of the package is missing in the wheel or should not be there, if the metadata would not be accepted
or shown by a package index, if a requirement is missing, or if `lae-jax predict` does not give one age for a drawn
face. Writes build/wheel.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile

from PIL import Image

from benchmarks import harness
from lae_jax import __version__
from lae_jax.data.sources import synthetic
from lae_jax.runtime import console
from lae_jax.runtime.errors import Ended
from lae_jax.runtime.foreign import spreadsheets

ROOT = pathlib.Path(__file__).absolute().parent.parent
OUT = ROOT / "build" / "wheel"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


class Failed(Ended):
    status = 1


def called(*command: object, **options) -> str:
    """The output of a command that must succeed; neither this checkout nor the user's own packages are visible to it.

    Raises:
      Failed: The command failed.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONNOUSERSITE": "1", "JAX_PLATFORMS": "cpu"}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode:
        raise Failed(f"{' '.join(words)}\n{done.stdout}")
    return done.stdout


def in_checkout() -> set[str]:
    """Names in a wheel of all files of the package that git knows; `lae_jax/configs` leads to `configs/`."""
    listed = called("git", "ls-files", "lae_jax", "configs", cwd=ROOT).splitlines()
    names = {f"lae_jax/{name}" if name.startswith("configs/") else name for name in listed}
    return names - {"lae_jax/configs"}


def built() -> pathlib.Path:
    """The wheel, with the files that it should have.

    Raises:
      Failed: Files are missing in it, or should not be there.
    """
    # setuptools would pack what an earlier build left there.
    for left in (OUT, ROOT / "build" / "lib"):
        shutil.rmtree(left, ignore_errors=True)
    called(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", OUT, ROOT)
    (wheel,) = OUT.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if packed != in_checkout():
        missing, other = sorted(in_checkout() - packed), sorted(packed - in_checkout())
        raise Failed(f"{wheel.name}: missing: {missing}; should not be there: {other}")
    return wheel


def environment_with(wheel: pathlib.Path, fresh: bool) -> pathlib.Path:
    """The programs of a new environment with the wheel; the other packages are its own, or those of this one."""
    home = OUT / "venv"
    venv.create(home)
    python = home / "bin" / "python"
    pinned = ("--constraint", ROOT / "requirements.txt")
    if not fresh:
        # A path alone: the .pth files there, of which one leads to this checkout, stay unread.
        (own,) = home.glob("lib/python*/site-packages")
        (own / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pinned = ("--no-deps", "--ignore-installed")
    called(*PIP, "--python", python, "install", *pinned, wheel)
    called(*PIP, "--python", python, "check")
    return python.parent


def use(programs: pathlib.Path) -> float:
    """The age of a drawn face of 30 by `lae-jax predict`.

    Raises:
      Failed: It is not the wheel that runs, or there is not one age.
    """
    where = called(programs / "python", "-c", "import lae_jax; print(lae_jax.__file__)", cwd=OUT).strip()
    if not where.startswith(str(OUT)):
        raise Failed(f"lae_jax is imported from {where}")
    told = called(programs / "lae-jax", "--version", cwd=OUT).strip()
    if told != f"lae_jax {__version__}":
        raise Failed(f"lae-jax --version prints {told!r}")
    Image.fromarray(synthetic.draw_face(1, 30.0, 1, 160)[0]).save(OUT / "face.png")
    called(programs / "lae-jax", "predict", "face.png", "--out", "ages.csv", cwd=OUT)
    rows = spreadsheets.records((OUT / "ages.csv").read_text().splitlines())
    ages = [row["age"] for row in rows if row["age"]]
    if len(ages) != 1 or not 0 < float(ages[0]) < 100:
        raise Failed(f"ages.csv should have one age: {(OUT / 'ages.csv').read_text()}")
    return float(ages[0])


def main(argv: list[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--fresh", action="store_true", help="install the requirements anew")
    parser.add_argument("--twine", type=pathlib.Path, default=".venv-docs/bin/twine", help="the program")
    args = parser.parse_args(argv)
    begun = time.perf_counter()
    wheel = built()
    called(args.twine.absolute(), "check", "--strict", wheel)
    console.write(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, built and checked")
    programs = environment_with(wheel, args.fresh)
    age = use(programs)
    console.write(f"a drawn face of 30: {age:.1f} years; {time.perf_counter() - begun:.0f} s in all")


if __name__ == "__main__":
    harness.run(main)
