"""The command line as people meet it: real processes, exit codes, one line for a mistake.

Every process here ends before it needs torch, but for the few in the last part.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import xfer
from xfer.config.help import GROUPS

LINE = re.compile(r"xfer: error E\d{3}: .+: .+\. Fix: .+")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A working directory that is not the repository."""
    return tmp_path


def start(
    command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, told: str = ""
) -> subprocess.CompletedProcess[str]:
    """The finished process, which was ``told`` this; it finds xfer in this repository from any
    directory."""
    known = {k: v for k, v in os.environ.items() if not k.startswith(("XFER_", "HYDRA_"))}
    known |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XFER_CACHE": str(cwd / "cache")}
    return subprocess.run(
        command,
        cwd=cwd,
        input=told,
        env=known | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run(cwd: Path, *typed: str, **env: str) -> subprocess.CompletedProcess[str]:
    return start([sys.executable, "-m", "xfer", *typed], cwd, env)


def imported(cwd: Path, *typed: str) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """Top-level packages that the command imported, and the process."""
    done = start([sys.executable, "-X", "importtime", "-m", "xfer", *typed], cwd)
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {row.rpartition("|")[2].strip().split(".")[0] for row in rows}, done


def test_help_lists_every_group_and_imports_neither_torch_nor_hydra(here: Path) -> None:
    packages, done = imported(here, "--help")
    assert done.returncode == 0
    assert all(f"\n{group}=" in done.stdout for group in GROUPS)
    assert "digits_freeze" in done.stdout
    assert "xfer" in packages
    assert not packages & {"torch", "hydra", "omegaconf", "pydantic", "timm", "yaml"}


def test_help_lists_the_options_of_the_user_too(here: Path) -> None:
    (here / "conf" / "head").mkdir(parents=True)
    (here / "conf" / "head" / "wide.yaml").write_text(
        "# A wide one.\n_target_: xfer.models.head.Mlp\n"
    )
    done = run(here, "--config-dir", "conf", "--help")
    assert re.search(r"\nhead=[^=]* wide\n", done.stdout)
    assert max(map(len, done.stdout.splitlines())) < 80, "a terminal of 80 columns breaks a line"
    done = run(here, "--config-dir", "conf", "--help", "head")
    assert re.search(r"wide +A wide one\.", done.stdout)


def test_version_is_the_package_s_and_costs_no_torch(here: Path) -> None:
    packages, done = imported(here, "--version")
    assert done.stdout == f"xfer {xfer.__version__}\n"
    assert not packages & {"torch", "hydra"}


MISTAKES = {
    "unknown key": (["optim.lrr=1"], 2, "did you mean 'optim.lr'?"),
    "unknown option": (["optim=sgdd"], 2, "did you mean 'sgd'?"),
    "unknown group": (["optimm=sgd"], 2, "did you mean 'optim'?"),
    "wrong type": (["data.root=x", "optim.lr=fast"], 2, "type optim.lr=NUMBER"),
    "grammar": (["stages=[fit"], 2, "write key=value"),
    "no data": (["experiment=default"], 2, "type data.root=VALUE"),
    "unknown flag": (["--hlep"], 2, "did you mean '--help'?"),
    "flag without value": (["--config-dir"], 2, "type --config-dir VALUE"),
    "no config folder": (["--config-dir=nowhere"], 2, "give an existing folder"),
    "no package": (["--allow"], 2, "type --allow PACKAGE"),
    "several values": (["optim.lr=1,2"], 2, "add -m for several runs"),
    "model name": (["backbone.name=resnet5O", "data.root=x"], 2, "did you mean 'resnet50'?"),
    "nothing to predict": (["stages=[predict]"], 2, "type predict.input=VALUE"),
    "no model": (["stages=[evaluate]", "data=digits"], 2, "checkpoint.path=FILE"),
    "foreign class": (["optim._target_=os.system"], 6, "add --allow os if you trust it"),
}


HEAVY = {"torch", "timm", "torchvision", "matplotlib", "sklearn"}
# Each command in a fork of a process that has composed a run, which all of them do, and no more.
FORKS = """
import json, os, sys
import xfer.__main__, xfer.config.hydra

xfer.config.hydra.compose_specs([])

for folder, typed in json.load(sys.stdin):
    if os.fork():
        os.wait()
        continue
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    sys.argv, code = ["xfer", *typed], 0
    try:
        xfer.__main__.main()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    with open(f"{folder}.json", "w") as stream:
        json.dump([code, sorted({name.partition(".")[0] for name in sys.modules})], stream)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a mistake, empty at first, and beside it what the command printed and imported."""
    place = tmp_path_factory.mktemp("mistaken")
    commands = [(str(place / name), typed) for name, (typed, _, _) in MISTAKES.items()]
    for folder, _ in commands:
        Path(folder).mkdir()
    done = start([sys.executable, "-c", FORKS], place, told=json.dumps(commands))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return place


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_its_exit_code_and_imports_no_torch(
    name: str, mistaken: Path
) -> None:
    _, code, remedy = MISTAKES[name]
    (said,) = (mistaken / f"{name}.stderr").read_text().splitlines()
    assert LINE.fullmatch(said) and remedy in said
    ended, packages = json.loads((mistaken / f"{name}.json").read_text())
    assert (ended, (mistaken / f"{name}.stdout").read_text()) == (code, "")
    assert "xfer" in packages and not HEAVY & set(packages)
    assert list((mistaken / name).iterdir()) == [], "a mistake leaves nothing behind"


def test_a_mistake_in_a_process_of_its_own_is_the_same(here: Path) -> None:
    typed, code, remedy = MISTAKES["unknown key"]
    packages, done = imported(here, *typed)
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(told) == 1 and LINE.fullmatch(told[0]) and remedy in told[0]
    assert (done.returncode, done.stdout) == (code, "") and not packages & HEAVY
    assert list(here.iterdir()) == []


def test_several_mistakes_are_a_line_each(here: Path) -> None:
    done = run(here, "optim.lrr=1", "seed=a", "head.x=2")
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and all(LINE.fullmatch(line) for line in lines)


def test_the_whole_traceback_is_had_on_request(here: Path) -> None:
    done = run(here, "optim.lrr=1", XFER_FULL_ERROR="1")
    assert "Traceback (most recent call last)" in done.stderr
    assert LINE.fullmatch(done.stderr.splitlines()[-1])
    assert done.returncode == 2


# Hydra is not needed for the first two.
STREAMS = {
    "--hlep 2>&-": (2, ""),
    "--hlep 2>/dev/full": (2, ""),
    "optim.lrr=1 <&- >&-": (2, "did you mean 'optim.lr'?"),
    "optim.lrr=1 >/dev/full 2>&1": (2, ""),
    "--help >/dev/full": (9, "E931: standard output: cannot be written (No space left"),
    "--version >/dev/full": (9, "E931: standard output: cannot be written (No space left"),
    "--help >&-": (0, ""),
    "--help | head -1 >/dev/null; exit 0": (0, ""),
    "--cfg job >/dev/full": (9, "E931: standard output: cannot be written (No space left"),
}


@pytest.mark.parametrize("typed", STREAMS)
def test_a_terminal_that_is_closed_or_full_changes_no_exit_code(typed: str, here: Path) -> None:
    if "full" in typed and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    code, remedy = STREAMS[typed]
    done = start(["bash", "-c", f"{sys.executable} -m xfer {typed}"], here)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert remedy in done.stderr and len(done.stderr.splitlines()) == bool(remedy)


@pytest.mark.parametrize("typed", [["--help"], ["optim.lrr=1"]])
def test_the_console_script_is_the_module(typed: list[str], here: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "xfer"
    if not script.is_file():
        pytest.skip("xfer is not installed: pip install -e .")
    one, other = start([str(script), *typed], here), run(here, *typed)
    assert (one.returncode, one.stdout, one.stderr) == (
        other.returncode,
        other.stdout,
        other.stderr,
    )


def test_allow_admits_a_class_of_the_user(here: Path) -> None:
    (here / "mine.py").write_text("class Rate:\n    def __init__(self, lr: int) -> None: ...\n")
    typed = ["optim._target_=mine.Rate", "~optim.weight_decay", "optim.lr=fast"]
    assert "add --allow mine" in run(here, *typed).stderr
    done = run(here, "--allow", "mine", *typed)
    assert done.returncode == 2
    assert 'optim.lr: is "fast", but must be a whole number' in done.stderr


def test_a_sweep_over_an_option_that_is_not_there_starts_no_job(here: Path) -> None:
    done = run(here, "-m", "optim=sgd,sgdd", "data.root=x", "hydra.sweep.dir=sweep")
    assert done.returncode == 2
    assert LINE.fullmatch(done.stderr.strip())
    assert not list(here.rglob("plan.json"))


def test_every_job_of_a_sweep_says_what_is_wrong_with_it_once(here: Path) -> None:
    done = run(here, "-m", "optim.lr=-1,-2")
    told = [line for line in done.stderr.splitlines() if line.startswith("xfer: error")]
    assert done.returncode == 2
    assert [re.search(r"is (-\d)", line)[1] for line in told] == ["-1", "-2"]  # type: ignore[index]
    assert "Traceback" not in done.stderr


def test_one_bad_value_of_a_sweep_is_told_before_any_job(here: Path) -> None:
    done = run(here, "-m", "optim.lr=-1,0.1", "hydra.sweep.dir=sweep")
    assert done.returncode == 2
    assert done.stderr.count("xfer: error") == 1
    assert "optim.lr: is -1" in done.stderr
    assert not (here / "sweep").exists()


# From here on torch is imported: few processes, each for several proofs.


def test_no_stages_is_the_plan_alone_from_any_directory(here: Path) -> None:
    done = run(here, "stages=[]", "run.dir=planned")
    assert (done.returncode, done.stderr) == (0, "")
    assert "none: this is the plan alone" in done.stdout
    assert {p.name for p in here.iterdir()} <= {"planned", "cache"}
    plan = json.loads((here / "planned" / "plan.json").read_text())
    assert (plan["experiment"], plan["stages"]) == ("digits_freeze", [])
    assert json.loads((here / "planned" / "status.json").read_text())["state"] == "finished"
    assert not (here / "planned" / "checkpoints").exists()

    again = run(here, "stages=[]", "run.dir=planned")
    assert again.returncode == 9
    assert "E902: planned: already holds files. Fix: choose another run.dir" in again.stderr
    assert LINE.fullmatch(again.stderr.strip())


def test_a_folder_that_cannot_be_made_is_told(here: Path) -> None:
    (here / "file").write_text("")
    done = run(here, "stages=[]", "run.dir=file/below")
    assert done.returncode == 9
    assert LINE.fullmatch(done.stderr.strip())
    assert "file: cannot be written (a file, not a folder)" in done.stderr


def test_the_first_command_of_the_readme_does_what_the_readme_shows(here: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = next(line for line in readme.splitlines() if line.startswith("$ "))
    python, *typed = shlex.split(first.rpartition(" && ")[2])
    assert python == ".venv/bin/python"
    done = start([sys.executable, *typed], here)
    assert done.returncode == 0, done.stderr
    shown = readme[readme.index("\nrun         digits_freeze") : readme.index("\nauto        ")]
    assert shown in f"\n{done.stdout}" and "\nval accuracy  " in done.stdout
