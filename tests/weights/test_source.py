from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import BACKBONES
from safetensors.torch import load_file, save_file
from shipped import SHIPPED
from weights_files import NO_TORCH_FILES

from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError, WeightsError, XferError
from xfer.core.files import file_sha256
from xfer.core.types import Card, InputSpec
from xfer.data.preprocess import of_timm, of_torchvision
from xfer.export.safetensors import Safetensors
from xfer.models.backbone import Timm, Torchvision
from xfer.models.head import Keep, Linear
from xfer.models.network import Parts, check, from_weights
from xfer.models.restore import open_checkpoint
from xfer.plan.make import make_plan
from xfer.plan.table import table
from xfer.weights.content import Weights
from xfer.weights.formats.checkpoint_format import Snapshot, write_snapshot
from xfer.weights.formats.safetensors_file import metadata_of
from xfer.weights.match import match
from xfer.weights.source import File, Hub, Run, Scratch, Shipped

SMALL = BACKBONES["digits_resnet"]


def state(classes: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return dict(SMALL.build(classes).module.state_dict())


def write(path: Path, tensors: dict[str, torch.Tensor], form: str) -> Path:
    if form == "safetensors":
        save_file({n: t.contiguous() for n, t in tensors.items()}, path)
    else:
        content = {"epoch": 3, "state_dict": tensors} if form == "nested" else tensors
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "nested", "safetensors"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".bin"])
def test_a_file_is_read_by_its_content_whatever_it_is_called(
    tmp_path: Path, form: str, suffix: str
) -> None:
    path = write(tmp_path / f"weights{suffix}", state(), form)
    weights = File(str(path)).load(SMALL)
    net = from_weights(Parts(SMALL, Linear(), 2), weights)
    for name, tensor in state().items():
        if not name.startswith("fc."):
            assert torch.equal(net.state_dict()[name], tensor), name
    found = check(Parts(SMALL, Linear(), 2), weights)
    assert set(found.of("dropped head")) == set(found.missing) == {"fc.weight", "fc.bias"}
    assert found.coverage == 1 and weights.kind == "file" and len(weights.sha256 or "") == 64


def test_keep_loads_the_head_as_well(tmp_path: Path) -> None:
    weights = File(str(write(tmp_path / "a.pt", state(), "zip"))).load(SMALL)
    net = from_weights(Parts(SMALL, Keep(), 7), weights)
    assert all(torch.equal(t, state()[n]) for n, t in net.state_dict().items())
    with pytest.raises(WeightsError, match=r"fc\.weight \[7, 64\] for \[3, 64\].*classes"):
        from_weights(Parts(SMALL, Keep(), 3), weights)


def test_a_prefix_before_all_names_is_taken_off_and_reported() -> None:
    weights = Weights("file", {f"module.{n}": t for n, t in state().items()}, "a.pt")
    net = from_weights(Parts(SMALL, Linear(), 2), weights)
    assert torch.equal(net.conv1.weight, state()["conv1.weight"])
    found = check(Parts(SMALL, Linear(), 2), weights)
    assert found.prefix == "module."
    assert {row.key for row in found.rows if row.name == "conv1.weight"} == {"module.conv1.weight"}
    assert found.of("renamed")[0] == "conv1.weight" and found.coverage == 1


def test_weights_of_another_architecture_are_told_with_examples_of_both_sides() -> None:
    other = Torchvision("squeezenet1_0").build().module.state_dict()
    with pytest.raises(WeightsError) as told:
        from_weights(Parts(SMALL, Linear(), 2), Weights("file", other, "a.pt"))
    text = str(told.value)
    assert "missing (conv1.weight" in text and "unexpected (features.0.weight" in text
    assert "type backbone=LIBRARY backbone.name=NAME of the one that they are of" in text
    assert "another architecture" in text and told.value.exit == 4 and "\n" not in text


