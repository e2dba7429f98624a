"""Every freeze policy on architectures of different families, and the stages they speak of."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from xfer.config import schema
from xfer.config.help import config_dir
from xfer.core.errors import ConfigError
from xfer.core.protocols import Backbone
from xfer.freeze import (
    Discriminative,
    FirstN,
    Gradual,
    LastStage,
    LayerDecay,
    Layout,
    LpFt,
    Phase,
    Policy,
    UpTo,
    ever,
    layout,
    stages,
)
from xfer.models.adapters import put
from xfer.models.backbone import Timm, Torchvision

EPOCHS = 24
NETS: dict[str, Backbone] = {
    "resnet": Torchvision("resnet18"),
    "mobilenet": Torchvision("mobilenet_v3_small"),
    "efficientnet": Torchvision("efficientnet_b0"),
    "convnext": Timm("convnext_atto"),
    "vit": Timm("vit_tiny_patch16_224"),
    "swin": Timm("swin_tiny_patch4_window7_224"),
    "squeezenet": Torchvision("squeezenet1_0"),
    "googlenet": Torchvision("googlenet"),
}
# What each calls its first stage, the one that its name gives an example for, and its last.
NAMED = {
    "resnet": (5, "conv1", "layer2", "layer4"),
    "mobilenet": (14, "features.0", "features.3", "classifier.0"),
    "efficientnet": (9, "features.0", "features.3", "features.8"),
    "convnext": (5, "stem", "stages.2", "stages.3"),
    "vit": (13, "stem", "blocks.0", "blocks.11"),
    "swin": (5, "patch_embed", "layers.1", "layers.3"),
    "squeezenet": (9, "features.0", "features.3", "features.12"),
    "googlenet": (12, "conv1", "inception4a", "inception5b"),
}
OPEN = {"up_to": {"stage": ""}, "first_n": {"n": 2}, "rules": {"rules": [{"match": ".*", "lr": 1}]}}
OPTIONS = sorted(file.stem for file in (Path(config_dir()) / "freeze").glob("*.yaml"))
# What the network does not have.
REFUSED = {("bn_only", "squeezenet")}


@cache
def known(name: str, option: str = "") -> Layout:
    """What a policy is told of a network; with ``lora`` once that has its adapters."""
    with torch.device("meta"):
        network = NETS[name].build(2)
        found = layout(network.module, network.heads)
        own = policy(option).adapters(found) if option == "lora" else {}
        put(network.module, own)
    names = [name for name, _ in network.module.named_parameters()]
    return found.adapted(own["weights"], names) if own else found


def policy(option: str, **given: Any) -> Policy:
    node = yaml.safe_load((Path(config_dir()) / "freeze" / f"{option}.yaml").read_text())
    built = schema.build("freeze", node | given)
    assert isinstance(built, Policy)
    return built


def shipped(option: str, name: str) -> tuple[Phase, ...]:
    """The phases of an option as it is shipped, its open keys filled for the network."""
    given = OPEN.get(option, {})
    if option == "up_to":
        given = {"stage": NAMED[name][2]}
    return policy(option, **given).phases(known(name, option), EPOCHS)


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_outside_the_head_is_in_one_stage_of_the_architectures_own(
    name: str,
) -> None:
    found, (count, first, example, last) = known(name), NAMED[name]
    names = [stage for stage, _ in found.stages]
    assert (len(names), names[0], names[-1]) == (count, first, last)
    assert example in names and len(set(names)) == count
    inside = [n for _, own in found.stages for n in own]
    assert len(inside) == len(set(inside)) and all(own for _, own in found.stages)
    assert set(found.names) - set(inside) == {n for n in found.names if found.in_head(n)} != set()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("option", OPTIONS)
def test_the_policy_gives_every_parameter_a_multiple_in_every_phase(option: str, name: str) -> None:
    if (option, name) in REFUSED:
        with pytest.raises(ConfigError, match="the network has no norms"):
            shipped(option, name)
        return
    phases = shipped(option, name)
    assert phases[0].start == 0
    for phase in phases:
        assert tuple(row.name for row in phase.rows) == known(name, option).names
        head = [row.lr for row in phase.rows if row.head]
        assert min(head) == max(head) > 0
    assert len({phase.name for phase in phases}) == len(phases)


def trained(option: str, name: str) -> set[str]:
    """Names outside the head that ever train."""
    found = ever(shipped(option, name))
    return {n for n, rates in found.items() if any(rates) and not known(name).in_head(n)}


def behind(name: str, cut: int) -> set[str]:
    return {n for _, own in known(name).stages[cut:] for n in own}


@pytest.mark.parametrize("name", NETS)
def test_a_policy_trains_what_its_name_says(name: str) -> None:
    everything = behind(name, 0)
    for option in ("none", "slow_backbone", "layer_decay", "discriminative", "gradual", "lp_ft_20"):
        assert trained(option, name) == everything, option
    assert trained("lp_ft", name) == everything - set(known(name).batch_norms)
    assert trained("head_only", name) == set()
    assert trained("last_stage", name) == behind(name, -1)
    assert trained("first_n", name) == behind(name, 2)
    names = [stage for stage, _ in known(name).stages]
    assert trained("up_to", name) == behind(name, names.index(NAMED[name][2]) + 1)
    adapters = set(known(name, "lora").adapters)
    assert trained("lora", name) == adapters and not adapters & everything
    assert trained("bias_only", name) == {n for n in everything if n.endswith("bias")}
    if name != "squeezenet":
        assert trained("bn_only", name) == set(known(name).norms) - {
            n for n in known(name).names if known(name).in_head(n)
        }


def test_normalisation_layers_are_those_of_any_kind() -> None:
    kinds = {name: (len(known(name).norms), len(known(name).batch_norms)) for name in NETS}
    assert kinds["resnet"] == (40, 40) and kinds["convnext"] == (34, 0)
    assert kinds["squeezenet"] == (0, 0)


def by_stage(given: Policy, name: str = "resnet", epochs: int = EPOCHS) -> list[list[float]]:
    """Multiples of every stage, then of the head, phase by phase."""
    found = known(name)
    head = next(n for n in found.names if found.in_head(n))
    wanted = [*(own[-1] for _, own in found.stages), head]
    return [
        [{row.name: row.lr for row in phase.rows}[n] for n in wanted]
        for phase in given.phases(found, epochs)
    ]


def test_layer_decay_multiplies_by_the_distance_from_the_head() -> None:
    assert by_stage(LayerDecay(decay=0.5)) == [[1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]]


def test_discriminative_rates_rise_by_one_factor() -> None:
    (rates,) = by_stage(Discriminative(lowest=1e-5))
    assert rates == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])


def test_the_last_stages_train_at_their_multiple() -> None:
    assert by_stage(LastStage(stages=2, lr=0.5)) == [[0, 0, 0, 0.5, 0.5, 1]]
    assert by_stage(LastStage(stages=5)) == [[0.01] * 5 + [1]]


def test_the_first_stages_are_frozen() -> None:
    assert by_stage(FirstN(n=1, lr=0.5)) == [[0, 0.5, 0.5, 0.5, 0.5, 1]]
    assert by_stage(UpTo(stage="layer4")) == [[0, 0, 0, 0, 0, 1]]


def test_gradual_adds_a_stage_every_few_epochs() -> None:
    given = Gradual(every=3, lr=0.1)
    phases = given.phases(known("resnet"), 16)
    names = ["head alone", "layer4", "layer3", "layer2", "layer1", "conv1"]
    assert [p.name for p in phases] == names
    assert [p.start for p in phases] == [0, 3, 6, 9, 12, 15]
    assert by_stage(given) == [[0.0] * (5 - i) + [0.1] * i + [1] for i in range(6)]


def test_a_linear_probe_ends_after_its_epochs_or_without_progress_or_half_way() -> None:
    for given, start, patience in (
        (LpFt(probe_epochs=7), 7, None),
        (LpFt(patience=3), None, 3),
        (LpFt(), EPOCHS // 2, None),
    ):
        probe, tune = given.phases(known("resnet"), EPOCHS)
        assert (probe.name, probe.start) == ("linear probe", 0)
        assert (tune.name, tune.start, tune.patience) == ("fine-tune", start, patience)
    tuned = by_stage(LpFt(backbone_lr=0.01, head_lr=0.1))
    assert tuned == [[0, 0, 0, 0, 0, 1], [0.01, 0.01, 0.01, 0.01, 0.01, 0.1]]


@pytest.mark.parametrize(
    ("given", "epochs", "message"),
    [
        (UpTo(stage="layer5"), 9, r"E239: freeze\.stage: .*no stage 'layer5'.*did you mean 'layer"),
        (FirstN(n=6), 9, r"E239: freeze\.n: is 6, but .* 5 stages: conv1, layer1.*freeze\.n=5"),
        (LastStage(stages=6), 9, r"E239: freeze\.stages: is 6"),
        (Gradual(every=2), 10, r"E238: .*'conv1' would start at epoch 10.*max_epochs=11 or more"),
        (LpFt(probe_epochs=9), 9, r"E238: .*'fine-tune' would start at epoch 9"),
        (LpFt(), 1, r"E238: .*max_epochs=2 or more"),
    ],
)
def test_what_does_not_suit_the_network_or_the_run_is_refused(
    given: Policy, epochs: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        given.phases(known("resnet"), epochs)


def test_a_linear_probe_has_one_end() -> None:
    with pytest.raises(ConfigError, match=r"E236: .*exactly one of probe_epochs and patience"):
        LpFt(probe_epochs=1, patience=1)


@pytest.mark.parametrize("option", ["head_only", "last_stage", "gradual"])
def test_frozen_batch_norms_that_train_do_so_in_every_phase(option: str) -> None:
    found = known("resnet")
    phases = policy(option, batch_norm="train").phases(found, EPOCHS)
    plain = policy(option).phases(found, EPOCHS)
    for phase, without in zip(phases, plain, strict=True):
        for row, other in zip(phase.rows, without.rows, strict=True):
            opened = other.frozen and row.name in found.batch_norms
            assert row.lr == (1 if opened else other.lr)


@pytest.mark.parametrize("key", ["batch_norm=moving", "lowest=0", "lowest=1.5", "lr=1"])
def test_a_key_out_of_range_is_refused(key: str) -> None:
    name, _, value = key.partition("=")
    with pytest.raises(ConfigError, match=f"freeze.{name}"):
        policy("discriminative", **{name: yaml.safe_load(value)})


class Odd(nn.Module):
    """A module of one's own: a parameter of its own before and behind, and a plain trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))
        self.trunk = nn.ModuleDict(
            {
                "a": nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
                "ln": nn.LayerNorm(2),
                "b": nn.Linear(2, 2),
            }
        )
        self.norm = nn.LayerNorm(2)
        self.top = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))


