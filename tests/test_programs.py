"""The command lines: all programs are listed, and tell their flags at once and in one way."""

import argparse
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from lae_jax import __main__ as programs
from lae_jax import __version__, audit, evaluate, longtail, predict, prepare
from lae_jax.prepare import __main__ as preparing
from lae_jax.runtime import flags
from lae_jax.runtime.errors import InputError
from lae_jax.train import config_flag

HEAVY = {"jax", "tensorflow", "pyarrow", "matplotlib", "scipy", "numpy", "orbax"}
# Runs a program and tells its status and which of these it loaded.
TOLD = """
import runpy, sys
program, *words = sys.argv[1:]
sys.argv = [program, *words]
try:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("status", end.code or 0)
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def run(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, timeout=120, capture_output=True, text=True)


@pytest.mark.parametrize("program", programs.PROGRAMS)
def test_help_and_wrong_flags_are_told_without_loading_what_takes_long(program):
    for words, status in ((["--help"], "0"), (["--no-such-flag"], "2")):
        ended = run("-c", TOLD, f"lae_jax.{program}", *words)
        loaded = {*ended.stdout.rpartition("loaded ")[2].split()}
        # ml_collections, which reads the config's flag, brings numpy along.
        assert not loaded & HEAVY - ({"numpy"} if program == "main" else set()), loaded & HEAVY
        told = ended.stdout if status == "0" else ended.stderr
        assert "flag" in told or f"python -m lae_jax.{program}" in told
        assert status == "0" or f"status {status}" in ended.stdout, ended.stderr
        assert "Traceback" not in ended.stderr


def test_the_package_lists_its_programs_and_runs_them():
    listed = run("-m", "lae_jax").stdout
    assert all(f"  {name} " in listed for name in programs.PROGRAMS)
    assert all(
        (ROOT / "lae_jax" / name).is_dir() or (ROOT / "lae_jax" / f"{name}.py").exists() for name in programs.PROGRAMS
    )
    assert run("-m", "lae_jax", "--version").stdout == f"lae_jax {__version__}\n"
    wrong = run("-m", "lae_jax", "evalute", "--run", "a")
    assert wrong.returncode == 2 and "did you mean 'evaluate'?" in wrong.stderr
    # As the console script has it.
    by_name = run("-c", "from lae_jax.__main__ import main; main()", "evaluate", "--run", "runs/none")
    assert by_name.returncode == 2 and by_name.stderr.startswith("error: runs/none holds no run")
    assert by_name.stderr == run("-m", "lae_jax.evaluate", "--run", "runs/none").stderr
    for program in ("main", "report"):
        assert run("-m", "lae_jax", program, "--version").stdout == f"lae_jax {__version__}\n"


def test_hyphens_and_underscores_are_the_same():
    given = ["--reader=csv", "--source=a_b.csv", "--out", "a_b", "--beam_runner", "--", "--x_y"]
    assert flags.with_hyphens(given) == [*given[:4], "--beam-runner", "--", "--x_y"]
    words = ["--reader", "csv", "--source", "train=my_faces.csv", "--out", "my_data"]
    args = preparing.parse_args([*words, "--beam_option", "num_workers=2", "--beam-option=a_b=c_d"])
    assert args["beam_options"] == ["num_workers=2", "a_b=c_d"] and args["source"] == ["train=my_faces.csv"]
    code = "import sys; from lae_jax.train import config_flag; print(config_flag.with_underscores(sys.argv))"
    told = run("-c", code, "--allow-leak", "--config.optim.base-learning-rate=1e-3", "--config", "a-b.py").stdout
    assert told.strip() == "['-c', '--allow_leak', '--config.optim.base_learning_rate=1e-3', '--config', 'a-b.py']"


@pytest.mark.parametrize(("words", "message"), [
    (["--sorce", "a"], r"unknown flag --sorce; did you mean --source\? \(see python -m lae_jax.prepare --help\)"),
    (["--reader", "cvs"], "--reader: unknown reader 'cvs'; did you mean 'csv'"),
    (["--size", "big"], "--size: invalid int value: 'big'"),
    ([], "the following arguments are required: --reader, --source, --out"),
])  # fmt: skip
def test_a_wrong_flag_is_one_sentence_that_helps(words, message):
    with pytest.raises(InputError, match=message):
        preparing.parse_args(words)


def test_a_flag_that_several_programs_have_means_the_same_in_all(monkeypatch):
    """Every flag of two programs or more comes from `flags.COMMON`, but for those that differ in nothing."""
    defined = {}
    original = argparse.ArgumentParser.add_argument

    def noted(parser, *names, **how):
        if isinstance(parser, flags.Parser):
            for name in names:
                if name.startswith("--"):
                    defined.setdefault(name, {})[parser.prog] = (how.get("type"), how.get("action"), how.get("choices"))
        return original(parser, *names, **how)

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", noted)
    for name in programs.PROGRAMS:
        if name != "main":
            door = __import__(f"lae_jax.{name}", fromlist=["__main__"])
            door = door if name == "demo" else __import__(f"lae_jax.{name}.__main__", fromlist=["parse_args"])
            with pytest.raises((SystemExit, InputError)):
                door.parse_args(["--no-such-flag"])
    shared = {name: set(kinds.values()) for name, kinds in defined.items() if len(kinds) > 1}
    assert {"--run", "--out", "--split", "--data", "--flip", "--faces"} <= {*shared}
    # longtail takes several runs.
    differing = {name for name, kinds in shared.items() if len(kinds) > 1}
    assert differing <= {"--run"}, {name: shared[name] for name in differing}


def test_a_reader_that_leaves_early_causes_no_traceback():
    code = f"{sys.executable} -m lae_jax | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert ended.stderr == "" and ended.returncode in (0, 141)


def test_a_closed_output_is_no_error_and_another_broken_pipe_is():
    closed = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m lae_jax >&-"], cwd=ROOT, timeout=60, capture_output=True
    )
    assert closed.returncode == 0 and closed.stderr == b""
    code = """