@pytest.mark.parametrize(
    ("library", "name", "file"),
    [
        ("torchvision", "squeezenet1_0", "/weights/SqueezeNet1_0-b66bff10.pth"),
        ("timm", "resnet18.a1_in1k", "resnet50/resnet18.a1_in1k.pth"),
    ],
)
def test_weights_called_by_their_architecture_are_read_with_what_the_error_says(
    library: str, name: str, file: str
) -> None:
    spec = {"torchvision": Torchvision, "timm": Timm}[library]
    weights = Weights("file", dict(spec(name).build().module.state_dict()), file)
    with pytest.raises(WeightsError, match=r"E430: .*tensors of another one") as told:
        check(Parts(SMALL, Linear(), 2), weights)
    typed = told.value.fix.partition("type ")[2].split()
    assert typed == [f"backbone={library}", f"backbone.name={name}"]
    backbone = compose_specs(["data=digits", *typed]).backbone
    assert check(Parts(backbone, Linear(), 2), weights).coverage == 1
    # What a file is called by alone says nothing of its tensors.
    with pytest.raises(WeightsError, match="type backbone=LIBRARY"):
        check(Parts(SMALL, Linear(), 2), Weights("file", {"a": torch.ones(3, 7)}, file))


@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape"])
def test_a_single_tensor_of_the_backbone_that_does_not_fit_stops_the_run(kind: str) -> None:
    tensors = state()
    if kind == "missing":
        del tensors["bn1.weight"]
    elif kind == "unexpected":
        tensors["extra.weight"] = torch.ones(1)
    else:
        tensors["bn1.weight"] = torch.ones(3)
    with pytest.raises(WeightsError, match=r"bn1\.weight|extra\.weight"):
        from_weights(Parts(SMALL, Linear(), 2), Weights("file", tensors, "a.pt"))


def test_files_older_than_the_counter_of_batch_normalisation_load() -> None:
    old = {n: t for n, t in state().items() if not n.endswith("num_batches_tracked")}
    net = from_weights(Parts(SMALL, Linear(), 2), Weights("file", old, "a.pt"))
    assert torch.equal(net.bn1.running_mean, old["bn1.running_mean"])
    assert net.bn1.num_batches_tracked == 0


def test_auxiliary_classifiers_of_the_file_are_dropped() -> None:
    net = Torchvision("googlenet").build()
    given = dict(net.module.state_dict()) | {"aux1.fc.weight": torch.ones(2)}
    found = match(net.module.state_dict(), Weights("hub", given), net.heads, net.dropped)
    assert set(found.of("dropped head")) == {"aux1.fc.weight", "fc.weight", "fc.bias"}


@pytest.mark.parametrize("name", NO_TORCH_FILES)
def test_a_file_without_weights_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(NO_TORCH_FILES[name])
    with pytest.raises(WeightsError) as told:
        File(str(tmp_path / "a.safetensors")).load(SMALL)
    assert told.value.exit == 4 and "\n" not in str(told.value)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_safetensors_file_is_told_in_one_line(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "a", state(), "safetensors")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(WeightsError) as told:
        File(str(path)).load(SMALL)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [[1], {}, {"a": 1}, {"state_dict": {"a": "b"}}])
def test_a_file_without_tensors_by_name_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="tensor"):
        File(str(tmp_path / "a.pt")).load(SMALL)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such file.*source\.path=FILE"):
        File(str(tmp_path / "a.pt")).load(SMALL)


def test_scratch_has_no_weights() -> None:
    assert Scratch().load(SMALL) == Weights("none", None)


