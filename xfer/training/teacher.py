"""What the teacher of ``loss=distill`` answers to the images of a run, cached like features.

The teacher sees what the student sees (Beyer et al., 2022): of an image that is augmented the same
crop, drawn at the student's size and resized to the teacher's; of an image that is not, the view
that the teacher is evaluated on. Its logits are numbers an image and view that depend on no
student, so that they are computed once for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Required

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from xfer.core.device import arithmetic_of, device_of
from xfer.core.errors import WeightsError, XferError
from xfer.core.files import file_sha256, write_json
from xfer.core.live_line import counted
from xfer.core.log import log
from xfer.core.read_back import read_checked
from xfer.core.types import Plain
from xfer.data.loader import ImageDataset, Loader, eval_images, train_images
from xfer.plan.resume import START_ANEW
from xfer.plan.teacher_plan import TeacherPlan, teacher_file
from xfer.training.distributed.group import ALONE, ProcessGroup
from xfer.training.distributed.rendezvous import NOBODY, Lead, SentPlan
from xfer.training.features import AutoFeatures, folder
from xfer.training.features.feature_dir import EntryFiles
from xfer.training.features.feature_parts import assisted, put_together, shared
from xfer.training.features.store import FeatureEntry, Store, digest, rows
from xfer.training.soft_targets import SoftTargets

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.data.sampler import Key
    from xfer.plan.plan import Plan

    Answers = Callable[[torch.Tensor], torch.Tensor]

_CHUNK = 32
"""Images that are answered together: some kernels answer otherwise for another batch, and what is
cached must not depend on a student's batches."""
_NOTE = "teacher.json"
_NOTHING: Plain = {"images": 0, "seconds": 0.0, "views": [], "hit": None}
"""What a run has asked its teacher for, before it has asked."""


