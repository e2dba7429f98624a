"""Low-rank adapters: trained beside frozen weights, merged into them, and seen by nobody else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from backbones import BACKBONES
from networks import awake, make
from runs import assert_same, finish, in_an_epoch, kill, only_run, start, wait_for
from safetensors import safe_open
from safetensors.torch import load_file
from shipped import SHIPPED
from torch import nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer, VisionTransformer

from xfer import api
from xfer.config import schema
from xfer.core.checksum import tensor_hashes
from xfer.core.errors import ConfigError, WeightsError
from xfer.core.protocols import Backbone
from xfer.core.types import InputSpec, Network
from xfer.freeze import (
    Layout,
    Lora,
    Phase,
    apply,
    audit,
    check_read,
    frozen,
    hashes,
    hold,
    layout,
    verdict,
)
from xfer.models.adapters import Matrix, factors, matrices, merge, put
from xfer.models.backbone import Timm, Torchvision
from xfer.models.network import fill, from_weights
from xfer.models.restore import open_checkpoint, pieces
from xfer.training import optim, optimizer_restore
from xfer.training.features.find_cut import Refusal, find
from xfer.training.features.prove_cut import Whole
from xfer.weights.content import OptimizerBuffers
from xfer.weights.formats.checkpoint_format import Snapshot, read_snapshot, write_snapshot

SPEC = InputSpec((32, 32), None, "bilinear", (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Small:
    """A network of torchvision's own classes, narrower than its builders make it."""

    make: Callable[[int], nn.Module]
    head: str
    library: str = "torchvision"
    name: str = "small"

    def build(self, classes: int | None = None) -> Network:
        return Network(self.make(classes or 10), (self.head,), SPEC)


def swin(classes: int) -> nn.Module:
    return SwinTransformer([4, 4], 24, [1, 1], [2, 4], [4, 4], num_classes=classes)


def vit(classes: int) -> nn.Module:
    return VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=classes)


FAMILIES: dict[str, tuple[Backbone, int]] = {
    "resnet": (Torchvision("resnet18"), 64),
    "mobilenet": (Torchvision("mobilenet_v3_small"), 64),
    "efficientnet": (Torchvision("efficientnet_b0"), 64),
    "convnext": (Timm("convnext_atto"), 64),
    "vit": (Timm("vit_tiny_patch16_224", {"depth": 2}, 32), 32),
    "swin": (Timm("swin_tiny_patch4_window7_224", image_size=56), 56),
    "squeezenet": (Torchvision("squeezenet1_0"), 64),
    "googlenet": (Torchvision("googlenet"), 64),
    "resnet of timm": (BACKBONES["digits_resnet"], 32),
    "mobilenet of timm": (Timm("mobilenetv3_small_050"), 64),
    "vit of torchvision": (Small(vit, "heads.head"), 32),
    "swin of torchvision": (Small(swin, "head"), 32),
}
GROUPED = ("mobilenet", "efficientnet", "convnext", "mobilenet of timm")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def known(net: nn.Module, backbone: Backbone) -> Layout:
    with torch.device("meta"):
        heads = backbone.build().heads
    return layout(net, heads)


def adapted(net: nn.Module, backbone: Backbone, policy: Lora) -> tuple[Layout, Phase]:
    """``net`` as a fit with ``policy`` trains it, and its one phase."""
    found = known(net, backbone)
    own = policy.adapters(found)
    put(net, own)
    found = found.adapted(own["weights"], [name for name, _ in net.named_parameters()])
    (phase,) = policy.phases(found, 1)
    apply(net, phase.rows)
    net.train()
    hold(net)
    return found, phase


def awake_norms(net: nn.Module) -> nn.Module:
    """With scales where timm has zeros, behind which no gradient comes."""
    for name, parameter in net.named_parameters():
        if name.endswith("weight") and not parameter.any():
            nn.init.uniform_(parameter, 0.5, 1.5)
    return net


def steps(net: nn.Module, phase: Phase, images: torch.Tensor, count: int = 3) -> Any:
    rates = {row.name: (row.lr,) for row in phase.rows}
    groups = optim.Sgd(lr=0.05, decay="all").groups(net, rates)
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.1)
    audit(optimizer, net.named_parameters(), [phase], 0)
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(net(images), torch.arange(len(images)) % 2).backward()
        optimizer.step()
    return optimizer


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