import socket
from lae_jax.runtime import start
def main():
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.sendall(b"x")
start.program(main)
"""
    ended = run("-c", code)
    assert ended.returncode == 1 and "BrokenPipeError" in ended.stderr


def test_a_row_of_table_2_without_a_start_is_refused_before_jax_is_loaded():
    code = """
import sys
from lae_jax import main
sys.argv = ["main", "--config", "table2:baseline"]
try:
    main.cli()
finally:
    print({"jax", "tensorflow"} & {*sys.modules})
"""
    ended = run("-c", code)
    assert ended.stdout == "set()\n" and "config.init_from is empty" in ended.stderr


def test_fields_of_a_config_may_have_hyphens_too(tmp_path):
    """ml_collections reads them from sys.argv."""
    words = ["--config", "represent", f"--config.data.path={tmp_path}", f"--config.workdir={tmp_path / 'run'}"]
    words += ["--config.init-from=scratch"]
    for field in ("--config.batch-size=16", "--config.optim.base-learning-rate=0.1", "--config.data.allow-leak=True"):
        ended = run("-m", "lae_jax.main", *words, field)
        assert ended.stderr.startswith(f"error: {tmp_path} is not a prepared data set"), ended.stderr
    ended = run("-m", "lae_jax.main", *words, "--epochs=3")
    assert "flag 'epochs'; did you mean --config.epochs?" in ended.stderr


@pytest.mark.parametrize(("words", "message"), [
    (["configs/small.py"], r"unexpected word .*: configs/small.py; .* --config configs/small.py \(did you"),
    (["configs/small.py", "--config.faces=a"], "did you forget --config"),
    (["--config", "configs/small.py", "epochs=2"], "unexpected word .*: epochs=2; flags begin with --"),
])  # fmt: skip
def test_a_word_without_its_flag_is_told_the_flag(words, message):
    with pytest.raises(InputError, match=message):
        config_flag._require_config_flag(["lae_jax.main", *words])
    config_flag._require_config_flag(
        ["lae_jax.main", "--devices", "2", "--config", "a.py", "--profile=3", "--allow_leak"]
    )


def test_a_flag_that_is_a_field_is_told_its_name():
    for given, wanted in (("epochs", "epochs"), ("image_size", "data.image_size"), ("data.path", "data.path")):
        assert config_flag._field_like(given) == f"; did you mean --config.{wanted}?"
    assert "a field of the config is set with" in config_flag._field_like("epoch_count")
    told = config_flag.flag_error(
        TypeError("Traceback ...\nTypeError: get_config() takes 0 positional arguments but 1 was given")
    )
    assert told == "--config: this config takes no argument: omit the colon and what follows it"


@pytest.mark.parametrize(("call", "message"), [
    (lambda: evaluate.evaluate("runs/a", batch_size="64"), "batch_size is '64': it must be a number, not of type str"),
    (lambda: evaluate.evaluate("runs/a", threshold="18"), "threshold is '18': it must be a number"),
    (lambda: evaluate.evaluate("runs/a", step=1.5), "step is 1.5: it must be a whole number"),
    (lambda: predict.predict("runs/a", ["a.jpg"], interval="0.9"), "interval is '0.9': it must be a number"),
    (lambda: prepare.prepare("a.csv", "out", reader="csv", size="64"), "size is '64': it must be a number"),
    (lambda: prepare.prepare("a.csv", "out", reader="csv", folds=True), "folds is True: it must be a number"),
    (lambda: audit.audit("data", image_size="64"), "image_size is '64': it must be a number"),
    (lambda: longtail.compare("runs/a", "data", "out", seeds="3"), "seeds is '3': it must be a number"),
])  # fmt: skip
def test_a_number_that_is_a_string_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_lack_of_memory_is_one_sentence_that_says_what_to_do():
    code = """