class Softened(nn.Module):
    """The loss of :class:`xfer.training.loss.Distill`; ``hard`` is the part of the labels."""

    def __init__(self, hard: nn.Module, temperature: float, weight: float) -> None:
        super().__init__()
        self.hard, self.temperature, self.weight = hard, temperature, weight

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, taught: torch.Tensor
    ) -> torch.Tensor:
        """Of logits (n, classes), labels (n,) and the teacher's logits (n, classes), the mean."""
        hard: torch.Tensor = self.hard(logits, labels)
        return (1 - self.weight) * hard + self.soft(logits, taught)

    def soft(self, logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """The teacher's part, with its weight."""
        heat = self.temperature
        each = self.entropy(logits.float() / heat, taught.float() / heat)
        return self.weight * heat**2 * each

    def entropy(self, logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy with what the teacher answers, (n, classes) both."""
        return F.cross_entropy(logits, taught.softmax(dim=1))


class SoftenedLabels(Softened):
    """The same with several labels an image, (n, classes) of 1, 0 and -1 for unknown: each class
    is a yes or no of its own. What the teacher answers counts for every label, known or not."""

    def entropy(self, logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """The mean binary cross-entropy with what the teacher answers, (n, classes) both."""
        return F.binary_cross_entropy_with_logits(logits, taught.sigmoid())


class Lessons:
    """The teacher's logits for the images of ``plan``, view by view, on ``device``.

    An entry of the store is used where manifest, key and sha256 agree; the key has everything that
    the logits depend on, and nothing of the student but the size and the interpolation of its
    crops. The teacher itself is opened when there is something that it has not answered. ``run``
    is the folder that holds the facts until the run ends; ``cached_views`` is how many augmented
    views of an image are trained on in turn, 0 for the evaluation view, ``None`` for a new one
    every epoch. Each rank of ``group`` asks the teacher for an equal part of the images.
    """

    def __init__(
        self,
        plan: Plan,
        teacher: TeacherPlan,
        device: torch.device,
        run: Path | None = None,
        group: ProcessGroup = ALONE,
    ) -> None:
        self.plan, self.teacher, self.device, self.run = plan, teacher, device, run
        self.group = group
        given = plan.specs.features
        options = given if isinstance(given, AutoFeatures) else AutoFeatures()
        self.store = Store(folder(options.dir), options.max_gb)
        self.facts: Plain = asked_in(run) if run else dict(_NOTHING)
        self.cached_views: int | None = None
        self._entries: dict[int | None, FeatureEntry] = {}
        self._answers: Answers | None = None

    def view_of(self, epoch: int) -> int | None:
        """The view that ``epoch`` (from 0) is trained on; ``None`` is the evaluation view."""
        if not self.plan.specs.augment.random or self.cached_views == 0:
            return None
        return epoch if self.cached_views is None else epoch % self.cached_views

    def ready(self, epoch: int) -> None:
        """Have the logits of ``epoch`` (from 0)."""
        view = self.view_of(epoch)
        if view in self._entries:
            return
        if self.cached_views is None:
            self._entries.clear()  # a view an epoch is used once
        self._entries[view] = self.entry("train", view)

    def batch(self, keys: Sequence[Key]) -> torch.Tensor:
        """Logits (n, classes) of the training images with these keys, all of one epoch."""
        self.ready(keys[0][0])
        return rows(self._entries[self.view_of(keys[0][0])], [key[1] for key in keys])

    def entry(self, split: str, view: int | None) -> FeatureEntry:
        """Logits of all images of a split, float32 (n, classes) in their order: stored, or
        computed. Raises OutputError when they cannot be stored, DataError for a broken image,
        WeightsError for a teacher that is another one since it was planned."""
        began, samples = time.perf_counter(), self.plan.split(split)
        computed = partial(self._computed, split, view)
        if self.group.leads:
            full = {**self.key(view), "data": samples.sha256}
            files = EntryFiles(self.store.folder, digest(full))
            together = lambda: put_together(files, self.group, computed())  # noqa: E731
            entry = self.store.entry(full, len(samples), together)
            shared(self.group, full)
        else:
            entry = assisted(self.store, self.group, len(samples), computed)
        if split == "train":
            self._note(entry, view, time.perf_counter() - began)
        return entry

    def key(self, view: int | None) -> Plain:
        """Everything that the logits of a view depend on, but the images."""
        teacher, device, spec = self.teacher, self.device, self.plan.card.input
        packages = ("onnxruntime",) if teacher.kind == "onnx" else ("timm", "torchvision")
        drawn: Plain | None = None
        if view is not None:
            drawn = {"size": list(spec.size), "interpolation": spec.interpolation}
            drawn |= {"augment": self.plan.specs.facts["augment"], "view": view}
        return {
            "teacher": teacher.sha256,
            "columns": list(teacher.columns),
            "input": teacher.input.to_plain(),
            "drawn": drawn,
            "chunk": _CHUNK,
            "device": device.type,
            "processor": arithmetic_of(device),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", *packages)},
        }

    def _note(self, entry: FeatureEntry, view: int | None, seconds: float) -> None:
        before = self.facts
        asked = 0 if entry.hit else len(entry.array)
        self.facts = {
            "images": before["images"] + asked,
            "seconds": before["seconds"] + (seconds if asked else 0.0),
            "views": [*before["views"], *([] if view in before["views"] else [view])],
            "hit": entry.hit and before["hit"] is not False,
        }
        if self.run:
            note(self.run, self.facts)

    def _computed(self, split: str, view: int | None) -> Iterator[torch.Tensor]:
        """Logits (m, classes) of this rank's part of a split, chunk by chunk."""
        if self._answers is None:
            self._answers = opened(self.teacher, self.plan, self.device)
        pictures, columns = self._pictures(split, view), list(self.teacher.columns)
        keys: list[Any] = list(range(len(pictures)))
        if view is not None:
            keys = [(view, index) for index in keys]
        data = self.plan.specs.data
        chunks = [keys[i : i + _CHUNK] for i in range(0, len(keys), _CHUNK)]
        loader = Loader(
            *(pictures, pictures.collate, data.workers if data else 0),
            batch_sampler=[chunks[number] for number in self.group.share.of(len(chunks))],
        )
        for batch in counted(loader, f"the teacher on {split}", len(loader)):
            if isinstance(batch, XferError):
                raise batch
            yield self._answers(self._resized(batch[0], view))[:, columns].contiguous()

    def _pictures(self, split: str, view: int | None) -> ImageDataset:
        samples, spec = self.plan.split(split), self.teacher.input
        if view is None:
            return eval_images(samples, spec)
        # The student's crop, in the numbers that the teacher takes.
        drawn = replace(self.plan.card.input, mean=spec.mean, std=spec.std)
        return train_images(samples, drawn, self.plan.specs.augment)

    def _resized(self, images: torch.Tensor, view: int | None) -> torch.Tensor:
        size = self.teacher.input.size
        if view is None or tuple(images.shape[-2:]) == size:
            return images
        return F.interpolate(images, size, mode="bilinear", antialias=True)

    def summary(self) -> str:
        """What was asked of the teacher, in one line."""
        facts = self.facts
        if facts["hit"]:
            return "the teacher is not asked: its answers are in the cache"
        return f"the teacher answered {facts['images']:,} images in {facts['seconds']:.1f} s"


class _Asked(TypedDict, total=False):
    images: Required[int]
    seconds: Required[float]
    views: Required[list[int | None]]
    hit: Required[bool | None]


def lessons_of(plan: Plan, device: torch.device) -> Lessons | None:
    """What the teacher of a run answers; ``None`` for a run without one."""
    return Lessons(plan, plan.teacher, device) if plan.teacher else None


def note(run: Path, facts: Plain) -> None:
    """Write what the teacher was asked for into the folder of a run."""
    write_json(run / _NOTE, facts)


def asked_in(run: Path) -> Plain:
    """What the teacher of a run was asked for: training images that it answered, the seconds, the
    views, and whether all of them were in the store. Raises ResumeError for another file."""
    noted: Plain | None = read_checked(run / _NOTE, _Asked, START_ANEW, 31)
    return noted or dict(_NOTHING)


def soft_targets(
    plan: Plan, device: torch.device, views: Sequence[int | None], lead: Lead = NOBODY
) -> tuple[SoftTargets | None, Plain]:
    """The targets that the teacher gives ``views`` of the training images, for a head that is
    solved, and the facts of that; nothing for a run without one. The ranks of ``lead`` ask it for
    equal parts."""
    if plan.teacher is None:
        return None, {}
    group = lead.ask(take_part, SentPlan.of(plan), views)
    lessons = Lessons(plan, plan.teacher, device, group=group)
    logits = [lessons.entry("train", view).array for view in views]
    log.info(lessons.summary())
    teacher = lessons.teacher
    return SoftTargets(logits, teacher.temperature, teacher.weight), lessons.facts


def take_part(
    specs: Specs, group: ProcessGroup, sent: SentPlan, views: Sequence[int | None]
) -> None:
    """Ask the teacher for the part of one of the other ranks of :func:`soft_targets`."""
    if (plan := sent.received(specs)).teacher:
        device = device_of(specs.trainer.accelerator)
        lessons = Lessons(plan, plan.teacher, device, group=group)
        for view in views:
            lessons.entry("train", view)


def opened(teacher: TeacherPlan, plan: Plan, device: torch.device) -> Answers:
    """A function from images float32 (n, 3, h, w), as the teacher takes them, to its logits
    float32 (n, classes) on the CPU, in the order of its classes. Raises WeightsError."""
    if not teacher.path.is_file() or file_sha256(teacher.path) != teacher.sha256:
        what = "is gone, or another file than when this run was planned"
        raise WeightsError(teacher.path, what, "put it back, or start a new run", 38)
    if teacher.kind == "onnx":
        return _onnx(teacher.path)
    from xfer.models.restore import open_checkpoint

    net, _ = open_checkpoint(teacher.path, plan.specs.make)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def answers(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            images = images.to(device).contiguous(memory_format=torch.channels_last)
            logits: torch.Tensor = net(images).float().cpu()
        return logits

    return answers


def _onnx(path: Path) -> Answers:
    from xfer.evaluation.onnx_predict import logits_of, open_model
    from xfer.evaluation.onnx_session import open_session

    said = open_session(path).get_modelmeta().custom_metadata_map
    model = open_model(teacher_file(path, said))
    return lambda images: torch.from_numpy(logits_of(model, np.ascontiguousarray(images.numpy())))
