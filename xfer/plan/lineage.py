"""Whether the checkpoints in a run folder are those of the run that goes on with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator
from typing_extensions import TypedDict

from xfer.core.checked import checked
from xfer.core.errors import ResumeError, XferError
from xfer.core.run_folder import BEST
from xfer.core.torch_file import load_tensors
from xfer.core.types import Plain
from xfer.plan.resume import START_ANEW
from xfer.weights.formats.checkpoint_format import Snapshot, identity, read_snapshot

if TYPE_CHECKING:
    from xfer.plan.plan import Plan


class Best(TypedDict):
    """The best epoch so far."""

    metric: str
    value: float
    epoch: int
    step: int


class _Row(TypedDict):
    epoch: int
    step: int


def _plain(name: str) -> str:
    # A kept copy is removed by its name, which must not lead out of the folder.
    if "/" in name or "\0" in name:
        raise ValueError("it is no name of a file")
    return name


_Name = Annotated[str, AfterValidator(_plain)]


class _History(TypedDict):
    rows: list[_Row]
    best: Best | None
    kept: list[_Name]


class _Phases(TypedDict):
    starts: list[int]
    before: dict[str, str]
    verdicts: list[dict[str, Any]]
    audits: list[dict[str, Any]]


class _Callbacks(TypedDict):
    History: _History
    Phases: _Phases


class _Xfer(TypedDict):
    run: str


class _File(TypedDict):
    epoch: int
    global_step: int
    xfer: _Xfer
    callbacks: _Callbacks


_TENSORS = {"state_dict": dict, "loops": dict, "optimizer_states": list, "lr_schedulers": list}
"""What is not plain, and so is looked at no further."""


def read_resume(path: Path, plan: Plan) -> Plain:
    """Read the file that a run goes on from.

    Raises ResumeError unless it is a whole resume file of the run that ``plan`` is about, and the
    best checkpoint beside it is that run's own.
    """
    try:
        content = load_tensors(path)
    except XferError as error:
        raise ResumeError(path, error.what, START_ANEW, 22) from error
    try:
        facts = content if isinstance(content, dict) else {}
        checked(_File, {key: facts.get(key) for key in _File.__annotations__})
        for key, kind in _TENSORS.items():
            if not isinstance(content.get(key), kind):
                raise ValueError(f"it has no {key}")
            if kind is list and len(content[key]) != 1:
                raise ValueError(f"it has {len(content[key])} {key}, not one")
    except ValueError as error:
        raise ResumeError(path, f"is no resume file: {error}", START_ANEW, 23) from error
    if content["xfer"]["run"] != identity(plan.facts):
        raise ResumeError(path, "was written by another run", START_ANEW, 24)
    if best := content["callbacks"]["History"]["best"]:
        check_best(path.with_name(BEST), plan, best, early=True)
    found: Plain = content
    return found


def check_best(path: Path, plan: Plan, best: Plain, early: bool = False) -> Snapshot:
    """Read the best checkpoint of the run that ``plan`` is about.

    Raises ResumeError for another run's, and for that of another epoch than ``best``; ``early``
    lets a later one pass, which a run that was killed may have left.
    """
    try:
        snapshot = read_snapshot(path)
    except XferError as error:
        raise ResumeError(path, error.what, START_ANEW, 22) from error
    if snapshot.run != identity(plan.facts):
        raise ResumeError(path, "was written by another run", START_ANEW, 24)
    step = snapshot.progress.get("step")
    later = early and isinstance(step, int) and step > best["step"]
    if snapshot.progress != best and not later:
        what = f"is of step {step}, and the best one is of step {best['step']}"
        raise ResumeError(path, what, START_ANEW, 25)
    return snapshot