def card(backbone: str = "resnet18", library: str = "Timm") -> Card:
    spec = InputSpec((32, 32), 36, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    own = {"_target_": f"xfer.models.backbone.{library}", "name": backbone}
    head = {"_target_": "x"}
    return Card(own, head, tuple("abcdefg"), spec)


def test_an_earlier_run_brings_its_classes_and_its_input_along(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "best.ckpt"
    write_snapshot(path, Snapshot(card(), state()))
    for given in (tmp_path, path):
        weights = Run(str(given)).load(SMALL)
        assert (weights.classes, weights.input) == (card().classes, card().input)
        from_weights(Parts(SMALL, Keep(), 7), weights)
    with pytest.raises(WeightsError, match=r"is an xfer checkpoint.*source=run"):
        File(str(path)).load(SMALL)


def test_a_run_of_another_backbone_is_refused_by_name(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "a.ckpt", Snapshot(card("resnet50"), state()))
    with pytest.raises(WeightsError, match=r"Fix: type backbone\.name=resnet50$"):
        Run(str(tmp_path / "a.ckpt")).load(SMALL)


def test_a_run_of_another_librarys_backbone_is_refused_by_both_names(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "a.ckpt", Snapshot(card("squeezenet1_0", "Torchvision"), state()))
    source = ["source=run", f"source.path={tmp_path / 'a.ckpt'}", "data=digits"]
    with pytest.raises(WeightsError) as told:
        Run(str(tmp_path / "a.ckpt")).load(SMALL)
    typed = told.value.fix.removeprefix("type ").split()
    assert typed == ["backbone=torchvision", "backbone.name=squeezenet1_0"]
    found = compose_specs([*source, *typed]).backbone
    assert Run(str(tmp_path / "a.ckpt")).load(found).kind == "run"  # type: ignore[arg-type]


def test_the_shipped_checkpoint_fits_its_backbone_and_has_no_path_of_a_machine() -> None:
    weights = Shipped("digits_0_4").load(SMALL)
    assert weights.origin == "xfer:digits_0_4" and len(weights.classes or ()) == 5
    from_weights(Parts(SMALL, Keep(), 5), weights)


def test_torchvisions_hub_is_read_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    backbone, enum = Torchvision("squeezenet1_0"), models.SqueezeNet1_0_Weights.IMAGENET1K_V1
    path = tmp_path / "hub" / "checkpoints" / enum.url.rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True)
    tensors = dict(backbone.build().module.state_dict())
    torch.save(tensors, path)
    weights = Hub().load(backbone)
    assert weights.input == of_torchvision(enum.transforms()) and len(weights.sha256 or "") == 64
    net = from_weights(Parts(backbone, Keep(), 1000), weights)
    assert all(torch.equal(t, tensors[n]) for n, t in net.state_dict().items())


def test_densenets_published_names_are_those_of_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    backbone, url = Torchvision("densenet121"), models.DenseNet121_Weights.DEFAULT.url
    path = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True)
    tensors = dict(backbone.build().module.state_dict())
    published = {
        n.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2."): t
        for n, t in tensors.items()
        if not n.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    torch.save(published, path)
    models.densenet121(weights="DEFAULT")  # torchvision reads the same file
    from_weights(Parts(backbone, Keep(), 1000), Hub().load(backbone))


def cached_timm(cache: Path, full: str, tensors: dict[str, torch.Tensor]) -> None:
    import timm
    from safetensors.torch import save_file

    repo = timm.get_pretrained_cfg(full).hf_hub_id.replace("/", "--")
    snapshot = cache / f"models--{repo}" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    refs = cache / f"models--{repo}" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    blob = cache / f"models--{repo}" / "blobs" / "b"
    blob.parent.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, blob)
    (snapshot / "model.safetensors").symlink_to(blob)


def test_timms_hub_is_read_from_its_cache_with_the_recipe_of_the_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    backbone = Timm("resnet18")
    tensors = dict(backbone.build().module.state_dict())
    cached_timm(tmp_path, "resnet18.tv_in1k", tensors)
    weights = Hub("tv_in1k").load(backbone)
    assert weights.origin == "timm:resnet18.tv_in1k" and len(weights.sha256 or "") == 64
    assert weights.input == of_timm(timm.get_pretrained_cfg("resnet18.tv_in1k").to_dict())
    assert weights.input != backbone.build().input
    net = from_weights(Parts(backbone, Keep(), 1000), weights)
    assert all(torch.equal(t, tensors[n]) for n, t in net.state_dict().items())


