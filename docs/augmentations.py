"""Draw docs/images/augment.jpg: what each option and key of ``augment`` makes of one photograph.

``python docs/augmentations.py [FILE]`` writes the file, with the transforms and the seeds of
training. The photograph is one that scikit-learn ships.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image

from xfer.core.types import InputSpec, Samples
from xfer.data.augment import AugMix, AutoAugment, Plain, Standard, Strong, TrivialAugment
from xfer.data.image import Arrays
from xfer.data.loader import train_images
from xfer.data.preprocess import restore

FILE = Path(__file__).with_name("images") / "augment.jpg"
TILE, LABEL, COLUMNS = 90, 190, 6
SPEC = InputSpec((TILE, TILE), TILE, "bilinear", (0, 0, 0), (1, 1, 1))
# The last rows show their keys alone: the whole picture, not mirrored.
WHOLE: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (1.5, 1.5), "flip": 0.0}
ROWS: dict[str, Plain | Standard] = {
    "none": Plain(),
    "standard": Standard(),
    "strong": Strong(),
    "auto_augment": AutoAugment(),
    "trivial": TrivialAugment(),
    "augmix": AugMix(),
    "rotation=30\nvertical_flip=0.5": Standard(**WHOLE, rotation=30, vertical_flip=0.5),
    "brightness=0.4\ncontrast=0.4\nsaturation=0.4": Standard(
        **WHOLE, brightness=0.4, contrast=0.4, saturation=0.4
    ),
    "hue=0.1\ngrey=0.5": Standard(**WHOLE, hue=0.1, grey=0.5),
}


def sheet() -> Image.Image:
    """A row for each, with six views of the photograph: those of the first six epochs."""
    photo = load_sample_image("china.jpg")[None]
    samples = Samples(("china.jpg",), np.zeros(1, np.int64), Arrays(photo), "")
    page = Image.new("RGB", (LABEL + COLUMNS * TILE, len(ROWS) * TILE), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for row, (name, augment) in enumerate(ROWS.items()):
        draw.multiline_text((8, row * TILE + TILE // 2), name, "black", font, anchor="lm")
        pictures = train_images(samples, SPEC, augment)
        for view in range(COLUMNS):
            pixels = restore(pictures[view, 0][0], SPEC)
            page.paste(Image.fromarray(pixels), (LABEL + view * TILE, row * TILE))
    return page


def main() -> None:
    """Write the file that is given, or the one of the documentation."""
    sheet().save(sys.argv[1] if sys.argv[1:] else FILE, quality=64, optimize=True)


if __name__ == "__main__":
    main()
