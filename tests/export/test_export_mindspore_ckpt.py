"""Weights go back to MindSpore under its own names, and AIR is refused with the way there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import make
from test_export import facts
from torch import nn

from xfer.core.errors import ExportError, Problems, WeightsError
from xfer.core.protobuf import Malformed, Wire
from xfer.core.types import Card, InputSpec
from xfer.export import Air, MindSporeCkpt, Onnx, export, refuse_early
from xfer.export.mindspore_ckpt import back, chosen, names
from xfer.models.backbone import Timm, Torchvision
from xfer.models.head import Keep, Linear, Mlp
from xfer.models.network import Parts, from_weights
from xfer.weights.content import Content
from xfer.weights.mindspore.translate import shipped, translate
from xfer.weights.source.mindspore import MindSpore, read

CLASSES = ("dogs", "wolves")
TINY = {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24]}
INCEPTION = {"aux_logits": False, "init_weights": False, "transform_input": False}
VIT = Timm("vit_tiny_patch16_224", {"depth": 1, "img_size": 64})
TWINS: list[tuple[str, Any]] = [
    ("zoo_resnet_basic", Timm("resnet18", TINY)),
    ("zoo_resnet_basic", Torchvision("resnet34")),
    ("zoo_resnet_bottleneck", Timm("resnet50.a1_in1k", TINY)),
    ("zoo_resnet_bottleneck", Torchvision("resnet50")),
    ("zoo_googlenet", Torchvision("googlenet", INCEPTION)),
    ("mindcv_resnet", Timm("resnet18", TINY)),
    ("mindcv_resnet", Torchvision("resnext50_32x4d")),
    ("mindcv_seresnet", Timm("seresnet18", TINY)),
    ("mindcv_squeezenet1_0", Torchvision("squeezenet1_0")),
    ("mindcv_squeezenet1_1", Torchvision("squeezenet1_1")),
    ("mindcv_vit", VIT),
    ("mindcv_vit", Torchvision("vit_b_16")),
]
IDS = [f"{dialect}-{spec.library}" for dialect, spec in TWINS]
SMALL = [pair for pair in TWINS if pair[1].library == "timm" or "net1" in pair[1].name]


def card(backbone: Any, head: Any = None, dialect: str = "") -> Card:
    spec = InputSpec((64, 64), 72, "bilinear", (0.5,) * 3, (0.2,) * 3)
    compat = {"dialect": dialect} if dialect else {}
    return Card(facts(backbone), facts(head or Linear()), CLASSES, spec, compat=compat)


def images(n: int = 3) -> Any:
    return np.random.default_rng(0).normal(0, 1, (n, 3, 64, 64)).astype(np.float32)


def written(net: nn.Module, folder: Path, card: Card, **options: Any) -> Path:
    path = folder / "model.ckpt"
    MindSporeCkpt(**options).write(net, images(), card, path)
    return path


# ---- names


@pytest.mark.parametrize(("dialect", "backbone"), TWINS, ids=IDS)
def test_the_load_map_takes_every_name_back(dialect: str, backbone: Any) -> None:
    with torch.device("meta"):
        net = backbone.build().module
    called = names(net, card(backbone), dialect)
    assert list(called) == [n for n in net.state_dict() if not n.endswith("num_batches_tracked")]
    assert back(net, list(called.values())) == {new: old for old, new in called.items()}
    content = Content("test", {new: torch.empty(0) for new in called.values()})
    found = translate(content, backbone.library, backbone.name)
    assert (found.dialect, found.names) == (dialect, {new: old for old, new in called.items()})


def test_every_dialect_is_tried_above_and_typed_in_the_configuration() -> None:
    assert {dialect for dialect, _ in TWINS} | {"plain"} == set(shipped()["dialects"])
    hint = typing.get_type_hints(MindSporeCkpt)["dialect"]
    assert hint == typing.get_type_hints(MindSpore)["dialect"]


def test_the_dialect_of_the_source_is_kept() -> None:
    resnet = Timm("resnet18", TINY)
    assert chosen(card(resnet), "auto") == "zoo_resnet_basic"
    assert chosen(card(resnet, dialect="mindcv_resnet"), "auto") == "mindcv_resnet"
    assert chosen(card(resnet), "mindcv_resnet") == "mindcv_resnet"


@pytest.mark.parametrize(
    ("backbone", "dialect", "number", "what"),
    [
        (Timm("mobilenetv3_small_100"), "auto", 980, "no map from timm's mobilenetv3_small_100"),
        (Timm("vgg11"), "zoo_googlenet", 982, "a GoogLeNet of MindSpore's model zoo, which timm's"),
        (Timm("resnet50"), "mindcv", 981, "'mindcv' is not a dialect"),
    ],
)
def test_a_network_without_names_is_refused(
    backbone: Any, dialect: Any, number: int, what: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        MindSporeCkpt(dialect).write(nn.Identity(), images(), card(backbone), tmp_path / "a.ckpt")
    assert caught.value.exit == 10 and f"E{number}" in str(caught.value)
    assert what in str(caught.value)
    with pytest.raises(ExportError, match=re.escape(what)):
        refuse_early([Onnx(), MindSporeCkpt(dialect)], card(backbone))


def test_plain_names_are_torchs_but_for_the_norms(tmp_path: Path) -> None:
    backbone = Timm("mobilenetv3_small_050")
    net = make(backbone)
    (entry,) = export(net, images(), [MindSporeCkpt("plain")], card(backbone), tmp_path, 1e-6)
    assert entry.max_abs_diff == 0 and entry.facts["dialect"] == "plain"
    content = read(tmp_path / "model.ckpt")
    assert "bn1.moving_variance" in content.state and "bn1.gamma" in content.state


# ---- the file


class Scaled(nn.Module):
    """A scalar, whole numbers, and numbers that MindSpore has no type for."""

    def __init__(self, other: torch.Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("other", other)


def test_a_scalar_is_written_as_every_mindspore_reads_it(tmp_path: Path) -> None:
    net = Scaled(torch.tensor([[1, -2]]))
    path = written(net, tmp_path, card(Timm("resnet18")), dialect="plain")
    # dims [0] and "Float32", as MindSpore 1.x writes a scalar; 2.10 alone would take no dims.
    assert b"\x08\x00\x12\x07Float32" in path.read_bytes()
    state = read(path).state
    assert state["other"].tolist() == [[1, -2]] and state["other"].dtype == torch.int64


def test_numbers_that_mindspore_has_no_type_for_are_refused(tmp_path: Path) -> None:
    net = Scaled(torch.tensor([1j]))
    with pytest.raises(ExportError, match="'other' is complex64"):
        written(net, tmp_path, card(Timm("resnet18")), dialect="plain")


@pytest.mark.parametrize(("dialect", "backbone"), SMALL, ids=lambda value: str(value)[:24])
def test_what_was_written_is_read_by_the_mindspore_source(
    dialect: str, backbone: Any, tmp_path: Path
) -> None:
    net = make(backbone)
    (entry,) = export(net, images(), [MindSporeCkpt(dialect)], card(backbone), tmp_path, 1e-6)
    assert (entry.max_abs_diff, entry.batches) == (0, (1, 2, 3))
    weights = MindSpore(str(tmp_path / "model.ckpt"), compat="plain").load(backbone)
    assert weights.facts["dialect"] == dialect and weights.state is not None
    want = {n: t for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert weights.state.keys() == want.keys()
    assert all(torch.equal(tensor, want[name]) for name, tensor in weights.state.items())


def test_a_head_of_several_layers_comes_back_too(tmp_path: Path) -> None:
    backbone = Timm("resnet18", TINY)
    net = make(backbone, Mlp(8))
    weights = MindSpore(str(written(net, tmp_path, card(backbone, Mlp(8))))).load(backbone)
    assert weights.state is not None
    assert torch.equal(weights.state["fc.0.weight"], net.state_dict()["fc.0.weight"])


@pytest.mark.parametrize("kind", ["zoo", "cv"])
def test_bytes_are_those_that_mindspore_wrote(kind: str, assets: Path, tmp_path: Path) -> None:
    original = assets / "mindspore" / {"zoo": "zoo_v1.0.ckpt", "cv": "cv_v2.10.ckpt"}[kind]
    backbone = Timm("resnet50" if kind == "zoo" else "resnet18", {**TINY, **CHANNELS[kind]})
    weights = MindSpore(str(original)).load(backbone)
    net = from_weights(Parts(backbone, Keep(), 5, compat=weights.compat), weights).eval()
    own = card(backbone, Keep(), str(weights.compat["dialect"]))
    path = written(net, tmp_path, own)
    theirs, ours = original.read_bytes(), path.read_bytes()
    entries = [ours[f.start : f.stop] for f in Wire(ours).fields(0, len(ours))]
    assert len(entries) > 50 and [e for e in entries if e not in theirs] == []
    assert MindSporeCkpt().write(net, images(), own, path)["same_function"] == "yes"


CHANNELS = {"zoo": {"channels": [4, 6, 8, 12]}, "cv": {}}


def test_it_says_where_mindspores_own_network_computes_otherwise(tmp_path: Path) -> None:
    resnet, squeezenet = Timm("resnet18", TINY), Torchvision("squeezenet1_0")
    path = tmp_path / "model.ckpt"
    told = MindSporeCkpt().write(make(resnet), images(), card(resnet), path)
    assert told["same_function"] == (
        "no: MindSpore's own, a ResNet 18 or 34 of MindSpore's model zoo, has other settings "
        "(batch_norm)"
    )
    own = card(squeezenet, dialect="mindcv_squeezenet1_0")
    told = MindSporeCkpt().write(make(squeezenet), images(), own, path)
    assert told["same_function"].startswith("no: MindSpore's own has a ReLU after the classifier")


def test_a_checksum_is_written_where_asked_and_noticed(tmp_path: Path) -> None:
    backbone = Timm("resnet18", TINY)
    net = make(backbone)
    path = written(net, tmp_path, card(backbone), crc=True)
    assert read(path).facts["crc"] == "verified"
    assert MindSporeCkpt().open(path, net)(images()).shape == (3, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(Malformed, match="checksum"):
        MindSporeCkpt().open(path, net)
    with pytest.raises(WeightsError, match="checksum"):
        read(path)
    assert b"crc_num" not in written(net, tmp_path, card(backbone)).read_bytes()


def test_a_file_of_other_names_is_not_vouched_for(tmp_path: Path) -> None:
    backbone = Timm("resnet18", TINY)
    net = make(backbone)
    path = written(net, tmp_path, card(backbone))
    path.write_bytes(path.read_bytes().replace(b"end_point", b"end_paint"))
    with pytest.raises(Malformed, match="do not become the network's"):
        MindSporeCkpt().open(path, net)


# ---- AIR


def test_air_is_refused_with_the_way_there(tmp_path: Path) -> None:
    backbone = Timm("resnet18", TINY)
    with pytest.raises(ExportError, match="Ascend hardware only") as caught:
        export(make(backbone), images(), [Air()], card(backbone), tmp_path, 1e-4)
    assert caught.value.exit == 10 and "atc --framework=5" in caught.value.fix
    assert not (tmp_path / "model.air").exists()
    with pytest.raises(Problems):
        refuse_early([Air(), MindSporeCkpt()], card(Timm("vgg11")))


def test_air_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xfer", "experiment=digits_sgd", "export=air"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 10, done.stderr
    assert "AIR files can be written on Ascend hardware only" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("*.ckpt")) == [] and not (tmp_path / "outputs").exists()


# ---- the real MindSpore


@pytest.mark.slow
@pytest.mark.skipif(
    "XFER_MINDSPORE" not in os.environ, reason="XFER_MINDSPORE names no python with MindSpore"
)
@pytest.mark.parametrize("crc", [False, True])
@pytest.mark.parametrize(("dialect", "backbone"), SMALL, ids=lambda value: str(value)[:24])
def test_the_real_mindspore_reads_it(
    dialect: str, backbone: Any, crc: bool, tmp_path: Path
) -> None:
    net = make(backbone)
    path = written(net, tmp_path, card(backbone), dialect=dialect, crc=crc)
    proof = Path(__file__).parents[1] / "proofs" / "mindspore_ckpt_proof.py"
    command = [os.environ["XFER_MINDSPORE"], str(proof), str(path), str(tmp_path / "o.npz")]
    done = subprocess.run(
        [*command, "crc"] if crc else command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    called = names(net, card(backbone), dialect)
    with np.load(tmp_path / "o.npz") as found:
        assert set(found) == set(called.values())
        for old, new in called.items():
            assert np.array_equal(found[new], net.state_dict()[old].numpy())
