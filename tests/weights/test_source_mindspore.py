from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from xfer.core.errors import ConfigError, WeightsError
from xfer.models import mindspore_layers
from xfer.models.backbone import Timm, Torchvision
from xfer.models.head import Keep, Linear
from xfer.models.network import Parts, check, from_weights
from xfer.weights.content import Content, account, mark_continued
from xfer.weights.mindspore.translate import shipped, translate
from xfer.weights.optimizer_state import continued
from xfer.weights.source.match_rules import Rename
from xfer.weights.source.mindspore import MindSpore, read

Array = npt.NDArray[Any]
Backbone = Timm | Torchvision

ZOO = Timm("resnet50", args={"layers": [1, 1, 1, 1], "channels": [4, 6, 8, 12]})
CV = Timm("resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24]})
FILES = [
    "zoo_v1.0.ckpt",
    "zoo_v2.0.ckpt",
    "zoo_v2.10.ckpt",
    "zoo_v2.10_crc.ckpt",
    "zoo_v2.0.mindir",
    "zoo_v2.10.mindir",
    "cv_v2.10.ckpt",
    "cv_v2.10.safetensors",
]
TABLE = shipped()
NAMES = [name for name, facts in TABLE["dialects"].items() if "marks" in facts]


def answer(backbone: Backbone, source: MindSpore, images: Array, classes: int) -> Array:
    weights = source.load(backbone)
    net = from_weights(Parts(backbone, Keep(), classes, compat=weights.compat), weights).eval()
    with torch.inference_mode():
        return net(torch.from_numpy(images)).numpy()


def far(got: Array, want: Array) -> float:
    """The largest difference, in units of the bound that exact mode must keep."""
    return float(np.abs(got - want).max() / (1e-5 * max(1, np.abs(want).max())))


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_mindspore_answers_as_mindspore_did(assets: Path, file: str) -> None:
    folder, kind = assets / "mindspore", file.split("_")[0]
    backbone = {"zoo": ZOO, "cv": CV}[kind]
    images, want = np.load(folder / f"{kind}_x.npy"), np.load(folder / f"{kind}_logits.npy")
    path = str(folder / file)
    assert far(answer(backbone, MindSpore(path), images, 5), want) <= 1
    plain = answer(backbone, MindSpore(path, compat="plain"), images, 5)
    assert far(plain, want) > 1000, "the test cannot fail"


def test_what_was_loaded_is_told_with_the_files_own_names(assets: Path) -> None:
    path = assets / "mindspore" / "zoo_v1.0.ckpt"
    weights = MindSpore(str(path)).load(ZOO)
    assert (weights.kind, weights.origin) == ("mindspore", str(path))
    assert len(weights.sha256 or "") == 64 and weights.optimizer is None
    assert weights.facts["format"] == "MindSpore checkpoint"
    assert weights.facts["dialect"] == weights.compat["dialect"] == "zoo_resnet_bottleneck"
    assert weights.facts["compat"] == "exact" and "prefix" not in weights.facts
    assert weights.renamed["layer1.0.downsample.1.running_var"] == (
        "layer1.0.down_sample_layer.1.moving_variance"
    )
    assert "conv1.weight" not in weights.renamed and len(weights.state or ()) == 87
    assert weights.asides["moments.end_point.weight"] == "optimizer state"
    plain = MindSpore(str(path), compat="plain").load(ZOO)
    assert plain.compat == {} and plain.facts["compat"] == "plain"
    assert json.loads(json.dumps(weights.compat)) == weights.compat


def test_the_momenta_come_under_the_networks_names(assets: Path) -> None:
    path = str(assets / "mindspore" / "zoo_v2.0.ckpt")
    weights = MindSpore(path, optimizer="resume").load(ZOO)
    parts = Parts(ZOO, Linear(), 2, compat=weights.compat)
    found = check(parts, weights)
    assert weights.optimizer is not None
    saved, dropped = continued(weights.optimizer, weights, found, ("fc",))
    assert sorted(dropped) == ["end_point.bias", "end_point.weight"]
    assert "momentum_buffer" in saved.buffers["layer4.0.downsample.0.weight"]
    assert len(saved.buffers) == sum("running" not in n for n in found.state)
    report = account(weights, found, ("fc",))
    mark_continued(report, saved)
    fates = {row["key"]: row["fate"] for row in report["rows"]}
    assert fates["moments.layer4.0.bn2.beta"] == "continued"
    assert fates["moments.end_point.bias"] == "left out"
    assert report["counts"]["continued"] == len(saved.buffers)


# Names ------------------------------------------------------------------------------------------


def of_zoo_basic(name: str) -> str:
    name = re.sub(r"(layer\d\.\d)\.bn(\d)", r"\1.bn\2d", name)
    return name.replace("downsample", "down_sample_layer").replace("fc.", "end_point.")


def of_zoo(name: str) -> str:
    return name.replace("downsample", "down_sample_layer").replace("fc.", "end_point.")


def of_googlenet(name: str) -> str:
    name = name.replace("inception", "block").replace("fc.", "classifier.")
    return name.replace(".branch4.1.", ".b4.").replace(".branch", ".b")


def of_mindcv(name: str) -> str:
    return name.replace("downsample", "down_sample").replace("fc.", "classifier.")


def of_seresnet(name: str) -> str:
    name = re.sub(r"^conv1\.", "layer0.0.", re.sub(r"^bn1\.", "layer0.1.", name))
    name = name.replace(".se.fc1.", ".se_module.conv_reduce.")
    name = name.replace(".se.fc2.", ".se_module.conv_expand.")
    return re.sub(r"^fc\.", "classifier.", name)


def same(name: str) -> str:
    return name


def of_vit(name: str) -> str:
    for torchvision, mindcv in {
        "encoder.pos_embedding": "pos_embed",
        "class_token": "cls_token",
        "conv_proj": "patch_embed.proj",
        "encoder.layers.encoder_layer_": "blocks.",
        "encoder.ln.": "norm.",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "ln_": "norm",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
        "heads.head": "head",
    }.items():
        name = name.replace(torchvision, mindcv)
    return name


TWINS: list[tuple[str, Backbone, Any]] = [
    ("zoo_resnet_basic", Timm("resnet18"), of_zoo_basic),
    ("zoo_resnet_basic", Torchvision("resnet34"), of_zoo_basic),
    ("zoo_resnet_bottleneck", Timm("resnet50.a1_in1k"), of_zoo),
    ("zoo_resnet_bottleneck", Torchvision("resnet152"), of_zoo),
    ("zoo_googlenet", Torchvision("googlenet"), of_googlenet),
    ("mindcv_resnet", Timm("resnet34"), of_mindcv),
    ("mindcv_resnet", Torchvision("resnext50_32x4d"), of_mindcv),
    ("mindcv_seresnet", Timm("seresnet18"), of_seresnet),
    ("mindcv_squeezenet1_0", Torchvision("squeezenet1_0"), same),
    ("mindcv_squeezenet1_1", Torchvision("squeezenet1_1"), same),
    ("mindcv_vit", Timm("vit_base_patch16_224", args={"depth": 2}), same),
    ("mindcv_vit", Torchvision("vit_b_16"), of_vit),
]
IDS = [f"{dialect}-{backbone.library}-{backbone.name}" for dialect, backbone, _ in TWINS]


def meta(backbone: Backbone) -> nn.Module:
    with torch.device("meta"):
        return backbone.build(7).module


def mindspore_names(net: nn.Module, rename: Any) -> Iterator[tuple[str, str]]:
    """MindSpore's and torch's name of each tensor."""
    norms = nn.modules.batchnorm._BatchNorm | nn.LayerNorm
    words = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean"}
    words["running_var"] = "moving_variance"
    paths = {path for path, layer in net.named_modules() if isinstance(layer, norms)}
    for name in net.state_dict():
        path, _, last = name.rpartition(".")
        if last != "num_batches_tracked":
            yield rename(f"{path}.{words[last]}" if path in paths else name), name


def content(names: list[str]) -> Content:
    return Content("test", {name: torch.empty(0) for name in names})


@pytest.mark.parametrize("dialect, backbone, rename", TWINS, ids=IDS)
def test_every_name_is_recognised_and_becomes_torchs(
    dialect: str, backbone: Backbone, rename: Any
) -> None:
    net = meta(backbone)
    pairs = dict(mindspore_names(net, rename))
    found = translate(content(list(pairs)), backbone.library, backbone.name)
    assert (found.dialect, found.names, found.prefix) == (dialect, pairs, "")
    asked = translate(content(list(pairs)), backbone.library, backbone.name, dialect)
    assert asked == found
    text = str(net)
    mindspore_layers.apply(net, found.compat)
    assert str(net) != text
    assert [n for n in net.state_dict() if not n.endswith("tracked")] == list(pairs.values())


def test_each_dialect_is_tried_above_and_typed_in_the_configuration() -> None:
    assert {dialect for dialect, _, _ in TWINS} == set(NAMES)
    hint = typing.get_type_hints(MindSpore)["dialect"]
    assert set(typing.get_args(hint)) == {"auto", *TABLE["dialects"]}


@pytest.mark.parametrize("dialect, backbone, rename", TWINS, ids=IDS)
def test_names_of_one_dialect_are_not_taken_for_another(
    dialect: str, backbone: Backbone, rename: Any
) -> None:
    names = [old for old, _ in mindspore_names(meta(backbone), rename)]
    for other in set(NAMES) - {dialect}:
        with pytest.raises(WeightsError, match="are not those of") as told:
            translate(content(names), backbone.library, backbone.name, other)
        assert told.value.number == 471


def googlenet(prefix: str = "", head: str = "classifier.") -> Content:
    pairs = mindspore_names(meta(Torchvision("googlenet")), of_googlenet)
    names = [prefix + old for old, _ in pairs if not old.startswith("classifier.")]
    return content([*names, f"{head}weight", f"{head}bias"])


@pytest.mark.parametrize(
    "prefix, head",
    [
        ("", "classifier."),
        ("0.", "2."),  # SequentialCell in MindSpore 2.x
        ("", ""),  # SequentialCell in MindSpore 1.0
        ("backbone.", "backbone.classifier."),
        ("network.backbone.", "classifier."),
        ("net.0.", "2."),
    ],
)
def test_one_prefix_and_the_names_of_a_sequential_head_are_taken_off(
    prefix: str, head: str
) -> None:
    found = translate(googlenet(prefix, head), "torchvision", "googlenet")
    assert found.prefix == prefix
    assert found.names[f"{prefix}conv1.bn.moving_mean"] == "conv1.bn.running_mean"
    wanted = set(dict(mindspore_names(meta(Torchvision("googlenet")), same)).values())
    assert set(found.names.values()) == wanted


def test_a_head_of_several_layers_keeps_its_names() -> None:
    names = [*googlenet("0.", "2.").state, "4.weight", "4.bias"]
    found = translate(content(names), "torchvision", "googlenet")
    assert found.names["2.weight"] == "2.weight" and found.names["4.bias"] == "4.bias"


def test_a_network_that_is_half_of_the_file_is_not_guessed() -> None:
    both = [*googlenet("teacher.", "teacher.classifier.").state]
    both += googlenet("student.", "student.classifier.").state
    with pytest.raises(WeightsError, match=r"'student\.', 'teacher\.'.*source\.strip=student\."):
        translate(content(both), "torchvision", "googlenet")


def test_two_entries_for_one_tensor_are_told() -> None:
    names = [*googlenet("backbone.", "backbone.classifier.").state, "classifier.weight"]
    with pytest.raises(WeightsError, match=r"'classifier\.weight' both become 'fc\.weight'"):
        translate(content(names), "torchvision", "googlenet")


def test_a_layer_scale_keeps_its_gamma() -> None:
    names = ["norm.gamma", "norm.beta", "blocks.0.ls1.gamma", "blocks.0.attn.qkv.weight"]
    found = translate(content([*names, "patch_embed.proj.weight"]), "timm", "vit_base_patch16_224")
    assert found.names["blocks.0.ls1.gamma"] == "blocks.0.ls1.gamma"
    assert found.names["norm.gamma"] == "norm.weight"


def test_plain_changes_the_norms_names_and_nothing_else() -> None:
    names = ["a.gamma", "a.beta", "a.moving_mean", "a.moving_variance", "b.weight", "c.gamma"]
    found = translate(content(names), "timm", "densenet121", "plain")
    assert list(found.names.values()) == [
        *("a.weight", "a.bias", "a.running_mean", "a.running_var", "b.weight", "c.gamma"),
    ]
    assert found.compat == {} and found.dialect == "plain"


@pytest.mark.parametrize(
    "library, architecture, message",
    [
        ("timm", "resnet50", "holds a GoogLeNet.*timm's resnet50 is not.*backbone.name=googlenet"),
        ("torchvision", "resnet50", "holds a GoogLeNet.*torchvision's resnet50 is not"),
        ("torchvision", "googlenet_x", "googlenet_x is not"),
    ],
)
def test_a_network_other_than_the_backbone_is_told(
    library: str, architecture: str, message: str
) -> None:
    with pytest.raises(WeightsError, match=message) as told:
        translate(googlenet(), library, architecture, where="a.ckpt")
    assert told.value.number == 472 and told.value.where == "a.ckpt"
    translate(googlenet(), "mine", "something")  # a library of one's own decides by its shapes


@pytest.mark.parametrize("architecture", ["resnet50d", "resnet50_gn", "seresnet50", "resnet18"])
def test_a_variant_of_a_resnet_is_not_its_twin(architecture: str) -> None:
    names = [old for old, _ in mindspore_names(meta(Timm("resnet50")), of_zoo)]
    with pytest.raises(WeightsError, match="is not"):
        translate(content(names), "timm", architecture)


@pytest.mark.parametrize(
    "names, message",
    [
        (["a.weight", "b.gamma", "c"], r"\(a\.weight, b\.gamma, c\).*dialect=plain.*zoo_resnet_b"),
        (["layer1.0.se_dense_0.weight"], "holds an SE-ResNet of MindSpore's model zoo, for which"),
        (["inception3a.b1.conv.weight"], "GoogLeNet of mindcv"),
        (["features.1.layers.0.weight", "features.2.layers.1.features.weight"], "a MobileNet or"),
    ],
)
def test_unknown_names_are_told_with_examples_and_the_dialects(
    names: list[str], message: str
) -> None:
    with pytest.raises(WeightsError, match=message) as told:
        translate(content(names), "timm", "resnet50")
    assert told.value.exit == 4 and "\n" not in str(told.value)


def test_a_misspelt_dialect_is_told() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mindcv_resnet'"):
        translate(content(["a"]), "timm", "resnet18", "mindcv_resnets")


# Files ------------------------------------------------------------------------------------------


def written(path: Path, metadata: dict[str, str] | None) -> Path:
    net = CV.build(5).module
    pairs = mindspore_names(net, of_mindcv)
    save_file({old: net.state_dict()[new] for old, new in pairs}, path, metadata)
    return path


def test_the_users_renames_and_drops_come_after_the_dialects(tmp_path: Path) -> None:
    path = written(tmp_path / "a", {"format": "ms"})
    rules = {
        "rename": (Rename(r"^layer4\.", "stage4."),),
        "drop": (r"fc\..*",),
        "allow_missing": (r"layer4\..*",),
    }
    weights = MindSpore(str(path), **rules).load(CV)  # type: ignore[arg-type]
    assert weights.renamed["stage4.0.downsample.0.weight"] == "layer4.0.down_sample.0.weight"
    assert weights.renamed["stage4.0.conv1.weight"] == "layer4.0.conv1.weight"
    assert weights.asides["classifier.weight"] == "dropped by source.drop"
    assert "fc.weight" not in (weights.state or {})
    assert weights.allow_missing == (r"layer4\..*",)


def test_a_prefix_is_reported(tmp_path: Path) -> None:
    tensors = read(written(tmp_path / "a", {"format": "ms"})).state
    save_file({f"backbone.{n}": t for n, t in tensors.items()}, tmp_path / "b", {"format": "ms"})
    weights = MindSpore(str(tmp_path / "b")).load(CV)
    assert weights.facts["prefix"] == "backbone."
    assert weights.renamed["conv1.weight"] == "backbone.conv1.weight"


def test_of_two_networks_in_a_file_strip_chooses_one(tmp_path: Path) -> None:
    tensors = read(written(tmp_path / "a", {"format": "ms"})).state
    both = {f"teacher.{n}": t for n, t in tensors.items()}
    both |= {f"student.{n}": t + 1 for n, t in tensors.items()}
    both |= {f"moments.{n}": torch.full_like(t, 3) for n, t in both.items() if "moving" not in n}
    path = str(tmp_path / "b")
    save_file(both, path, {"format": "ms"})
    with pytest.raises(WeightsError, match=r"source\.strip=student\."):
        MindSpore(path).load(CV)
    for start, other, more in (("teacher.", "student.", 0), ("student.", "teacher.", 1)):
        weights = MindSpore(path, strip=start).load(CV)
        assert weights.state is not None and len(weights.state) == len(tensors)
        assert torch.equal(weights.state["conv1.weight"], tensors["conv1.weight"] + more)
        assert weights.renamed["bn1.weight"] == f"{start}bn1.gamma"
        assert weights.renamed["conv1.weight"] == f"{start}conv1.weight"
        assert weights.asides[f"{other}conv1.weight"] == f"not below '{start}'"
        assert weights.asides[f"moments.{start}conv1.weight"] == "optimizer state"
        found = check(Parts(CV, Linear(), 2, compat=weights.compat), weights)
        assert found.coverage == 1
    with pytest.raises(ConfigError, match=r"source\.strip.*matches no name"):
        MindSpore(path, strip="pupil.").load(CV)


def test_strip_leaves_out_a_tensor_that_is_called_as_the_network_calls_one(tmp_path: Path) -> None:
    tensors = read(written(tmp_path / "a", {"format": "ms"})).state
    more = {f"net.{n}": t for n, t in tensors.items()} | {"fc.weight": torch.zeros(3)}
    save_file(more, tmp_path / "b", {"format": "ms"})
    weights = MindSpore(str(tmp_path / "b"), strip="net.").load(CV)
    assert weights.asides == {"fc.weight": "not below 'net.'"}
    assert weights.renamed["fc.weight"] == "net.classifier.weight"


def test_files_of_others_are_told(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "torch.ckpt")
    written(tmp_path / "pt.safetensors", {"format": "pt"})
    written(tmp_path / "bare.safetensors", None)
    (tmp_path / "page.ckpt").write_text("<!doctype html><html></html>")
    for name, number, message in [
        ("torch.ckpt", 478, "torch checkpoint, not a MindSpore file.*source=file source.path="),
        ("pt.safetensors", 478, "safetensors, not a MindSpore file"),
        ("page.ckpt", 481, "HTML page"),
        ("absent.ckpt", 401, "no such file"),
    ]:
        with pytest.raises(WeightsError, match=message) as told:
            MindSpore(str(tmp_path / name)).load(CV)
        assert told.value.number == number and str(tmp_path / name) in str(told.value)
    assert (
        MindSpore(str(tmp_path / "bare.safetensors")).load(CV).facts["dialect"] == "mindcv_resnet"
    )


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tensors = dict(read(written(tmp_path / "a", {"format": "ms"})).state)
    tensors["bn1.gamma"] = torch.full((64,), torch.nan)
    save_file(tensors, tmp_path / "b", {"format": "ms"})
    with pytest.raises(WeightsError, match=r"'bn1\.gamma' holds NaN"):
        MindSpore(str(tmp_path / "b")).load(CV)


# Proof ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proof:
    """``network`` as ``mindspore_proof.py`` knows it, the pixels, and its twins."""

    network: str
    sizes: tuple[int, ...]
    twins: tuple[Backbone, ...]
    least: float = 10
    """How many bounds plain mode must be away at the first size."""


PROOFS = [
    Proof("zoo_resnet18", (224, 100), (Timm("resnet18"), Torchvision("resnet18"))),
    Proof("zoo_resnet50", (224, 100), (Timm("resnet50"), Torchvision("resnet50"))),
    Proof("zoo_googlenet", (224, 100), (Torchvision("googlenet"),)),
    Proof("zoo_googlenet_sequential", (224,), (Torchvision("googlenet"),)),
    Proof("cv_resnet18", (224, 100), (Timm("resnet18"), Torchvision("resnet18"))),
    Proof("cv_resnet50", (224, 100), (Timm("resnet50"), Torchvision("resnet50"))),
    Proof("cv_resnext50_32x4d", (224,), (Timm("resnext50_32x4d"), Torchvision("resnext50_32x4d"))),
    Proof("cv_seresnet18", (224,), (Timm("seresnet18"),)),
    Proof("cv_seresnet50", (224,), (Timm("seresnet50"),)),
    Proof("cv_seresnext50_32x4d", (224,), (Timm("seresnext50_32x4d"),)),
    Proof("cv_squeezenet1_0", (224, 100), (Torchvision("squeezenet1_0"),)),
    Proof("cv_squeezenet1_1", (224, 100), (Torchvision("squeezenet1_1"),)),
    Proof("cv_vit_b_16_224", (224,), (Timm("vit_base_patch16_224"), Torchvision("vit_b_16"))),
]


def by_mindspore(python: str, proof: Proof, folder: Path) -> None:
    script = Path(__file__).parents[1] / "proofs" / "mindspore_proof.py"
    # On CPUs with AVX-512, MindSpore 2.10 takes the slow reference convolution otherwise.
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "GLOG_v": "3"}
    command = [python, str(script), proof.network, str(folder), *map(str, proof.sizes)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(
    "XFER_MINDSPORE" not in os.environ, reason="XFER_MINDSPORE names no python with MindSpore"
)
@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof.network)
def test_the_real_mindspore_agrees(proof: Proof, tmp_path: Path) -> None:
    by_mindspore(os.environ["XFER_MINDSPORE"], proof, tmp_path)
    paths = [tmp_path / f"{proof.network}{end}" for end in (".ckpt", ".safetensors", ".mindir")]
    first, *others = [MindSpore(str(path)).load(proof.twins[0]) for path in paths]
    for other in others:
        assert first.state is not None and other.state is not None
        assert first.state.keys() == other.state.keys() and other.compat == first.compat
        assert all(torch.equal(t, other.state[n]) for n, t in first.state.items())
    for backbone in proof.twins:
        _agrees(proof, backbone, tmp_path)
    shutil.rmtree(tmp_path)  # up to a gigabyte


