"""The members of a soup: the finished jobs of one sweep, of one network and the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.core.errors import SweepError, plural
from xfer.core.files import file_sha256
from xfer.core.run_folder import best_checkpoint
from xfer.core.types import Card, Dataset, Plain, StateDict
from xfer.sweep.leaderboard.read_sweep import JobRecord, SweepRecord, read_facts

if TYPE_CHECKING:
    from torch import Tensor

_FILLED = ("Knn", "Prototype")
_OTHER_SWEEP = "sweep what leaves the network as it is, such as optim.lr, seed or augment"


@dataclass(frozen=True, eq=False)
class Member:
    """A finished job: its run folder, the sha256 of its best checkpoint, that checkpoint's card,
    and the sha256 of the images of its run by split."""

    job: int
    folder: Path
    sha256: str
    card: Card
    splits: Mapping[str, str]
    parameters: Plain

    def state(self, make: Callable[[str, Plain], Any]) -> StateDict:
        """The tensors of its network by name, on the CPU, adapters merged; read from the disk.
        ``make`` builds a spec of a group from its facts. Raises WeightsError."""
        from xfer.models.restore import open_checkpoint

        net, _ = open_checkpoint(self.folder, make)
        return {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}


def members_of(sweep: SweepRecord) -> list[Member]:
    """The finished jobs of ``sweep``, by number, if a mean of their weights means something.

    Raises SweepError, with the job and what is wrong with it, for fewer than two, for
    cross-validations, for heads that hold images, and for jobs that differ in network, classes,
    input or source weights; WeightsError for a broken checkpoint.
    """
    finished = [job for job in sweep.jobs if job.state == "finished"]
    if len(finished) < 2:
        have = "has" if len(finished) == 1 else "have"
        done = f"{len(finished)} of {plural(len(sweep.jobs), 'job')} {have} finished"
        what = f"{done}, and a soup is of several"
        fix = "finish the sweep: type its command again with sweep.dir"
        raise SweepError(sweep.folder, what, fix, 30)
    members = [_member(job) for job in finished]
    first, *others = members
    for other in others:
        if said := _difference(first.card, other.card):
            what = f"jobs {first.job} and {other.job} differ in {said}: their mean is no network"
            raise SweepError(sweep.folder, what, _OTHER_SWEEP, 31)
    return members


def _member(job: JobRecord) -> Member:
    from xfer.models.restore import read_checkpoint

    where = f"job {job.number}"
    if job.folded:
        what = "is a cross-validation, whose model was fitted on all images: none is left to choose"
        raise SweepError(where, what, "sweep without data.folds, on data with val", 33)
    card = read_checkpoint(job.folder)[1].card.merged()
    head = str(card.head["_target_"]).rpartition(".")[2]
    if head in _FILLED:
        what = f"its {head.lower()} head holds training images and no weights to average"
        raise SweepError(where, what, "sweep heads that are trained, such as head=linear", 32)
    if not card.source.get("sha256"):
        what = "began from random weights, and networks that share no beginning have no mean"
        raise SweepError(where, what, "sweep runs of a source, such as source=hub", 31)
    plan, _ = read_facts(job.folder / "plan.json")
    splits = {name: facts["sha256"] for name, facts in (plan.get("splits") or {}).items()}
    sha256 = file_sha256(best_checkpoint(job.folder))
    return Member(job.number, job.folder, sha256, card, splits, job.parameters)


def _difference(one: Card, other: Card) -> str:
    """What makes two networks different ones, or nothing. Of heads the tensors decide: dropout has
    none."""
    facts: list[tuple[str, Any, Any]] = [
        ("backbone", one.backbone, other.backbone),
        ("classes", one.classes, other.classes),
        ("task", _task(one), _task(other)),
        ("input", one.input, other.input),
        ("source weights", one.source["sha256"], other.source["sha256"]),
        ("layers as MindSpore has them", one.compat, other.compat),
    ]
    return next((name for name, mine, theirs in facts if mine != theirs), "")


def _task(card: Card) -> Plain:
    """What an average has of a task: thresholds that were chosen are chosen anew."""
    given = card.task.get("chosen_on") == "given"
    return card.task if given else {"kind": card.task.get("kind")}


def check_tensors(members: list[Member], make: Callable[[str, Plain], Any]) -> None:
    """Raise SweepError where tensors have other names or shapes, or hold integers that differ."""
    first, *others = members
    state = first.state(make)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    whole = {name: tensor for name, tensor in state.items() if not tensor.is_floating_point()}
    for other in others:
        theirs = other.state(make)
        sizes = {name: tensor.shape for name, tensor in theirs.items()}
        odd = [n for n in {**shapes, **sizes} if sizes.get(n) != shapes.get(n)]
        odd += [n for n, tensor in whole.items() if n in theirs and not _same(tensor, theirs[n])]
        if odd:
            what = f"jobs {first.job} and {other.job} differ in the tensor {odd[0]}"
            raise SweepError("sweep.dir", what, _OTHER_SWEEP, 31)


def _same(one: Tensor, other: Tensor) -> bool:
    # How many batches a BatchNorm has seen decides nothing once its statistics are set.
    return one.ndim == 0 or bool((one == other).all())


def check_images(members: list[Member], dataset: Dataset | None) -> None:
    """Raise SweepError where ``dataset`` is not that of every member: some of the images that are
    to choose or judge may have been trained on."""
    now = {name: split.sha256 for name, split in dataset.splits.items()} if dataset else {}
    for member in members:
        for split in ("train", "val", "test"):
            if member.splits.get(split) != now.get(split):
                what = f"{split} is not what it was for job {member.job}"
                fix = "give the data of the sweep, as its command has it"
                raise SweepError("data", what, fix, 34)
