"""Which run to resume. Without ``checkpoint.resume`` every run is a new one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from xfer.config.verbs import override, quoted
from xfer.core.checksum import checksum_holds
from xfer.core.errors import ResumeError, printable
from xfer.core.files import open_to_read
from xfer.core.log import log
from xfer.core.read_back import read_checked
from xfer.core.run_folder import BEST, LAST, PREVIOUS, checkpoints, is_live
from xfer.core.types import Plain

_FREE = (
    *("run", "stages", "checkpoint.resume", "predict", "compare", "report", "sweep", "choose"),
    *("data.workers", "data.decoded_gb", "features.dir", "features.max_gb"),
)
"""What may differ between a run and the command that resumes it: none decides a number."""


_NEW = (("calibration", "auto"), ("trainer.nodes", 1), ("trainer.strategy", "ddp"))
"""Keys that there were not always, with what they had been before."""


_RANKS: Plain = {"devices": 1, "nodes": 1, "strategy": "ddp"}
"""Keys of ``trainer`` that may be others when a run is named and goes on, with the usual values."""


def _below(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"'{name}' leads out of the folder")
    return name


_Below = Annotated[str, AfterValidator(_below)]


@dataclass(frozen=True)
class Earlier:
    """A run that was there before; ``finished`` with all stages that are asked for, and ``begun``
    on these devices, nodes and strategy, where it is to go on with others."""

    folder: Path
    finished: bool
    begun: Plain | None = None


def fingerprint(config: Plain, begun: Plain | None = None) -> str:
    """sha256 over everything in ``config`` that decides what is trained, with the devices, nodes
    and strategy that a run has ``begun`` with."""
    if begun:
        config = _on(config, begun)
    # A run that began before there was this key is resumed as well: auto left it as it was.
    keys = {k: v for k, v in flat(config).items() if (k, v) not in _NEW}
    facts = json.dumps(sorted(keys.items()), default=str)
    return hashlib.sha256(facts.encode()).hexdigest()


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values, without those that may differ."""
    if prefix.rstrip(".") in _FREE:
        return {}
    if not isinstance(config, dict):
        return {prefix.rstrip("."): config}
    return {
        k: v for key, value in config.items() for k, v in flat(value, f"{prefix}{key}.").items()
    }


def choose(
    resume: str | None, config: Plain, root: Path, run_dir: str | None = None
) -> Earlier | None:
    """The run that ``checkpoint.resume`` names: a folder, or with ``auto`` the newest below
    ``root`` with the same configuration that no process works on. Where ``run_dir`` fixes the
    folder, ``auto`` is the run in it, if one has begun there.

    Raises ResumeError when a named run is none, is at work, or was configured otherwise.
    """
    if resume is None:
        return None
    if resume == "auto" and run_dir is not None:
        folder = Path(run_dir).expanduser()
        return _named(folder, config) if "fingerprint" in _plan(folder) else None
    if resume == "auto":
        folders = sorted((p for p in root.glob("*/plan.json")), key=lambda p: p.parent.name)
        for plan in reversed(folders):
            try:
                facts = _plan(plan.parent)
            except ResumeError:
                continue  # whosever it is, it is not known to be of this configuration
            # Begun with these devices, or gone on with them last.
            prints = facts.get("fingerprint"), fingerprint(facts.get("config", {}))
            if fingerprint(config) in prints and not is_live(plan.parent):
                return _earlier(plan.parent, config)
        return None
    return _named(Path(resume).expanduser(), config)


def _named(folder: Path, config: Plain) -> Earlier:
    facts = _plan(folder)
    if not {"fingerprint", "config"} <= facts.keys():
        fix = "give checkpoint.resume=OUTPUT_FOLDER"
        raise ResumeError(folder, "is no xfer run folder", fix, 1)
    if is_live(folder):
        raise _at_work(folder)
    begun = _begun(facts)
    if facts["fingerprint"] != fingerprint(config, begun):
        before, now = flat(_on(facts["config"], begun)), flat(_on(config, begun))
        changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        changes = "; ".join(f"{k} was {before.get(k)}, now {now.get(k)}" for k in changed[:5])
        fix = "give the same options, or drop checkpoint.resume"
        raise ResumeError(folder, f"was configured otherwise: {changes}", fix, 3)
    return _earlier(folder, config)


def _begun(facts: Plain) -> Plain:
    trainer = facts.get("config", {}).get("trainer", {})
    began: Plain = facts.get("begun") or {key: trainer.get(key, _RANKS[key]) for key in _RANKS}
    return began


def _on(config: Plain, begun: Plain) -> Plain:
    trainer = config.get("trainer", {})
    return {**config, "trainer": {key: begun.get(key, trainer[key]) for key in trainer}}


def _at_work(folder: Path) -> ResumeError:
    return ResumeError(folder, "is being worked on by another process", "wait for it", 2)