def _agrees(proof: Proof, backbone: Backbone, folder: Path) -> None:
    path = str(folder / f"{proof.network}.ckpt")
    weights = MindSpore(path).load(backbone)
    net = from_weights(Parts(backbone, Keep(), 7, compat=weights.compat), weights).eval()
    plain = MindSpore(path, compat="plain").load(backbone)
    other = from_weights(Parts(backbone, Keep(), 7), plain).eval()
    for size in proof.sizes:
        images = torch.from_numpy(np.load(folder / f"x_{size}.npy"))
        want = np.load(folder / f"logits_{size}.npy")
        with torch.inference_mode():
            got, less = net(images).numpy(), other(images).numpy()
        print(
            f"| {proof.network} | {backbone.library} {backbone.name} | {size} "
            f"| {np.abs(want).max():.3g} | {np.abs(got - want).max():.1e} "
            f"| {np.abs(less - want).max():.1e} |",
            file=sys.stderr,
        )
        assert far(got, want) <= 1
        assert size != proof.sizes[0] or far(less, want) > proof.least, "the test cannot fail"
    _statistics_agree(net, weights.renamed, images, np.load(folder / "statistics.npz"))


def _statistics_agree(net: nn.Module, renamed: Any, images: torch.Tensor, moved: Any) -> None:
    """After one step of training: the momentum of every batch norm."""
    with torch.no_grad():
        net.train()(images)
    for name, tensor in net.state_dict().items():
        if name.rpartition(".")[2].startswith("running_"):
            want = moved[renamed[name]]
            np.testing.assert_allclose(tensor.numpy(), want, rtol=1e-3, atol=1e-4, err_msg=name)


