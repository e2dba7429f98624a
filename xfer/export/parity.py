"""How an exported file is compared with the network: on logits, on pictures, or on accuracy."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image

from xfer.core.errors import ExportError
from xfer.core.probabilities import sigmoid, softmax
from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Images, Plain, Samples
from xfer.data.preprocess import prepare
from xfer.evaluation.multilabel_metrics import label_score

if TYPE_CHECKING:
    import torch

    from xfer.export.onnx_graph import GraphCache

    Answers = dict[int, Array]
    Labelled = Iterator[tuple[Array, Array]]

SIZES = (
    *((64, 80), (80, 64), (100, 100), (224, 224), (225, 223), (256, 256)),
    *((255, 400), (333, 257), (640, 480), (500, 750), (1024, 768), (90, 700)),
)
FORMS = (("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "L"), ("WEBP", "RGB"), ("GIF", "P"))
_SHARED = (320, 240)  # (width, height) of pictures in one batch
_ROUNDING = 16 * float(np.finfo(np.float32).eps)  # of the largest answer, in a deep network

FIX = "choose other formats, export=[...] or export=none; the checkpoint is not affected"


@dataclass(frozen=True)
class Unseen:
    """Labelled images that neither a network nor its certificate was fitted or chosen on: those of
    ``split``, and their ``inputs`` float32 (n, 3, h, w)."""

    split: str
    samples: Samples
    inputs: Array


@dataclass(frozen=True)
class Evidence:
    """What a trial needs beside the network's inputs; a writer that lacks its part is refused.

    ``photos`` are the inputs' pictures as decoded, ``labels`` their classes, int64 (n,);
    ``calibration`` training images, float32 (m, 3, h, w), preprocessed; ``val`` gives the whole
    validation split, (images, labels) a batch; ``max_drop`` the accuracy that an approximate file
    may lose, 0.01 is one point in a hundred; ``unseen`` images that no certificate was fitted on;
    ``graphs`` what earlier runs have traced; ``figures`` what the run knows of the network, see
    :func:`xfer.export.stage.run_figures`; ``sha256`` is over all images named here, empty
    where nobody knows.
    """

    photos: Images | None = None
    labels: Array | None = None
    calibration: Array | None = None
    val: Callable[[], Labelled] | None = None
    max_drop: float = 0.01
    unseen: Unseen | None = None
    graphs: GraphCache | None = None
    figures: Plain = field(default_factory=dict)
    sha256: str = ""


@dataclass(frozen=True)
class Answered:
    """The network's answers and a file's, by batch size, in ``kind`` (logits, probabilities). With
    several labels an image ``cuts`` (classes,) are the answers from which on it has a label: what
    agrees then are labels, in place of top classes."""

    path: Path
    name: str
    kind: str
    expected: Answers
    got: Answers
    cuts: Array | None = None

    def within(self, bound: float) -> Plain:
        """The facts of the comparison. Raises ExportError for a difference above ``bound``, and
        where the network decides on no image: the file could have its classes in any order."""
        facts = self.facts(bound)
        if facts["max_abs_diff"] > bound:
            what = (
                f"{self.name} answers differently from the network: {self.kind} differ by up to "
                f"{facts['max_abs_diff']:.3g}, but only {bound:.3g} is allowed; "
                f"the top class agrees on {100 * facts['agree']:.1f} %"
            )
            raise ExportError(self.path, what, FIX, 6)
        count = max(len(want) for want in self.expected.values())
        if facts["close"] >= count:
            what = (
                f"{self.name} cannot be compared: on none of {count} images are the network's two "
                f"best {self.kind} further apart than {2 * bound:.3g}, twice the difference allowed"
            )
            fix = "train the network for longer, or type export=none"  # a tie has no tolerance
            raise ExportError(self.path, what, fix, 49)
        return facts

    def facts(self, bound: float) -> Plain:
        """Differences at the worst batch size. Raises ExportError for NaN and a wrong shape."""
        refuse_nan(self.path, self.name, self.got, "the file", FIX)
        pairs = [(want, self.got[size]) for size, want in self.expected.items()]
        for want, got in pairs:
            if want.shape != got.shape:
                what = f"{self.name} gives {self.kind} of shape {got.shape}, "
                raise ExportError(self.path, f"{what}the network {want.shape}", FIX, 5)
        far = [np.abs(want.astype(np.float64) - got) for want, got in pairs]
        return {
            "compared": self.kind,
            "bound": bound,
            "max_abs_diff": max(float(d.max()) for d in far),
            "mean_abs_diff": max(float(d.mean()) for d in far),
            "agree": min(self._agree(want, got) for want, got in pairs),
            "close": max(self._close(want, 2 * bound) for want, _ in pairs),
        }

    def _agree(self, want: Array, got: Array) -> float:
        if self.cuts is not None:
            return float(np.mean((want >= self.cuts) == (got >= self.cuts)))
        return float(np.mean(want.argmax(1) == got.argmax(1)))

    def _close(self, want: Array, gap: float) -> int:
        """Images on which nothing is decided: a class in another's place would not be noticed."""
        if self.cuts is not None:
            return int((want.max(axis=1) - want.min(axis=1) <= gap).sum()) if want.size else 0
        return _close(want, gap)