def test_a_module_of_ones_own_has_its_children_as_stages() -> None:
    with torch.device("meta"):
        net = Odd()
    found = {name: " ".join(own) for name, own in stages(net, ["top.2"])}
    assert list(found) == ["trunk.a", "trunk.b", "top.0"]
    assert found["trunk.a"] == (
        "token trunk.a.0.weight trunk.a.0.bias trunk.a.1.weight trunk.a.1.bias "
        "trunk.ln.weight trunk.ln.bias"
    )
    assert found["trunk.b"] == "trunk.b.weight trunk.b.bias norm.weight norm.bias"
    assert found["top.0"] == "top.0.weight top.0.bias"


def test_a_network_of_timm_that_knows_no_coarse_stages_has_its_children() -> None:
    with torch.device("meta"):
        network = Timm("rdnet_tiny").build()
    names = [name for name, _ in stages(network.module, network.heads)]
    assert names[0] == "stem" and {"dense_stages.0", "dense_stages.6"} <= set(names)


def test_a_classifier_alone_has_no_stage() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    assert stages(net, ["1"]) == ()
    with pytest.raises(ConfigError, match="E239"):
        LastStage().phases(layout(net, ["1"]), 1)
    assert len(Discriminative().phases(layout(net, ["1"]), 1)[0].rows) == 2
