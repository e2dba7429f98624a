"""The experiments whose weights or data cannot be had here, proved by mechanism: random weights
in a prepared hub cache, generated pictures, a local server."""

import functools
import gzip
import http.server
import json
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import picture
from shipped import SHIPPED

import xfer
from xfer.models.backbone import Timm

REVISION = "0123456789abcdef0123456789abcdef01234567"
QUICK = [
    "trainer.max_epochs=1",
    "data.workers=0",
    "backbone.image_size=64",
    "trainer.accelerator=cpu",
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XFER_DATA", raising=False)
    return tmp_path


def split_folders(root: Path, classes: list[str], per_class: int) -> None:
    for split in ("train", "val"):
        for i, name in enumerate(classes):
            for k in range(per_class):
                file = root / split / name / f"{k}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture(seed=100 * i + k + (split == "val") * 50).save(file)


def timm_cache(root: Path, name: str, monkeypatch) -> None:
    """What the hub's client leaves behind after one download of ``name``."""
    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file

    folder = root / ("models--timm--" + name)
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    torch.manual_seed(0)
    save_file(timm.create_model(name).state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("experiment", "trainable"),
    [
        ("canidae_freeze", 4098),
        pytest.param("canidae_finetune", None, marks=pytest.mark.slow),
    ],
)
def test_canidae_from_the_hub(experiment, trainable, place, monkeypatch):
    timm_cache(place / "hub", "resnet50.a1_in1k", monkeypatch)
    split_folders(place / "data" / "Canidae", ["dogs", "wolves"], 4)
    result = xfer.run(experiment, [*QUICK, "stages=[fit,evaluate]"])
    found = result.facts
    assert found["source"]["origin"] == "timm:resnet50.a1_in1k" and found["source"]["sha256"]
    assert found["source"]["coverage"] == 1.0
    assert found["params"]["trainable"] == (trainable or found["params"]["total"])
    assert (found["best"]["epoch"], found["scores"]["val"]["n"]) == (1, 8)


def test_garbage_hub(place, monkeypatch):
    """S4: 26 classes, GoogLeNet from the hub, pooled head, a checkpoint every epoch, by name."""
    from torchvision.models import GoogLeNet_Weights, googlenet

    cache = place / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(0)
    whole = googlenet(init_weights=False, aux_logits=True)
    torch.save(whole.state_dict(), cache / GoogLeNet_Weights.DEFAULT.url.rsplit("/", 1)[-1])
    monkeypatch.setattr(torch.hub, "_hub_dir", str(place / "torch" / "hub"))
    classes = [f"garbage{i:02d}" for i in range(26)]
    split_folders(place / "garbage", classes, 2)
    options = ["data.root=garbage", *QUICK, "trainer.max_epochs=2", "stages=[fit,evaluate]"]
    result = xfer.run("garbage_hub", options)
    kept = sorted(p.name for p in (result.folder / "checkpoints").glob("garbage*"))
    assert kept == ["garbage_finetune_epoch1.ckpt", "garbage_finetune_epoch2.ckpt"]
    head = [r for r in result.plan["parameters"] if r["group"] == "head"]
    assert [(r["name"], r["shape"]) for r in head] == [
        ("fc.dense.weight", [26, 1024]),
        ("fc.dense.bias", [26]),
    ]
    # S5: one of those checkpoints alone, on the test set, with probabilities.
    again = xfer.run(
        overrides=[
            "stages=[evaluate]",
            f"checkpoint.path={result.folder}/checkpoints/{kept[-1]}",
            "data.root=garbage",
        ]
    )
    assert again.facts["scores"]["val"]["n"] == 52
    assert "p_garbage25" in (again.folder / "predictions_val.csv").read_text().splitlines()[0]


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def mirror(tmp_path):
    """A server on loopback with twenty generated digits a part."""
    folder = tmp_path / "served"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images = draw.integers(0, 255, (40, 28, 28))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(40) % 10))
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    handler = functools.partial(quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_mnist_eval(place, mirror):
    """S1: weights from a file into a network with its own head, scored on the test set."""
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model("resnet50", num_classes=10).state_dict(), place / "resnet50.pth")
    options = ["source.path=resnet50.pth", f"data.mirror={mirror}", "backbone.image_size=64"]
    result = xfer.run("mnist_eval", [*options, "data.workers=0"])
    assert result.facts["scores"]["test"]["n"] == 40
    assert result.facts["best"] is None and result.facts["source"]["dropped"] == 0
    assert json.loads((result.folder / "plan.json").read_text())["classes"] == list("0123456789")


def test_digits_pretrain_makes_what_is_shipped(place):
    from xfer.weights.source import Shipped

    shipped = Shipped("digits_0_4").load(Timm("resnet18"))
    assert shipped.classes == tuple("01234")
    assert SHIPPED.stat().st_size < 500_000
    result = xfer.run("digits_pretrain", ["trainer.max_epochs=3", "stages=[fit]"])
    made = xfer.load(result.folder).net.state_dict()
    assert {n: t.shape for n, t in made.items()} == {n: t.shape for n, t in shipped.state.items()}
    assert result.facts["best"]["value"] > 0.9