def recoded(photos: Images) -> Iterator[Image]:
    """Real pictures in every size and format of this module, read back as files are."""
    from xfer.data.image import decode_bytes

    pairs = [(size, form) for size in SIZES for form in FORMS]
    for i, (size, (form, mode)) in enumerate(pairs):
        stream = io.BytesIO()
        photos[i % len(photos)].resize(size).convert(mode).save(stream, form)
        yield decode_bytes(stream.getvalue())


def same_size(photos: Images) -> list[Image]:
    """The pictures squashed to one size, so that they fit into one batch."""
    return [photos[i].resize(_SHARED) for i in range(len(photos))]


def pixels(pictures: Sequence[Image]) -> Array:
    """Equal-sized RGB pictures as uint8 (n, 3, height, width)."""
    return np.stack([np.ascontiguousarray(np.asarray(p).transpose(2, 0, 1)) for p in pictures])


def allowed(answers: Array, tolerance: float) -> float:
    """The difference from ``answers`` (n, classes) that a file may have.

    ``tolerance``, times the largest answer where that is above 1, and times the spread of the
    classes where that is below 1: of tiny logits any answer would be near. At most a tenth of how
    much the answers vary between images, so that no file passes that does not look at them; at
    least the rounding of float32.
    """
    z = np.asarray(answers, np.float64)
    largest = float(np.abs(z).max())
    rounding = _ROUNDING * largest
    bound = tolerance * max(1.0, largest)
    if z.shape[1] > 1:
        bound *= min(1.0, float((z.max(axis=1) - z.min(axis=1)).max()))
    varied = float((z.max(axis=0) - z.min(axis=0)).max())
    if varied > 10 * rounding:
        bound = min(bound, varied / 10)
    return max(bound, rounding)


def _close(answers: Array, gap: float) -> int:
    """Images whose two best classes are at most ``gap`` apart: either may come out on top."""
    best = np.sort(answers, axis=1)
    return int((best[:, -1] - best[:, -2] <= gap).sum()) if answers.shape[1] > 1 else 0


def accuracy(answers: Array, labels: Array | None) -> float | None:
    """The share of right top classes; ``None`` where labels are not known."""
    if labels is None or (labels < 0).any():
        return None
    return float(np.mean(answers.argmax(1) == labels))


def refuse_nan(path: Path, name: str, answers: Answers, who: str, fix: str) -> None:
    """Raise ExportError for an answer that is no number."""
    if not all(np.isfinite(array).all() for array in answers.values()):
        raise ExportError(path, f"{name}: {who} answers NaN or Inf on real images", fix, 4)


def run_torch(net: torch.nn.Module) -> Runner:
    """``net`` as a runner: float32 (n, 3, h, w) in, float32 logits (n, classes) out."""

    def run(images: Array) -> Array:
        import torch

        with torch.inference_mode():
            logits: Array = net(torch.from_numpy(images)).numpy()
            return logits

    return run


