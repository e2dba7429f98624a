"""The network of a job in plain PyTorch, with the weights of its file; nothing of xfer.

A job is the JSON file that bench/defaults.py writes for the other tools: ``library``, ``model``,
``weights``, ``root`` (a folder with train/ and val/), ``recipe`` (how an image becomes the input,
from xfer's plan.json), ``seed``, ``device``, and ``bf16`` for the floor alone.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def job():
    """The job that this process was started for, and the device to work on."""
    read = json.loads(Path(sys.argv[1]).read_text())
    return read, torch.device("cuda" if read["device"] == "gpu" else "cpu")


def answer(paths, labels, probabilities):
    """Leave what was predicted for validation images where bench/defaults.py looks for it."""
    names = [f"{path.parent.name}/{path.name}" for path in paths]
    rows = {"names": names, "labels": list(labels), "probabilities": probabilities.tolist()}
    Path(sys.argv[2]).write_text(json.dumps(rows))


def build(read, classes):
    """The network with a new head of ``classes``; every other weight is from the file."""
    if read["library"] == "timm":
        import timm

        net = timm.create_model(read["model"], num_classes=classes)
    else:
        import torchvision

        net = torchvision.models.get_model(read["model"])
        net.classifier[1] = torch.nn.Conv2d(512, classes, 1)  # SqueezeNet's place of its head
    fill(net, {k: v for k, v in weights(read).items() if not k.startswith("classifier.")})
    return net


def weights(read):
    return load_file(read["weights"])


def fill(net, state):
    """Load ``state``; only the head and BatchNorm's counters may be absent from it."""
    found = net.load_state_dict(state, strict=False)
    absent = [
        name
        for name in found.missing_keys
        if not name.startswith("classifier.") and not name.endswith("num_batches_tracked")
    ]
    if absent or found.unexpected_keys:
        raise SystemExit(f"other names: {absent[:3]}, {found.unexpected_keys[:3]}")


def pooled(net, images):
    """The mean of the last feature map over places: what a linear head gets."""
    if hasattr(net, "forward_head"):
        return net.forward_head(net.forward_features(images), pre_logits=True)
    return net.features(images).mean((2, 3))


def listed(root, split):
    """Photographs of a split in order of class and name, with class numbers."""
    classes = sorted(path.name for path in (Path(root) / "train").iterdir())
    paths = sorted((Path(root) / split).glob("*/*"))
    return paths, [classes.index(path.parent.name) for path in paths]
