"""Data sets and networks that bench/defaults.py takes turns on.

Canidae and Hymenoptera are folders of XFER_ASSETS. The digits are 5 to 9 of scikit-learn's: 50
images a class to train on and 60 a class to validate on, drawn at random, written as PNGs of
8 x 8 pixels.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()
os.environ["XFER_ASSETS"] = str(ASSETS)
DATA = ("hymenoptera", "canidae", "digits")
TRAIN, VAL = 50, 60

WEIGHTS = ASSETS / "weights"
NETWORKS = {
    "squeezenet1_0": {
        "library": "torchvision",
        "model": "squeezenet1_0",
        "weights": str(WEIGHTS / "squeezenet1_0_imagenet.safetensors"),
    },
    "efficientnet_lite0": {
        "library": "timm",
        "model": "tf_efficientnet_lite0",
        "weights": str(WEIGHTS / "tf_efficientnet_lite0_imagenet.safetensors"),
    },
}


def overrides(network):
    """The words of xfer's command line that choose ``network`` and its weights."""
    chosen = NETWORKS[network]
    group = {"timm": "timm", "torchvision": "torchvision"}[chosen["library"]]
    name = (f"backbone={group}", f"backbone.name={chosen['model']}")
    return [*name, "source=file", f"source.path={chosen['weights']}"]


def folder(name, work):
    """The folder with train/ and val/ of a data set; ``NAME=FOLDER`` is one of the caller's."""
    if "=" in name:
        return Path(name.split("=", 1)[1]).resolve()
    return digits(work / "digits") if name == "digits" else ASSETS / name.capitalize()


def digits(target):
    if target.is_dir():
        return target
    images, labels = load_digits(return_X_y=True)
    half = target.with_name("digits.half")
    # Drawn at random: scikit-learn has them writer by writer.
    draw = np.random.default_rng(0)
    for label in range(5, 10):
        for i, row in enumerate(draw.permutation(images[labels == label])[: TRAIN + VAL]):
            place = half / ("train" if i < TRAIN else "val") / str(label)
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.round(row.reshape(8, 8) * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).convert("RGB").save(place / f"{i:03}.png")
    half.rename(target)
    return target


def folds(root, target, count, seed):
    """``count`` folders of links with all images of ``root``, each its own stratified fold in val.

    The images of train and val are put together first, so that no fold is the published split.
    """
    paths = sorted([*root.glob("train/*/*"), *root.glob("val/*/*")])
    labels = [path.parent.name for path in paths]
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    made = []
    for number, (_, held) in enumerate(splitter.split(paths, labels)):
        place = target / f"seed{seed}fold{number}of{count}"
        made.append(place)
        held = set(held.tolist())
        for i, path in enumerate(paths):
            inside = place / ("val" if i in held else "train") / labels[i]
            link = inside / f"{path.parts[-3]}_{path.name}"
            inside.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path)
    return made
