"""What each phase of a fit trains on: images, or the features of what the phase has frozen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Required

from typing_extensions import TypedDict

from xfer.core.errors import ConfigError
from xfer.core.files import write_json
from xfer.core.log import log
from xfer.core.read_back import read_checked
from xfer.core.types import Plain
from xfer.data.loader import EvalLoader, TrainLoader
from xfer.plan.resume import START_ANEW
from xfer.training.distributed.group import ALONE, ProcessGroup
from xfer.training.features import UNCACHED, AutoFeatures
from xfer.training.features.cut import Cut, Tail
from xfer.training.features.extract import Extraction, PartlyFrozen
from xfer.training.features.feature_loader import CachedFeatures, FeatureBatches, largest_bytes
from xfer.training.features.find_cut import Refusal

if TYPE_CHECKING:
    from xfer.plan.plan import Plan
    from xfer.training.module import Classifier
    from xfer.training.teacher import Lessons


class FeatureSwitch:
    """Switches the loaders and the network between images and features.

    ``facts`` is what ``result.json`` says of it, and ``features.json`` in ``folder`` until then: a
    run that resumes after its last epoch enters no phase any more. ``seconds`` of wall time went
    into features. ``last`` are those of the phase that was left last, if it had any.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        loaders: tuple[TrainLoader, EvalLoader | None],
        group: ProcessGroup,
    ) -> None:
        self.plan, self.note, self.group = plan, folder / "features.json", group
        self.train, self.val = loaders
        # What an earlier process of the run has noted of its features.
        earlier: Plain | None = read_checked(self.note, _Noted, START_ANEW, 28)
        self.facts: Plain = earlier or dict(UNCACHED)
        self.seconds = 0.0
        self.last: CachedFeatures | None = None
        self.lessons: Lessons | None = None
        self._module: Classifier | None = None
        self._cached: CachedFeatures | None = None
        self._tail: Tail | None = None

    def enter(self, module: Classifier) -> None:
        """Cut the network of ``module`` where its phase has frozen a prefix, if that is asked for.

        Raises ConfigError when features are required and cannot be cached.
        """
        self._meet(module)
        options = self.plan.specs.features
        if not isinstance(options, AutoFeatures):
            return
        began = time.perf_counter()
        with self.group.rank_zero_first():
            frozen = PartlyFrozen(module.net, module.hashes, module.device)
            cached = cacheable(self.plan, frozen, options, self.group)
        if isinstance(cached, Refusal):
            self._refuse(cached.reason, module.phase)
        else:
            self._module, self._cached, splits = module, cached, cached.work.splits
            self.train.features = FeatureBatches(cached.train, cached.views, splits["train"])
            if self.val is not None:
                self.val.features = FeatureBatches(cached.val, 1, splits["val"])
        self.seconds += time.perf_counter() - began

    def _meet(self, module: Classifier) -> None:
        """Have batches come with the answers of the teacher, where there is one."""
        if self.plan.teacher is None or self.lessons is not None:
            return
        from xfer.training.teacher import Lessons

        run = self.note.parent if self.group.leads else None
        self.lessons = Lessons(self.plan, self.plan.teacher, module.device, run, self.group)
        self.train.taught = self.lessons.batch

    def _refuse(self, reason: str, phase: int) -> None:
        """Raise ConfigError where features are required, unless only other phases freeze."""
        norms = set(self.plan.layout.batch_norms)  # that rest amid what trains leave no prefix
        freezes = [
            any(row.frozen and row.name not in norms for row in phase.rows)
            for phase in self.plan.phases
        ]
        if self.plan.specs.features.use == "require" and (freezes[phase] or not any(freezes)):
            raise ConfigError("features", f"cannot be cached: {reason}", "use features=auto", 59)
        log.info(f"features are not cached: {reason}")

    def ready(self, epoch: int) -> None:
        """Have the features of ``epoch`` (from 0), a network that takes them, and what the teacher
        answers to the same views."""
        self._teach(epoch)
        cached, module = self._cached, self._module
        if cached is None or module is None:
            return
        began, first = time.perf_counter(), not cached.train
        if not cached.has(epoch):
            self._make_whole()
            cached.prepare(epoch)
            self.facts = cached.facts(self.facts)
            if self.group.leads:
                write_json(self.note, self.facts)
        if self._tail is None:
            self._tail, module.cut = Tail(module.net, cached.cut), True
        if first:
            log.info(cached.summary())
        self.seconds += time.perf_counter() - began

    def _teach(self, epoch: int) -> None:
        """Have the teacher's answers to the views of ``epoch``, where there is a teacher."""
        lessons, cached = self.lessons, self._cached
        if lessons is None:
            return
        began, first = time.perf_counter(), not lessons.facts["views"]
        lessons.cached_views = None if cached is None else (cached.work.views or 0)
        lessons.ready(epoch)
        if first and self.group.leads:
            log.info(lessons.summary())
        self.seconds += time.perf_counter() - began

    def leave(self) -> None:
        """The whole network on images again."""
        self._make_whole()
        self.last = self._cached
        self._cached = self.train.features = None
        if self.val is not None:
            self.val.features = None

    def _make_whole(self) -> None:
        if self._tail is not None and self._module is not None:
            self._tail.close()
            self._tail, self._module.cut = None, False


def cacheable(
    plan: Plan, frozen: PartlyFrozen, options: AutoFeatures, group: ProcessGroup = ALONE
) -> CachedFeatures | Refusal:
    """The features of what is frozen now, none of them there yet, or why there can be none."""
    work, augment = Extraction(plan, frozen, options, group), plan.specs.augment
    reason = ""
    if augment.mix(len(plan.card.classes)) is not None:
        reason = "augment mixes whole images (mixup, cutmix)"
    elif plan.specs.trainer.shards:
        reason = "trainer.strategy=fsdp divides what is frozen as well"
    elif plan.specs.trainer.compile:
        reason = "trainer.compile is on"
    elif plan.specs.freeze.batch_norm != "eval":
        reason = f"freeze.batch_norm={plan.specs.freeze.batch_norm} moves statistics"
    elif work.data.sampler == "balanced" and augment.random and options.views != 1:
        reason = "data.sampler=balanced augments an image anew each time it is drawn"
    cut = Refusal(reason) if reason else cut_within(work, options)
    return cut if isinstance(cut, Refusal) else CachedFeatures(work, cut)


def cut_within(work: Extraction, options: AutoFeatures, answers: bool = False) -> Cut | Refusal:
    """The cut, unless its views would push each other out of the store."""
    cut = work.cut(answers)
    if isinstance(cut, Refusal) or (size := largest_bytes(work, cut)) <= options.max_gb * 1e9:
        return cut
    over = f"more than features.max_gb={options.max_gb:g}"
    return Refusal(f"all views take {size / 1e9:.3g} GB, {over}")


class _Noted(TypedDict, total=False):
    cached: Required[bool]
    hit: Required[bool | None]
    views: Required[int | None]