def test_without_cache_and_network_the_hub_is_told_in_one_line(tmp_path: Path) -> None:
    script = (
        "from xfer.models.backbone import *\nfrom xfer.weights.source import Hub\n"
        "for backbone in (Timm('resnet18'), Torchvision('squeezenet1_0')):\n"
        "    try: Hub().load(backbone)\n"
        "    except Exception as e: print(f'exit {e.exit}, {e}')"
    )
    closed = "http://127.0.0.1:9"
    env = os.environ | {
        **{"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path), "TORCH_HOME": str(tmp_path)},
        **{"https_proxy": closed, "http_proxy": closed, "no_proxy": "", "NO_PROXY": ""},
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=600
    )
    told = done.stdout.splitlines()
    assert len(told) == 2, done.stderr
    for line in told:
        assert (
            line.startswith("exit 4, xfer: error E411") and "source=file source.path=FILE" in line
        )


@pytest.mark.parametrize("backbone", [Timm("resnet18"), Torchvision("resnet18")])
def test_a_wrong_tag_offers_the_published_ones(backbone: Timm | Torchvision) -> None:
    tag = "a1_in1" if backbone.library == "timm" else "IMAGENET1K_V9"
    with pytest.raises(ConfigError, match=r"source\.tag.*(a1_in1k|IMAGENET1K_V1)"):
        Hub(tag).load(backbone)


def test_the_recipe_of_a_file_is_what_source_recipe_says_and_else_told_to_be_assumed(
    tmp_path: Path,
) -> None:
    path, recipe = write(tmp_path / "a.pt", state(), "zip"), tmp_path / "preprocess.json"
    asked = ["experiment=digits_freeze", "source=file", f"source.path={path}", "stages=[]"]
    plan = make_plan(compose_specs(asked))
    assert plan.card.input == SMALL.build().input.scaled(32)
    assert "as resnet18 has it by default: the file says none" in table(plan)
    other = InputSpec((40, 40), 48, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
    recipe.write_text(json.dumps(other.to_plain()))
    asked += [f"source.recipe={recipe}"]
    plan = make_plan(compose_specs([*asked, "backbone.image_size=null"]))
    assert plan.card.input == other and "by default" not in table(plan)
    assert make_plan(compose_specs(asked)).card.input == other.scaled(32)
    recipe.write_text('{"size": [40, 40]}')
    with pytest.raises(XferError, match=r"E298: source\.recipe: .*is not an input recipe"):
        make_plan(compose_specs(asked))


def test_a_file_that_xfer_exported_brings_its_recipe(tmp_path: Path) -> None:
    specs = compose_specs(["experiment=digits_freeze"])
    net, card = open_checkpoint(SHIPPED, specs.make)
    own = InputSpec((40, 40), 48, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
    path = tmp_path / "model.safetensors"
    Safetensors().write(net, np.zeros((1, 3, 40, 40), np.float32), replace(card, input=own), path)
    asked = ["experiment=digits_freeze", "source=file", f"source.path={path}"]
    asked.append("backbone.image_size=null")
    plan = make_plan(compose_specs(asked))
    assert plan.card.input == own and "as the file says, which xfer exported" in table(plan)
    recipe = tmp_path / "preprocess.json"
    recipe.write_text(json.dumps(replace(own, resize=None).to_plain()))
    plan = make_plan(compose_specs([*asked, f"source.recipe={recipe}"]))
    assert plan.card.input.resize is None and "as the file says" not in table(plan)
    tensors, said = load_file(path), metadata_of(path)
    save_file(tensors, path, {name: text for name, text in said.items() if name != "xfer"})
    assert "the file says none" in table(make_plan(compose_specs(asked)))  # somebody else's word
    save_file(tensors, path, said | {"preprocess": "{}"})
    with pytest.raises(XferError, match=r"E402: .*its metadata 'preprocess': size"):
        make_plan(compose_specs(asked))


def test_who_asks_whose_a_file_is_imports_no_compiler(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    code = (
        "import sys; from xfer.models.backbone import Timm, Torchvision; "
        "from xfer.weights.source import File; "
        "[File(path=sys.argv[1]).load(b) for b in (Timm('resnet18'), Torchvision('resnet18'))]; "
        "sys.exit(10 * ('torch._dynamo' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.safetensors")])
    assert done.returncode == 0


def test_a_published_file_has_the_recipe_that_is_published_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from torchvision.models import MobileNet_V2_Weights

    path = tmp_path / "renamed.pt"
    usual = Timm("resnet18").build()
    torch.save(usual.module.state_dict(), path)
    config = timm.get_pretrained_cfg("resnet18.tv_in1k")
    address = f"https://example.org/r-{file_sha256(path)[:8]}.pth"
    theirs = {"resnet18.tv_in1k": replace(config, url=address)}
    get = timm.get_pretrained_cfg
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda n, **o: theirs.get(n) or get(n, **o))
    weights = File(path=str(path)).load(Timm("resnet18"))
    assert weights.input == of_timm(config.to_dict()) != usual.input
    asked = ["data=digits", "backbone=resnet18", "source=file", f"source.path={path}", "stages=[]"]
    plan = make_plan(compose_specs(asked))
    assert plan.card.input == weights.input
    assert "by its sha256 the file is timm:resnet18.tv_in1k" in table(plan)
    theirs.clear()
    assert File(path=str(path)).load(Timm("resnet18")).input is None
    first, net = MobileNet_V2_Weights.IMAGENET1K_V1, Torchvision("mobilenet_v2")
    monkeypatch.setattr(first.value, "url", address)
    weights = File(path=str(path)).load(net)
    assert weights.input == of_torchvision(first.transforms()) != net.build().input
    assert weights.facts["published"] == f"torchvision:{first}"
