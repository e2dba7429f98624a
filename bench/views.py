"""What augmentation and test-time augmentation cost: images a second, and time as a ratio.

    python bench/views.py [ROUNDS]

The first table is the training transform of each option alone, on one photograph that scikit-learn
ships, decoded already, to 224 x 224 pixels. The second is prediction with SqueezeNet of random
weights, with decoding left out as well. All of a table take turns in each of the ROUNDS (7); a
ratio is the median over the rounds of two neighbours in time.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torchvision.models import squeezenet1_0

from xfer.core.types import InputSpec, Samples
from xfer.data.augment import AugMix, AutoAugment, Plain, Standard, Strong, TrivialAugment
from xfer.data.image import Arrays
from xfer.data.loader import train_images
from xfer.data.tta import VIEWS
from xfer.evaluation.evaluate import Reading, answers

SPEC = InputSpec((224, 224), 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KINDS: dict[str, Plain | Standard] = {
    "standard": Standard(),
    "none": Plain(),
    "strong": Strong(),
    "auto_augment": AutoAugment(),
    "trivial": TrivialAugment(),
    "augmix": AugMix(),
    "standard, rotation=30": Standard(rotation=30),
    "standard, brightness, contrast and saturation=0.4": Standard(
        brightness=0.4, contrast=0.4, saturation=0.4
    ),
    "standard, hue=0.1": Standard(hue=0.1),
    "standard, grey=0.2 vertical_flip=0.5": Standard(grey=0.2, vertical_flip=0.5),
}


def photographs(count: int) -> Samples:
    photo = load_sample_image("flower.jpg")
    names, pixels = tuple(map(str, range(count))), Arrays(np.stack([photo] * count))
    return Samples(names, np.full(count, -1, np.int64), pixels, "")


def measure(title: str, works: dict[str, Callable[[], int]], rounds: int) -> None:
    """Print images a second and the ratio to the first of ``works``, which return their count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            count = work()
            times[name].append((time.perf_counter() - start) / count)
    first, *_ = times.values()
    print(f"| {title} | images a second | time, ratio |\n| --- | --- | --- |")
    for name, seconds in times.items():
        ratio = statistics.median(b / a for a, b in zip(first[1:], seconds[1:], strict=True))
        print(f"| {name} | {1 / statistics.median(seconds[1:]):.1f} | {ratio:.2f} |")


def main() -> None:
    rounds = int(sys.argv[1]) if sys.argv[1:] else 7
    torch.set_num_threads(1)
    train, held_out = photographs(24), photographs(8)
    net = squeezenet1_0(num_classes=2)

    def transformed(kind: Plain | Standard) -> Callable[[], int]:
        pictures, epochs = train_images(train, SPEC, kind), iter(range(1_000_000))

        def work() -> int:
            epoch = next(epochs)
            return len([pictures[epoch, i] for i in range(len(train))])

        return work

    print(f"torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.1f}\n")
    measure("`augment`", {name: transformed(kind) for name, kind in KINDS.items()}, rounds)
    print()
    each = {
        tta: lambda tta=tta: len(
            answers(net, held_out, SPEC, ("a", "b"), Reading(20, tta=tta)).names
        )
        for tta in VIEWS
    }
    measure("`tta`", each, rounds)


if __name__ == "__main__":
    main()