def test_networks_that_only_resemble_a_resnet_are_called_by_their_own_names() -> None:
    stem = {"conv1.weight": (8, 3, 7, 7), "layer1.0.down_sample.0.weight": (16, 8, 1, 1)}
    block = {"layer1.0.conv3.weight": (16, 4, 1, 1), "layer1.0.bn3.gamma": (16,)}
    others = {
        "Res2Net": {"layer1.0.convs.0.weight": (2, 2, 3, 3)},
        "SKNet": {"layer1.0.conv2.attn.fc_reduce.weight": (4, 8, 1, 1)},
        "HRNet": {"stage2.0.branches.0.0.conv1.weight": (8, 8, 3, 3)},
        "ResNetV2": {**block, "layer1.0.bn3.gamma": (4,)},
    }
    for about, more in others.items():
        state = {n: torch.ones(s) for n, s in {**stem, **more}.items()}
        for given in (state, {f"net.{n}": t for n, t in state.items()}):
            with pytest.raises(WeightsError, match=f"E473.*holds an? {about} of mindcv"):
                translate(Content("", given), "timm", "resnet50")
    plain = {n: torch.ones(s) for n, s in {**stem, **block}.items()}
    assert translate(Content("", plain), "timm", "resnet50").dialect == "mindcv_resnet"
