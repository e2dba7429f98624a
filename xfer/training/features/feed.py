"""What each phase of a fit trains on: images, or the features of what the phase has frozen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Required

from typing_extensions import TypedDict

from xfer.core.checked import read_checked
from xfer.core.errors import ConfigError
from xfer.core.files import write_json
from xfer.core.log import log
from xfer.core.types import Plain
from xfer.data.loader import EvalLoader, TrainLoader
from xfer.plan.resume import START_ANEW
from xfer.training.features import UNCACHED, Auto
from xfer.training.features.cut import Cut, Tail
from xfer.training.features.extract import Extraction, Partly
from xfer.training.features.feature_loader import Kept, Rows, largest_cut
from xfer.training.features.find_cut import Refusal

if TYPE_CHECKING:
    from xfer.plan.plan import Plan
    from xfer.training.distributed.group import Team
    from xfer.training.module import Classifier


class Feed:
    """Switches the loaders and the network between images and features.

    ``facts`` is what ``result.json`` says of it, and ``features.json`` in ``folder`` until then: a
    run that goes on behind its last epoch enters no phase any more. ``seconds`` of wall time went
    into features. ``last`` are those of the phase that was left last, if it had any.
    """

    def __init__(
        self, plan: Plan, folder: Path, loaders: tuple[TrainLoader, EvalLoader], team: Team
    ) -> None:
        self.plan, self.note, self.team = plan, folder / "features.json", team
        self.train, self.val = loaders
        # What an earlier process of the run has noted of its features.
        earlier: Plain | None = read_checked(self.note, _Noted, START_ANEW, 28)
        self.facts: Plain = earlier or dict(UNCACHED)
        self.seconds = 0.0
        self.last: Kept | None = None
        self._module: Classifier | None = None
        self._kept: Kept | None = None
        self._tail: Tail | None = None

    def enter(self, module: Classifier) -> None:
        """Cut the network of ``module`` where its phase has frozen a prefix, if that is asked for.

        Raises ConfigError when features are required and cannot be kept.
        """
        options = self.plan.specs.features
        if not isinstance(options, Auto):
            return
        began = time.perf_counter()
        with self.team.leader_first():
            kept = keepable(self.plan, module, options)
        if isinstance(kept, Refusal):
            self._refuse(kept.reason, module.phase)
        else:
            self._module, self._kept, work = module, kept, kept.work
            self.train.features = Rows(self._kept.train, self._kept.views, work.samples("train"))
            self.val.features = Rows(self._kept.val, 1, work.samples("val"))
        self.seconds += time.perf_counter() - began

    def _refuse(self, reason: str, phase: int) -> None:
        """Raise ConfigError where features are required, unless only other phases freeze."""
        norms = set(self.plan.layout.batch_norms)  # that rest amid what trains leave no prefix
        freezes = [
            any(row.frozen and row.name not in norms for row in phase.rows)
            for phase in self.plan.phases
        ]
        if self.plan.specs.features.use == "require" and (freezes[phase] or not any(freezes)):
            raise ConfigError("features", f"cannot be kept: {reason}", "use features=auto", 59)
        log.info(f"features are not kept: {reason}")

    def ready(self, epoch: int) -> None:
        """Have the features of ``epoch`` (from 0), and a network that takes them."""
        kept, module = self._kept, self._module
        if kept is None or module is None:
            return
        began, first = time.perf_counter(), not kept.train
        if not kept.has(epoch):
            self._make_whole()
            with self.team.leader_first():
                kept.prepare(epoch)
            self.facts = kept.facts(self.facts)
            if self.team.leads:
                write_json(self.note, self.facts)
        if self._tail is None:
            self._tail, module.cut = Tail(module.net, kept.cut), True
        if first:
            log.info(told(self.facts, kept.found, kept.most_bytes))
        self.seconds += time.perf_counter() - began

    def leave(self) -> None:
        """The whole network on images again."""
        self._make_whole()
        self.last = self._kept
        self._kept = self.train.features = self.val.features = None

    def _make_whole(self) -> None:
        if self._tail is not None and self._module is not None:
            self._tail.remove()
            self._tail, self._module.cut = None, False


def keepable(plan: Plan, module: Partly, options: Auto) -> Kept | Refusal:
    """The features of the phase that ``module`` is in, none of them there yet, or why there can be
    none."""
    work = Extraction(plan, module, options)
    reason = _obstacle(plan, options)
    cut = Refusal(reason) if reason else fitting(work, options)
    return cut if isinstance(cut, Refusal) else Kept(work, cut)


def fitting(work: Extraction, options: Auto) -> Cut | Refusal:
    """The cut, unless the views behind it would push each other out of the store."""
    cut = work.cut()
    if isinstance(cut, Refusal) or largest_cut(work, cut) <= options.max_gb * 1e9:
        return cut
    size = f"{largest_cut(work, cut) / 1e9:.3g} GB"
    return Refusal(f"all views take {size}, more than features.max_gb={options.max_gb:g}")


class _Noted(TypedDict, total=False):
    cached: Required[bool]
    hit: Required[bool | None]
    views: Required[int | None]


def _obstacle(plan: Plan, options: Auto) -> str | None:
    """Why a run cannot train on features, whatever its network is."""
    if plan.specs.augment.mix(len(plan.card.classes)) is not None:
        return "augment mixes whole images (mixup, cutmix)"
    if plan.specs.trainer.compile:
        return "trainer.compile is on"
    if plan.specs.freeze.batch_norm != "eval":
        return f"freeze.batch_norm={plan.specs.freeze.batch_norm} moves statistics"
    data, random = plan.specs.data, plan.specs.augment.random and options.views != 1
    if data is not None and data.sampler == "balanced" and random:
        return "data.sampler=balanced augments an image anew each time it comes"
    return None


def told(facts: Plain, found: bool, most_bytes: int) -> str:
    """What is known of features, in one line."""
    again = "found" if found else "computed"
    shown = f"{facts['views']} views an image"
    if not facts["augmented"]:
        shown = "the evaluation view of each image"
    apart, same = facts["difference"], "trained bit for bit as on images"
    if not facts["exact"]:
        near = "bit for bit" if apart == 0 else f"within {apart:.1e}"
        same = f"equal {near} where it was computed again"
    place = ", ".join(facts["cut"])
    return f"features at {place} {again}: {shown}, {most_bytes / 1e6:.1f} MB; {same}"