def answers(run: Runner, images: Array) -> Answers:
    """Answers by batch size: 1 on the first 8 images, 2 on the first 16, n on all n."""
    n = len(images)
    counts = {size: min(count, n) for size, count in {1: 8, 2: 16, n: n}.items() if size <= n}
    return {size: _in_batches(run, images[:count], size) for size, count in counts.items()}


def _in_batches(run: Runner, images: Array, size: int) -> Array:
    return np.concatenate([run(images[i : i + size]) for i in range(0, len(images), size)])


_STEP = 16  # pictures of different sizes that the network answers at once


@dataclass(frozen=True)
class Trials:
    """A network ``net`` on the CPU, and the inputs ``given``, or what makes them, to which files
    must repeat its answers. Neither inputs nor answers are computed before they are needed."""

    net: torch.nn.Module
    given: Array | Callable[[], Array]
    card: Card
    tolerance: float
    evidence: Evidence

    @cached_property
    def images(self) -> Array:
        """Preprocessed images, float32 (n, 3, h, w). Raises ExportError where there are none."""
        images = self.given() if callable(self.given) else self.given
        if not len(images):
            what = "there are no images to compare on"
            raise ExportError("export", what, "give validation images", 1)
        return images

    @cached_property
    def faster(self) -> torch.nn.Module:
        """A copy in the layout that convolutions like: on a processor it answers almost twice as
        fast."""
        import torch

        from xfer.core.memory import keep_freed

        # All images are one of the batches, each answer of a layer hundreds of megabytes.
        keep_freed()
        return copy.deepcopy(self.net).to(memory_format=torch.channels_last)

    @property
    def run(self) -> Runner:
        """The network as a runner."""
        return run_torch(self.faster)

    @cached_property
    def expected(self) -> Answers:
        """Its answers to the images by batch size."""
        return answers(self.run, self.images)

    def logits(self, path: Path, name: str, file: Runner) -> Plain:
        """The same logits for the same inputs, as near as :func:`allowed` says."""
        got = answers(file, self.images)
        bound = allowed(self.expected[max(self.expected)], self.tolerance)
        facts = Answered(path, name, "logits", self.expected, got, self._cuts()).within(bound)
        return facts | self._accuracies(got[max(got)])

    def pictures(self, path: Path, name: str, file: Runner) -> Plain:
        """The same probabilities for the same pictures, as near as :func:`allowed` says with
        ten times ``tolerance``.

        Each picture as it is; in every size and format of this module; and squashed to one size,
        in batches of 1, 2 and all.
        """
        photos = self.evidence.photos
        if photos is None or not len(photos):
            raise ExportError(path, f"{name}: there are no pictures to test it on", FIX, 43)
        n = len(photos)
        whole = np.concatenate([file(pixels([photos[i]])) for i in range(n)])
        want = self._shares(self.expected[max(self.expected)])
        others = list(recoded(photos))
        compared = [
            ({n: want}, {n: whole}),
            self._probabilities(file, others, {1}),
            self._probabilities(file, same_size(photos), {1, 2, n}),
        ]
        bound = allowed(want, 10 * self.tolerance)
        cuts = np.array(self.card.task["thresholds"]) if self.card.task else None
        facts = [
            Answered(path, name, "probabilities", *pair, cuts).within(bound) for pair in compared
        ]
        merged = {key: max(f[key] for f in facts) for key in ("max_abs_diff", "mean_abs_diff")}
        merged |= {"agree": min(f["agree"] for f in facts), "close": sum(f["close"] for f in facts)}
        return {**facts[0], **merged, **self._accuracies(whole), "pictures": n + len(others)}

    def _probabilities(
        self, file: Runner, pictures: Sequence[Image], sizes: set[int]
    ) -> tuple[Answers, Answers]:
        """Those of the network, through the recipe, and of the file, by batch size."""
        inputs = np.stack([prepare(picture, self.card.input) for picture in pictures])
        want, got = self._shares(_in_batches(self.run, inputs, _STEP)), {}
        for size in sorted(size for size in sizes if size <= len(pictures)):
            starts = range(0, len(pictures), size)
            got[size] = np.concatenate([file(pixels(pictures[i : i + size])) for i in starts])
        return dict.fromkeys(got, want), got

    def score(self, path: Path, name: str, file: Runner) -> Plain:
        """The accuracy on the validation split, which may drop by ``max_drop`` at most."""
        got = answers(file, self.images)
        facts = Answered(path, name, "logits", self.expected, got, self._cuts()).facts(0.0)
        if self.evidence.val is None:
            raise ExportError(path, f"{name}: there is no labelled split to score it on", FIX, 44)
        if self.card.task:
            return facts | self._label_score(path, name, file, self.evidence.val())
        right, count = np.zeros(2), 0
        for images, labels in self.evidence.val():
            right += [(run(images).argmax(1) == labels).sum() for run in (file, self.run)]
            count += len(labels)
        acc, network = (right / count).tolist()
        if (drop := network - acc) > self.evidence.max_drop:
            said = f"{name} loses {drop:.4f} of accuracy ({acc:.4f} against {network:.4f}"
            raise self._worse(path, f"{said} on {count} images)", drop)
        # No bound holds for a format that rounds every weight; its accuracy is what is checked.
        return {**facts, "bound": None, "close": 0, "acc": acc, "acc_network": network}

    def _label_score(self, path: Path, name: str, file: Runner, val: Labelled) -> Plain:
        """The same with several labels an image: by the share of known labels that are right, by
        mAP, and by how far the probabilities are from the network's on the mean."""
        parts = [(file(images), self.run(images), labels) for images, labels in val]
        got, want, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        cuts, classes = np.array(self.card.task["thresholds"]), self.card.classes
        scores = [label_score(z, labels, classes, cuts, "", False) for z in (got, want)]
        apart = float(np.abs(self._shares(got) - self._shares(want)).mean())
        right = [1 - (score.hamming or 0.0) for score in scores]
        maps = [0.0 if score.map is None else score.map for score in scores]
        worst = max(apart, *(network - one for one, network in (right, maps)))
        for what, (one, network) in (("right labels", right), ("mAP", maps)):
            if (drop := network - one) > self.evidence.max_drop:
                said = f"{name} loses {drop:.4f} of {what} ({one:.4f} against {network:.4f}"
                raise self._worse(path, f"{said} on {len(labels)} images)", worst)
        if apart > self.evidence.max_drop:
            said = f"{name} gives probabilities that are {apart:.4f} from the network's on the mean"
            raise self._worse(path, f"{said} of {len(labels)} images", worst)
        facts = {"map": scores[0].map, "map_network": scores[1].map, "probabilities_apart": apart}
        scored = {"acc": right[0], "acc_network": right[1], "facts": facts}
        return {"bound": None, "close": 0, **scored}

    def _worse(self, path: Path, said: str, drop: float) -> ExportError:
        """The error for a file that loses as much as ``drop``, with the limit that admits it."""
        what = f"{said}, but only {self.evidence.max_drop} is allowed"
        fix = f"type export.max_drop={math.ceil(1e4 * drop) / 1e4:g}, or leave the format out"
        return ExportError(path, what, fix, 45)

    def rounded(self, path: Path, name: str, file: Runner) -> Plain:
        """As :meth:`score`, for a file that is fitted to no images."""
        return self.score(path, name, file)

    def _shares(self, logits: Array) -> Array:
        """The probabilities of logits, as the card's task has them."""
        z = logits.astype(np.float64)
        return sigmoid(z) if self.card.task else softmax(z)

    def _cuts(self) -> Array | None:
        """The logits from which on an image has a label; ``None`` where it has one class."""
        if not self.card.task:
            return None
        p = np.clip(np.array(self.card.task["thresholds"], np.float64), 1e-12, 1 - 1e-12)
        return np.asarray(np.log(p / (1 - p)))

    def _accuracies(self, got: Array) -> Plain:
        labels = None if self.card.task else self.evidence.labels
        return {
            "acc": accuracy(got, labels),
            "acc_network": accuracy(self.expected[max(self.expected)], labels),
        }