# Of two libraries' networks of one family, one; grouped convolutions and attention are among them.
SLOW = {"resnet", "mobilenet", "efficientnet", "swin", "googlenet"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else []) for n in FAMILIES]
)
def test_adapters_train_alone_and_merge_into_the_plain_network(name: str) -> None:
    backbone, size = FAMILIES[name]
    net, images = awake_norms(make(backbone)), torch.randn(4, 3, size, size)
    plain, kinds = state(net), [type(module) for module in net.modules()]
    with torch.no_grad():
        start = net(images)
    found, phase = adapted(net, backbone, Lora(rank=2, lr=1))
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(images), start), "an adapter that has not trained changes nothing"
    net.train()
    hold(net)
    before, still = state(net), frozen(net, phase.rows)
    steps(net, phase, images)
    after = state(net)
    assert set(found.adapters) == {n for n in after if "_lora_" in n} != set()
    own = dict(net.named_parameters())
    assert [n for n in found.adapters if not own[n].grad.any()] == []  # type: ignore[union-attr]
    assert all(after[n].any() for n in found.adapters if n.endswith("_b"))
    weights = {n.rpartition("_lora_")[0] for n in found.adapters}
    heads = {n for n in plain if found.in_head(n)}
    assert weights <= still and still >= {n for n in plain if n in own} - heads
    assert verdict(hashes(before, still), hashes(after, still))["proved"]
    net.eval()
    with torch.no_grad():
        trained = net(images)
        assert not torch.equal(trained, start)
        assert torch.equal(merge(net)(images), trained)
    merged = state(net)
    assert list(merged) == list(plain) and [type(module) for module in net.modules()] == kinds
    changed = {n for n in plain if not torch.equal(merged[n], plain[n])} - heads
    assert changed <= weights and len(changed) > len(weights) / 2
    if name in GROUPED:
        grouped = {f"{p}.weight" for p, m in net.named_modules() if getattr(m, "groups", 1) > 1}
        assert grouped & weights


@pytest.mark.parametrize("name", ["vit of torchvision", "swin of torchvision"])
def test_attention_that_never_calls_its_layers_is_adapted(name: str) -> None:
    """Both hand weights to a function: a wrapped layer would never run."""
    backbone, size = FAMILIES[name]
    net = make(backbone)
    names = [matrix.name for matrix in matrices(net)]
    inner = [n for n in names if n.endswith(("in_proj_weight", "out_proj.weight", "qkv.weight"))]
    assert inner
    put(net, {"rank": 2, "scale": 1.0, "weights": inner})
    net(torch.randn(2, 3, size, size)).sum().backward()
    check_read(net.named_parameters(), [f for n in inner for f in factors(n)])


def test_a_factor_has_clear_names_and_belongs_to_the_stage_and_group_of_its_weight() -> None:
    backbone = BACKBONES["digits_resnet"]
    net = make(backbone)
    plain = known(net, backbone)
    found, phase = adapted(net, backbone, Lora(targets="layer4", lr=0.5))
    assert [stage for stage, _ in found.stages] == [stage for stage, _ in plain.stages]
    layer4 = dict(found.stages)["layer4"]
    assert set(layer4) - set(dict(plain.stages)["layer4"]) == set(found.adapters)
    assert {"layer4.0.conv1.weight_lora_a", "layer4.0.conv1.weight_lora_b"} <= set(layer4)
    assert found.names == tuple(row.name for row in phase.rows)
    rates = {row.name: row.lr for row in phase.rows}
    assert all(rates[name] == 0.5 for name in found.adapters) and rates["fc.weight"] == 1
    assert sum(rate > 0 for rate in rates.values()) == len(found.adapters) + 2


def test_while_the_head_is_zero_gradients_are_zero_but_there() -> None:
    backbone = BACKBONES["digits_resnet"]
    net, images = make(backbone), torch.randn(4, 3, 32, 32)
    for parameter in net.fc.parameters():  # type: ignore[operator, union-attr]
        parameter.data.zero_()
    found, phase = adapted(net, backbone, Lora(lr=1))
    trace = []
    for count in range(3):
        before = state(net)
        steps(net, phase, images, 1)
        check_read(net.named_parameters(), found.adapters)
        moved = {n for n, tensor in state(net).items() if not torch.equal(tensor, before[n])}
        trace.append({n.rpartition("_lora_")[2] for n in moved if "_lora_" in n})
        assert "fc.weight" in moved, count
    # The head first; then B, whose gradient A lets through; then A, which B had hidden.
    assert trace == [set(), {"b"}, {"a", "b"}]


class Unread(nn.Module):
    """A layer that is there and is not used."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.used, self.unused = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.used(x).mean((2, 3)))


class Idle(Timm):
    """A backbone of the user's own with such a layer."""

    def build(self, classes: int | None = None) -> Network:
        return Network(Unread(classes or 10), ("fc",), SPEC)


