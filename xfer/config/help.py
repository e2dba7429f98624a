"""``xfer --help``: groups and options, read from the config files. No torch, no Hydra."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from xfer.config.verbs import VERBS
from xfer.core.files import read_text

DISTRIBUTION = "xfer-vision"
"""What the package index and pip call xfer; ``xfer`` is somebody else's there."""

GROUPS = (
    *("experiment", "task", "data", "augment", "backbone", "source", "head", "freeze", "loss"),
    *("optim", "schedule", "trainer", "checkpoint", "features", "export", "logger", "sweep"),
    "choose",
)


@cache
def config_dir() -> str:
    """The shipped configs: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    return str(
        next(d for d in (here / "conf", here.parent / "conf") if (d / "config.yaml").is_file())
    )


def options(group: str, folders: Sequence[str]) -> dict[str, str]:
    """Option name to its first comment line, from every folder that has the group."""
    files = [f for folder in folders for f in sorted(Path(folder, group).glob("*.yaml"))]
    return {file.stem: summary(file) for file in files}


def summary(file: Path) -> str:
    """The first comment line of a config file, which says what the option is."""
    try:
        lines = read_text(file).splitlines()
    except (OSError, ValueError):
        return "cannot be read"
    return next((s[2:] for s in lines if s.startswith("# ") and not s.startswith("# @")), "")


def page(folders: Sequence[str]) -> str:
    """The whole help: verbs, examples, and the options of each group by name, as wide as the
    terminal."""
    verbs = [f"    xfer {f'{name} {verb.usage}':<26} {verb.about}" for name, verb in VERBS.items()]
    lines = [_USAGE.format(verbs="\n".join(verbs))]
    for group in GROUPS:
        names = ", ".join(options(group, folders))
        lines.append(
            textwrap.fill(
                f"{f'{group}=':<12} {names}",
                help_width() - 1,
                subsequent_indent=" " * 13,
                break_long_words=False,
            )
        )
    return "\n".join([*lines, _MORE])


def help_width() -> int:
    """The columns that help is written for: those of the terminal, within limits."""
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns))


_NARROWEST, _WIDEST = 30, 110

# Up to 79 columns wide.
_USAGE = """\
xfer: transfer learning for image classification, one experiment in one line.

    xfer                            a quick start on data that ships with it
{verbs}

RUN is a folder, the end of its name, or last. Each verb prints the longer
command that it stands for, and takes any group=option and key=value after it:

    xfer train my_images backbone=efficientnet_b0 freeze=lora
    xfer train my_images 'stages=[audit]'           labels that may be wrong
    xfer train my_images 'stages=[worth]'           what more images bring
    xfer experiment=NAME [group=option] [key=value]
    xfer -m experiment=NAME optim.lr=0.1,0.01       several runs
    xfer 'stages=[leaderboard]' sweep.dir=SWEEP     which of them is best
    xfer 'stages=[evaluate]' checkpoint.path=RUN_OR_FILE data.root=my_images
    xfer 'stages=[predict]' predict.model=model.onnx predict.input=FOLDER
    xfer 'stages=[benchmark]' checkpoint.path=RUN data.root=my_images

    run.dir=DIR       the run's folder    --config-dir DIR  options of your own
    seed=1            another seed        --allow PACKAGE   classes of your own
    XFER_FULL_ERROR=1 for tracebacks      --version

The options of each group:
"""
_MORE = """
    xfer --help GROUP      what each option is, and the keys of the group
    xfer --help KEY        what a key takes, such as optim.lr or stages"""
