"""Whether the checkpoints in a run folder are those of the run that is resumed with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from pydantic import AfterValidator
from typing_extensions import TypedDict

from xfer.core.errors import ResumeError, XferError
from xfer.core.read_back import checked
from xfer.core.run_folder import BEST
from xfer.core.torch_file import load_tensors
from xfer.core.types import Plain
from xfer.plan.resume import START_ANEW
from xfer.weights.formats.checkpoint_format import Snapshot, identity, read_snapshot

if TYPE_CHECKING:
    from xfer.plan.plan import Plan


class _Row(TypedDict):
    epoch: int
    step: int


class Best(_Row):
    """The best epoch so far."""

    metric: str
    value: float


def _is_plain(name: str) -> str:
    # A copy is removed by its name, which must not lead out of the folder.
    if "/" in name or "\0" in name:
        raise ValueError("it is not a valid file name")
    return name


class _History(TypedDict):
    rows: list[_Row]
    best: Best | None
    copies: list[Annotated[str, AfterValidator(_is_plain)]]
    ranks: NotRequired[list[dict[str, int]]]


class _Phases(TypedDict):
    starts: list[int]
    before: dict[str, str]
    verdicts: list[dict[str, Any]]
    audits: list[dict[str, Any]]


class _Timeline(TypedDict):
    history: _History
    phases: _Phases


class _Callbacks(TypedDict):
    Timeline: _Timeline


class _Xfer(TypedDict):
    run: str


class _ResumeFile(TypedDict):
    epoch: int
    global_step: int
    xfer: _Xfer
    callbacks: _Callbacks


_TENSORS = {"state_dict": dict, "loops": dict, "optimizer_states": list, "lr_schedulers": list}
"""What is not plain, and so is looked at no further."""


def read_resume(path: Path, plan: Plan) -> Plain:
    """Read the file that a run is resumed from.

    Raises ResumeError unless it is a whole resume file of the run that ``plan`` is about, and the
    best checkpoint beside it is of that run too.
    """
    try:
        content = load_tensors(path)
    except XferError as error:
        raise ResumeError(path, error.what, START_ANEW, 22) from error
    try:
        facts: Plain = content if isinstance(content, dict) else {}
        checked(_ResumeFile, {key: facts.get(key) for key in _ResumeFile.__annotations__})
        for key, kind in _TENSORS.items():
            if not isinstance(facts.get(key), kind):
                raise ValueError(f"it has no {key}")
            if kind is list and len(facts[key]) != 1:
                raise ValueError(f"it has {len(facts[key])} {key}, not one")
    except ValueError as error:
        raise ResumeError(path, f"is not a resume file: {error}", START_ANEW, 23) from error
    if facts["xfer"]["run"] != identity(plan.facts):
        raise ResumeError(path, "was written by another run", START_ANEW, 24)
    if best := facts["callbacks"]["Timeline"]["history"]["best"]:
        check_best(path.with_name(BEST), plan, best, early=True)
    return facts


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