def test_an_adapter_of_a_weight_that_is_never_read_is_an_error() -> None:
    net = Unread()
    own = Lora(rank=2).adapters(layout(net, ["fc"]))
    put(net, own)
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    adapters = [f for name in own["weights"] for f in factors(name)]
    with pytest.raises(ConfigError, match=r"E232: freeze\.targets: .*never reads 'unused\.weight'"):
        check_read(net.named_parameters(), adapters)
    check_read(net.named_parameters(), [f for f in adapters if f.startswith("used")])


def test_a_run_looks_at_it_in_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XFER_ALLOW", "test_lora")
    own = ["backbone._target_=test_lora.Idle", "source=none", "trainer.max_epochs=1"]
    with pytest.raises(ConfigError, match=r"E232: .*never reads 'unused\.weight'"):
        run(tmp_path / "run", *own, "freeze.rank=2", "stages=[fit]")
    run(tmp_path / "mended", *own, "freeze.rank=2", "stages=[fit]", "freeze.targets=used")


def test_a_frozen_weight_below_an_adapter_that_moves_is_found() -> None:
    backbone = BACKBONES["digits_resnet"]
    net = make(backbone)
    _, phase = adapted(net, backbone, Lora())
    still = frozen(net, phase.rows)
    before = hashes(state(net), still)
    net.layer1[0].conv1._parameters["weight"].data[0, 0, 0, 0] += 1  # type: ignore
    told = verdict(before, hashes(state(net), still))
    assert not told["proved"] and told["moved"] == ["layer1.0.conv1.weight"]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Lora(targets="layr4"), r"E232: freeze\.targets: 'layr4' .*did you mean 'layer4'"),
        (Lora(targets=r"layer4\.0\.conv9\.weight"), r"E232: .*did you mean 'layer4\.0\.conv"),
        (Lora(targets=r".*bias"), "E232: .*matches no weight of a linear layer, a convolution"),
        (Lora(targets=r"fc\.weight"), "E232: .*outside the head"),
        (Lora(targets="layer4", rank=33), r"E273: freeze\.rank: is 33, .*64 x 32.*rank=32 or less"),
        (Lora(rank=999), r"E273: freeze\.rank: is 999: .*as large as its weight"),
    ],
)
def test_what_does_not_suit_the_network_is_refused(policy: Lora, message: str) -> None:
    backbone = BACKBONES["digits_resnet"]
    found = known(make(backbone), backbone)
    with pytest.raises(ConfigError, match=message):
        policy.adapters(found)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rank", 0, r"freeze\.rank: is 0, but must be greater than or equal to 1"),
        ("alpha", 0, r"freeze\.alpha: is 0"),
        ("lr", -1, r"freeze\.lr: is -1"),
        ("targets", "layer4(", r"E242: .*is not a valid pattern"),
    ],
)
def test_a_key_out_of_range_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schema.build("freeze", {"_target_": "xfer.freeze.Lora", key: value})


def test_without_targets_an_adapter_is_smaller_than_its_weight() -> None:
    names = ("a.weight", "b.weight")
    found = Layout(names, (), (), (), (), (Matrix(names[0], 9, 9), Matrix(names[1], 8, 8)))
    assert Lora(rank=4).adapters(found)["weights"] == ["a.weight"]
    assert Lora(rank=4, targets=".*").adapters(found)["weights"] == ["a.weight", "b.weight"]
    assert Lora(rank=4, alpha=2).adapters(found)["scale"] == 0.5


def test_a_weight_that_two_layers_share_has_no_adapter() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    assert [matrix.name for matrix in matrices(net)] == ["2.weight"]


def test_a_checkpoint_whose_adapters_do_not_fit_is_refused() -> None:
    for name, rank in (("0.bias", 1), ("9.weight", 1), ("0.weight", 5), ("0.weight", 0)):
        with pytest.raises(WeightsError, match=rf"E412: {name}: .*rank {rank}"):
            put(nn.Sequential(nn.Linear(4, 4)), {"rank": rank, "scale": 1.0, "weights": [name]})


def test_under_autocast_the_sum_is_formed_in_full_precision() -> None:
    net = nn.Sequential(nn.Linear(64, 64, bias=False))
    plain = net[0].weight.detach().clone()
    put(net, {"rank": 4, "scale": 0.5, "weights": ["0.weight"]})
    awake(net)
    b, a = net[0].weight_lora_b.detach(), net[0].weight_lora_a.detach()  # type: ignore
    with torch.autocast("cpu", torch.bfloat16):
        read = net[0].weight.detach()
    assert torch.equal(read, plain + 0.5 * (b @ a)) and not torch.equal(read, plain)
    assert read.dtype == torch.float32 and torch.equal(read, merge(net)[0].weight)  # type: ignore[index]


