"""``xfer --help``: groups and options, read from the config files. No torch, no Hydra."""

from __future__ import annotations

from collections.abc import Sequence
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
    """The whole help."""
    verbs = [f"    xfer {f'{name} {verb.usage}':<34} {verb.about}" for name, verb in VERBS.items()]
    lines = [_USAGE.format(verbs="\n".join(verbs))]
    for group in GROUPS:
        lines.append(f"\n{group}=")
        about = options(group, folders)
        width = max(map(len, about), default=0)
        lines += [f"    {name:<{width}}  {text}".rstrip() for name, text in about.items()]
    return "\n".join(lines)


_USAGE = """\
xfer: transfer learning for image classification, one experiment in one line.

    xfer                                    a quick start on data that ships with it
{verbs}

Each verb prints the command that it stands for; RUN is a folder, the end of its name, or last.

    xfer data.root=my_images                a pretrained ResNet-50 on your folder of images
    xfer experiment=NAME [group=option] [key=value]
    xfer -m experiment=NAME optim.lr=0.1,0.01          several runs
    xfer 'stages=[]' experiment=NAME        print the plan, do nothing
    xfer 'stages=[evaluate]' checkpoint.path=RUN_OR_FILE data.root=my_images
    xfer 'stages=[predict]' checkpoint.path=RUN_OR_FILE predict.input=FOLDER
    xfer 'stages=[predict]' predict.model=model.onnx predict.input=FOLDER
    xfer 'stages=[benchmark]' checkpoint.path=RUN data.root=my_images
    xfer 'stages=[audit]' data.root=my_images          labels that may be wrong, and more
    xfer 'stages=[leaderboard]' sweep.dir=SWEEP
    xfer 'stages=[compare]' 'compare.runs=[RUN,RUN]'
    xfer choose=cached choose.minutes=10 data.root=my_images

stages=[audit,lr_find,fit,evaluate,predict,export,benchmark,report]  any subset; seed=0
run.dir=DIR
--config-dir DIR  options of your own      --allow PACKAGE  classes of your own
--version                                  XFER_FULL_ERROR=1  tracebacks"""