def check_same(earlier: Earlier, facts: Plain) -> None:
    """Raise ResumeError when classes, data, source weights or the teacher changed since ``earlier``
    began."""
    before = _plan(earlier.folder)
    kinds = (("classes", "classes"), ("splits", "data"), ("source", "source weights"))
    taught = [(plan.get("teacher") or {}).get("sha256") for plan in (before, facts)]
    wrong = [what for key, what in kinds if before.get(key) != json.loads(json.dumps(facts[key]))]
    wrong += ["teacher's weights"] if taught[0] != taught[1] else []
    if wrong:
        what = f"its {wrong[0]} have changed since it began"
        raise ResumeError(earlier.folder, what, "start a new run", 4)


def _earlier(folder: Path, config: Plain) -> Earlier:
    named = quoted(override("checkpoint.path", str(folder)))
    check_stages(folder, config["stages"], f"'stages=[...]' {named}")
    finished = _status(folder)["state"] == "finished" and not lacks(folder, config["stages"])
    if finished:
        check_files(folder, _DRAWN if list(config["stages"]) == ["report"] else ())
    begun, trainer = _begun(_plan(folder)), config.get("trainer", {})
    same = all(trainer.get(key, value) == value for key, value in begun.items())
    return Earlier(folder, finished, None if same else begun)


_DRAWN = ("report.html", "report.md")


def check_files(folder: Path, but: Collection[str] = ()) -> None:
    """Raise ResumeError unless every file that a finished run vouches for is as it was left, all
    ``but`` some."""
    wrong = []
    vouched = _status(folder)["files"].items()
    for name, digest in ((name, digest) for name, digest in vouched if name not in but):
        try:
            with open_to_read(folder / name) as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                    wrong.append(f"{name} has changed")
        except FileNotFoundError:
            wrong.append(f"{name} is gone")
        except OSError as error:
            wrong.append(f"{name} cannot be read ({error.strerror})")
    if wrong and is_live(folder):  # its files are written first, and vouched for at last
        raise _at_work(folder)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        what = f"has finished, but since then {', '.join(wrong[:3])}{more}"
        raise ResumeError(folder, what, _BACK, 21)


def lacks(folder: Path, stages: Sequence[str]) -> bool:
    """Whether the run in ``folder``, as it was asked for, has not all of ``stages``."""
    return not set(stages) <= set(_stages(folder, stages))


def check_stages(folder: Path, stages: Sequence[str], other: str) -> None:
    """Raise ResumeError for a finished run that is to do more stages, and not all of those that it
    has done: its result would lose them. ``other`` is what else may be typed."""
    if _status(folder)["state"] != "finished" or not lacks(folder, stages):
        return
    done = _stages(folder, stages)
    if not set(done) <= set(stages):
        asked, whole = ",".join(stages), ",".join(dict.fromkeys([*done, *stages]))
        what = f"has done stages=[{','.join(done)}], and is to do stages=[{asked}]"
        raise ResumeError(folder, what, f"type 'stages=[{whole}]', or {other}", 13)


def _stages(folder: Path, default: Sequence[str]) -> Sequence[str]:
    stages: Sequence[str] = _plan(folder).get("config", {}).get("stages", default)
    return stages


def resume_file(folder: Path) -> Path | None:
    """The file to resume from: the last one, or where that is damaged the one before, which takes
    its place; ``None`` when the run had not come to save one.

    What a run does next is a function of where it stands, so an older file loses time and nothing
    else. Raises ResumeError when neither is whole, or the best checkpoint is damaged.
    """
    last, previous, best = (checkpoints(folder) / name for name in (LAST, PREVIOUS, BEST))
    if not (last.is_file() or previous.is_file()):
        return None
    if not _is_whole(last):
        what = "is damaged" if last.exists() else "is missing"
        if not _is_whole(previous):
            raise ResumeError(last, f"{what}, and there is no whole file before it", START_ANEW, 5)
        log.warning(f"{printable(last)} {what}: the run is resumed from the file before it")
        previous.replace(last)
    if best.exists() and not _is_whole(best):
        what = "is damaged: its bytes do not match the sha256 inside"
        raise ResumeError(best, what, START_ANEW, 6)
    return last


def _is_whole(path: Path) -> bool:
    return path.is_file() and checksum_holds(path) is True


START_ANEW = "start a new run: the same command without checkpoint.resume"
_BACK = f"put it back, or {START_ANEW}, and with another run.dir"


_Count = Annotated[int, Field(gt=0)]


class _Begun(TypedDict, total=False):
    devices: _Count
    nodes: _Count
    strategy: Literal["ddp", "fsdp"]


class _Config(TypedDict, total=False):
    stages: list[str]
    trainer: _Begun


class Planned(TypedDict, total=False):
    """What is read of ``plan.json`` to resume a run."""

    fingerprint: str
    config: _Config
    begun: _Begun


class Ended(TypedDict, total=False):
    """What is read of ``status.json``."""

    state: Literal["running", "finished", "failed", "interrupted"]
    code: int | None
    exit: int | None
    message: str | None
    remedy: str | None
    files: dict[_Below, str]


def _plan(folder: Path) -> Plain:
    facts: Plain | None = read_checked(folder / "plan.json", Planned, _BACK, 20)
    return facts or {}


def _status(folder: Path) -> Plain:
    said = read_checked(folder / "status.json", Ended, _BACK, 20)
    return {"state": "running", "files": {}, **(said or {})}