def test_an_optimizers_memory_goes_on_by_plain_names() -> None:
    backbone = BACKBONES["digits_resnet"]
    net = make(backbone)
    plain = {name: torch.ones_like(p) for name, p in net.named_parameters()}
    found, phase = adapted(net, backbone, Lora())
    rates = {row.name: (row.lr,) for row in phase.rows}
    groups = optim.Sgd(lr=0.1).groups(net, rates)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    buffers = {name: {"momentum_buffer": tensor} for name, tensor in plain.items()}
    parameters = dict(net.named_parameters())
    continued = optimizer_restore.load(optimizer, parameters, OptimizerBuffers("sgd", buffers))
    assert continued == ("fc.weight", "fc.bias") and not set(continued) & set(found.adapters)


def test_the_network_is_cut_before_its_first_adapter_and_nowhere_behind() -> None:
    backbone = BACKBONES["digits_resnet"]
    images = torch.randn(2, 3, 32, 32)
    net = make(backbone)
    adapted(net, backbone, Lora(targets="layer4"))
    cut = find(net, images, ["fc"])
    assert not isinstance(cut, Refusal) and cut.modules == ("layer4",)
    assert Whole(net, images).refutes(cut) is None
    early = make(backbone)
    adapted(early, backbone, Lora(targets=r"layer3\.0\.conv1\.weight"))
    reason = Whole(early, images).refutes(cut)
    assert reason is not None and "depends on what trains" in reason
    first = make(backbone)
    adapted(first, backbone, Lora(targets=r"conv1\.weight"))
    refused = find(first, images, ["fc"])
    assert isinstance(refused, Refusal) and "before the first layer that trains" in refused.reason


DIGITS = ["experiment=digits_sgd", "freeze=lora", "optim=adamw", "optim.lr=0.01", "freeze.lr=1"]


def run(folder: Path, *more: str) -> Path:
    """A run of the digits in this process."""
    return api.run(overrides=[*DIGITS, f"run.dir={folder}", *more]).folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XFER_CACHE", str(folder.parent / "cache"))
        return run(
            folder,
            "trainer.max_epochs=5",
            "stages=[fit,evaluate,export]",
            "export=[onnx,safetensors]",
        )


def test_adapters_are_worth_their_name_on_real_digits(trained: Path) -> None:
    """The head alone comes to 0.8715 on these images."""
    result, plan = read_json(trained / "result.json"), read_json(trained / "plan.json")
    assert result["scores"]["val"]["acc"] == result["best"]["value"] > 0.93
    groups = {row["name"]: row["group"] for row in plan["parameters"]}
    assert groups["conv1.weight"] == "backbone" and groups["conv1.weight_lora_a"] == "adapter"
    shares = plan["params"]
    assert shares["frozen"] == 91_216 and shares["trainable"] < 0.2 * shares["frozen"]


def test_the_finished_checkpoint_and_the_exports_know_of_no_adapter(trained: Path) -> None:
    best = read_snapshot(trained / "checkpoints" / "best.ckpt")
    last = read_snapshot(trained / "checkpoints" / "last.ckpt")
    assert best.frozen is None and best.card.adapters == {}
    assert "adapters" not in best.card.to_plain()
    assert last.card.adapters["rank"] == 8 and "conv1.weight_lora_a" in last.state
    plain = make(BACKBONES["digits_resnet"]).state_dict()
    files = load_file(trained / "export" / "model.safetensors")
    assert set(best.state) == set(plain) == set(files)
    assert all(torch.equal(files[name], best.state[name]) for name in plain)
    with safe_open(trained / "export" / "model.safetensors", "pt") as opened:
        assert "adapters" not in str(opened.metadata())


def test_the_proof_is_over_the_weights_below_the_adapters(trained: Path) -> None:
    proof = read_json(trained / "freeze_proof.json")
    source = read_snapshot(SHIPPED).state
    assert proof["proved"] and set(proof["hashes"]) == {n for n in source if n[:3] != "fc."}
    for name in ("conv1.weight", "layer4.0.conv2.weight"):
        own = tensor_hashes([(name, source[name])])[name]
        assert proof["hashes"][name] == {"before": own, "after": own}
        best = read_snapshot(trained / "checkpoints" / "best.ckpt").state
        assert not torch.equal(best[name], source[name])