from lae_jax.runtime import start
def main():
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 132871415040 bytes.")
start.program(main)
"""
    ended = run("-c", code)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr and "--config.accumulate" in ended.stderr


# Names that programs import from the standard library and from packages. A file in the current folder may have any.
PLANTED = ("json", "pathlib", "logging", "signal", "argparse", "runpy", "numpy", "jax", "PIL", "pyarrow", "tensorflow")
PLANTED += ("matplotlib", "etils", "ml_collections", "array_record", "multiprocessing", "pickle", "sitecustomize")


@pytest.fixture
def stranger(drawn, tmp_path):
    """A copy of a data set with Python files in it; each leaves a mark if it is imported."""
    folder = tmp_path / "data"
    shutil.copytree(drawn, folder)
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    (folder / "matplotlibrc").write_text("text.usetex: True\nfigure.figsize: 1, 1\n")
    return folder


def run_in(folder, *words, **environment):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | environment
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)} | environment, timeout=120, capture_output=True, text=True
    )


def test_a_program_in_a_strangers_folder_imports_none_of_its_files(stranger, tmp_path):
    ended = run_in(stranger, "-m", "lae_jax.audit", ".")
    assert ended.returncode == 0 and "look at ./audit.png" in ended.stdout, ended.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
    for program in programs.PROGRAMS:
        assert run_in(stranger, "-m", f"lae_jax.{program}", "--help").returncode == 0
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
    # The attack is one.
    run_in(stranger, "-c", "import json, PIL")
    assert (tmp_path / "ran").read_text() == "json PIL "


def test_processes_that_a_program_starts_import_none_either(stranger, tmp_path):
    words = "--reader synthetic --source train=12 --source validation=4 --size 32 --shards 2 --workers 2 --out"
    ended = run_in(stranger, "-m", "lae_jax.prepare", *words.split(), "made")
    assert ended.returncode == 0 and (stranger / "made" / "dataset.json").exists(), ended.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def test_the_current_folder_stays_where_the_user_names_it_and_in_programs_of_others(tmp_path):
    (tmp_path / "mine.py").write_text("import lae_jax, sys; print(sys.path[0])")
    assert run_in(tmp_path, "-m", "mine").stdout == f"{tmp_path}\n"
    here = "import sys; sys.argv = ['lae-jax']; import lae_jax; print(*sys.path, sep='\\n')"
    for named, stays in ((f"{ROOT}:{tmp_path}", True), (f"{ROOT}:", False)):
        path = run_in(tmp_path, "-c", here, PYTHONPATH=named).stdout.splitlines()
        assert (str(tmp_path) in path) == stays and str(ROOT) in path and ("" in path) == stays