def test_a_network_that_was_not_fitted_is_exported_without_adapters(
    trained: Path, tmp_path: Path
) -> None:
    source = ["source=run", f"source.path={trained}", "head=keep"]
    # The 8-bit file is calibrated on training images, so that the plan has all that a fit needs.
    # What rounding costs it is not the matter: two images of 179 would be more than is allowed.
    export = ["stages=[export]", "export=[safetensors,int8]", "export.max_drop=1"]
    own = run(tmp_path / "run", *source, *export)
    files = load_file(own / "export" / "model.safetensors")
    assert files.keys() == load_file(trained / "export" / "model.safetensors").keys()


def test_features_before_the_first_adapter_train_bit_for_bit_as_images(tmp_path: Path) -> None:
    fit = ["freeze.targets=layer4", "augment=standard", "trainer.max_epochs=2", "stages=[fit]"]
    fit += ["data.digits=[5,6]", "data.workers=0"]
    exact = ["features=require", "features.views=max"]
    plain, kept = run(tmp_path / "plain", *fit), run(tmp_path / "kept", *fit, *exact)
    told = read_json(kept / "result.json")["features"]
    assert told["cached"] and told["exact"] and told["cut"] == ["layer4"]
    ours, theirs = (read_snapshot(f / "checkpoints" / "best.ckpt").state for f in (kept, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # The rank is no fact of what is before the first adapter.
    again = run(tmp_path / "again", *fit, *exact, "freeze.rank=2")
    assert read_json(again / "result.json")["features"]["hit"]


def test_required_features_are_refused_where_the_first_layer_is_adapted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"E259: .*before the first layer that trains"):
        run(tmp_path / "run", "features=require", "stages=[fit]", "trainer.max_epochs=1")


OPTIONS = [
    *(o for o in runs.OPTIONS if not o.startswith(("freeze=", "optim.", "trainer.max"))),
    *("freeze=lora", "optim.lr=0.05", "trainer.accumulate=2", "trainer.max_epochs=2"),
]


def unmerged(file: Path) -> nn.Module:
    """The network of a file as training had it, with its adapters in place."""
    snapshot = read_snapshot(file)
    parts, weights = pieces(snapshot.card, schema.build)
    net = from_weights(parts, weights())
    fill(net, snapshot.state)
    return net.eval()


def test_a_killed_run_opens_merged_and_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an average, accumulated gradients, random augmentation and dropout."""
    monkeypatch.setattr(runs, "OPTIONS", OPTIONS)
    (tmp_path / "whole").mkdir()
    finish(start(tmp_path / "whole"))
    killed = start(tmp_path, "checkpoint.resume=auto")
    wait_for(lambda: in_an_epoch(tmp_path, 12), killed)
    kill(killed)
    files = only_run(tmp_path) / "checkpoints"
    shutil.copytree(files, tmp_path / "torn")
    images = torch.randn(3, 3, 32, 32)
    for file in sorted((tmp_path / "torn").iterdir()):
        assert read_snapshot(file).frozen is not None
        net, card = open_checkpoint(file, schema.build)
        assert not any("_lora_" in name for name in net.state_dict()) and card.adapters == {}
        with torch.no_grad():
            assert torch.equal(net(images), unmerged(file)(images)), file.name
    finish(start(tmp_path, "checkpoint.resume=auto"))
    assert_same(only_run(tmp_path), only_run(tmp_path / "whole"))


def test_a_run_that_ended_after_its_checkpoint_was_merged_does_not_merge_again(
    trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "status.json").write_text('{"state": "running"}')
    again = ["trainer.max_epochs=5", f"checkpoint.resume={tmp_path / 'run'}", "stages=[fit]"]
    api.run(overrides=[*DIGITS, *again])
    ours, theirs = (
        read_snapshot(f / "checkpoints" / "best.ckpt") for f in (tmp_path / "run", trained)
    )
    assert ours.state.keys() == theirs.state.keys() and ours.frozen is None
    assert all(torch.equal(ours.state[name], theirs.state[name]) for name in theirs.state)


def test_a_file_of_an_interrupted_run_does_not_open_on_other_weights(
    trained: Path, tmp_path: Path
) -> None:
    last = read_snapshot(trained / "checkpoints" / "last.ckpt")
    write_snapshot(tmp_path / "a.ckpt", Snapshot(last.card, last.state, {}, "0" * 64))
    with pytest.raises(WeightsError, match="source weights have changed"):
        open_checkpoint(tmp_path / "a.ckpt", schema.build)
