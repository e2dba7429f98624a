from __future__ import annotations

import pytest
import torch
from backbones import BACKBONES
from torch import nn
from torch.nn import functional as F

from xfer.core.errors import ConfigError
from xfer.core.protocols import Backbone
from xfer.freeze import (
    BatchNorm,
    Later,
    Layout,
    OrderedRules,
    Phase,
    Rule,
    apply,
    ever,
    frozen,
    hold,
    layout,
)
from xfer.models.backbone import Timm, Torchvision
from xfer.models.head import Linear
from xfer.models.network import Parts, assemble

NAMES = ["stem.weight", "layer1.0.weight", "layer1.0.bias", "layer10.0.weight", "fc.weight"]
LAYOUT = Layout(
    tuple(NAMES),
    ("fc",),
    (("stem", tuple(NAMES[:1])), ("layer1", tuple(NAMES[1:3])), ("layer10", (NAMES[3],))),
    ("layer1.0.bias",),
)
HEAD_ONLY = OrderedRules((Rule("head", 1), Rule("backbone", 0)))
NETS: dict[str, tuple[Backbone, int]] = {
    "resnet": (BACKBONES["digits_resnet"], 32),
    "mobilenetv3": (Timm("mobilenetv3_small_100", args={"drop_rate": 0.5}), 32),
    "vit": (
        Timm(
            "deit_tiny_distilled_patch16_224",
            args={"depth": 2, "pos_drop_rate": 0.5, "proj_drop_rate": 0.5, "drop_path_rate": 0.5},
            image_size=32,
        ),
        32,
    ),
    "squeezenet": (Torchvision("squeezenet1_0"), 64),
}


def table(*rules: tuple[str, float], later: tuple[Later, ...] = ()) -> dict[str, tuple[float, ...]]:
    """The multiples of the small network that ``LAYOUT`` describes, phase by phase."""
    phases = OrderedRules(tuple(Rule(*rule) for rule in rules), later).phases(LAYOUT, 9)
    assert all([row.name for row in phase.rows] == NAMES for phase in phases)
    return ever(phases)


def test_the_first_rule_that_matches_a_whole_name_wins() -> None:
    found = table(("head", 1), (r"layer1\..*weight", 0.1), (r"layer1\..*", 0.2), ("backbone", 0))
    assert found == {n: (lr,) for n, lr in zip(NAMES, [0, 0.1, 0.2, 0, 1], strict=True)}


def test_a_rule_may_name_a_stage_or_the_normalisation_layers() -> None:
    found = table(("head", 1), ("norms", 0.5), ("layer1", 0.1), ("backbone", 0))
    assert found == {n: (lr,) for n, lr in zip(NAMES, [0, 0.1, 0.5, 0, 1], strict=True)}


def test_a_normalisation_layer_of_the_head_is_the_heads() -> None:
    names = ("norm.weight", "fc.norm.weight", "fc.weight")
    known = Layout(names, ("fc",), (("norm", names[:1]),), names[:2])
    (phase,) = OrderedRules((Rule("norms", 0.1), Rule("head", 1))).phases(known, 1)
    assert [row.lr for row in phase.rows] == [0.1, 1, 1]


def test_only_the_head_is_the_head() -> None:
    known = Layout(("fc.weight", "fc2.weight", "x.fc.weight"), ("fc",), (), ())
    rows = HEAD_ONLY.phases(known, 1)[0].rows
    assert [(row.head, row.frozen) for row in rows] == [(True, False), (False, True), (False, True)]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("head", 1), ("layr1", 1), ("backbone", 0)], r"E232: freeze\.rules\[1\].*mean 'layer1'"),
        ([(".*", 1), ("head", 0.1)], r"E235: .*rules\[1\].*'head' .* an earlier rule .*rule 0"),
        ([("head", 1), (r".*\.bias", 1), ("norms", 1), ("backbone", 0)], r"E235: .*rules\[2\]"),
        ([("head", 1)], r"E233: .*no rule covers 'stem\.weight'.*backbone, lr: 0"),
        ([("head", 0), ("backbone", 0)], "E234: .*nothing to train"),
        ([("layer(", 1)], r"freeze\.rules\[0\]: .*not a valid pattern"),
        ([("(l|l)*(l*)*(l*)*(l|l)*x(y|z){9}", 1)], r"freeze\.rules\[0\]"),
        ([], "E230: .*empty"),
    ],
)
def test_a_list_that_cannot_be_meant_is_an_error_with_a_remedy(
    rules: list[tuple[str, float]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        table(*rules)


def test_words_for_what_the_network_does_not_have_are_refused() -> None:
    bare = Layout(("a.weight", "fc.weight"), ("fc",), (("a", ("a.weight",)),), ())
    rules = (Rule("head", 1), Rule("norms", 1), Rule("backbone", 0))
    with pytest.raises(ConfigError, match=r"rules\[1\]: the network has no norms"):
        OrderedRules(rules).phases(bare, 1)


def test_a_pattern_that_explodes_is_stopped() -> None:
    long = Layout((f"{'a' * 60}!", "fc.weight"), ("fc",), (), ())
    with pytest.raises(ConfigError, match=r"freeze\.rules\[0\]"):
        OrderedRules((Rule("(a|a)*b", 1), Rule(".*", 0))).phases(long, 1)


ALL = (Rule(".*", 0.5),)


def test_later_rules_make_later_phases() -> None:
    later = (Later(ALL, start=3), Later(ALL, patience=2))
    head = (("head", 1.0), ("backbone", 0.0))
    assert set(table(*head, later=later).values()) == {(1, 0.5, 0.5), (0, 0.5, 0.5)}
    phases = OrderedRules(tuple(Rule(*r) for r in head), later).phases(LAYOUT, 4)
    assert [(p.start, p.patience, p.name) for p in phases] == [
        (0, None, "phase 1"),
        (3, None, "phase 2"),
        (None, 2, "phase 3"),
    ]


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ((Later(ALL),), r"E236: freeze\.later\[0\].*exactly one of start and patience"),
        ((Later(ALL, 1, 1),), r"E236: freeze\.later\[0\]"),
        ((Later((), 1),), r"E230: freeze\.later\[0\]\.rules"),
        ((Later((Rule("head", 0), Rule("backbone", 0)), 1),), "E234: .*in phase 'phase 2'"),
        ((Later((Rule(".*", 1), Rule("x", 0)), 1),), r"E232: freeze\.later\[0\]\.rules\[1\]"),
        ((Later(ALL, 3), Later(ALL, 3)), "E237: .*'phase 3' starts at epoch 3, not after"),
        ((Later(ALL, patience=1), Later(ALL, 3)), "E237: .*'phase 3' .*patience as well"),
        ((Later(ALL, 9),), "E238: .*'phase 2' would start at epoch 9.*max_epochs=10 or more"),
        ((Later(ALL, 9), Later(ALL, patience=1)), "E238: .*'phase 2' would start at epoch 9"),
    ],
)
def test_phases_that_cannot_be_meant_are_an_error_with_a_remedy(
    later: tuple[Later, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        table(("head", 1), ("backbone", 0), later=later)


def test_a_later_phase_need_not_train_anything_new() -> None:
    head = (Rule("head", 0.1), Rule("backbone", 0))
    assert table(*((r.match, r.lr) for r in HEAD_ONLY.rules), later=(Later(head, 1),))


def ready(name: str) -> tuple[nn.Module, tuple[str, ...], int]:
    backbone, size = NETS[name]
    net = assemble(Parts(backbone, Linear(), 2), {})
    heads = backbone.build().heads
    apply(net, HEAD_ONLY.phases(layout(net, heads), 1)[0].rows)
    return net, tuple(f"{head}." for head in heads), size


@pytest.mark.parametrize("name", NETS)
def test_training_the_head_moves_nothing_else_bit_for_bit(name: str) -> None:
    net, heads, size = ready(name)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        net.train()
        hold(net)
        F.cross_entropy(net(torch.randn(4, 3, size, size)), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    moved = {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {n for n in before if n.startswith(heads)}
    assert all(p.grad is None for n, p in net.named_parameters() if not n.startswith(heads))


@pytest.mark.parametrize("name", ["resnet", "vit", "mobilenetv3"])
def test_a_held_network_gives_a_head_the_features_of_inference(name: str) -> None:
    net, heads, size = ready(name)
    seen: list[torch.Tensor] = []
    if name == "mobilenetv3":
        net.drop_rate = 0.0  # the head's own dropout, a function of the network itself
    net.get_submodule(heads[0][:-1]).register_forward_hook(lambda _, x, __: seen.append(x[0]))
    x = torch.randn(2, 3, size, size)
    net.eval()(x)
    net.train()
    hold(net)
    net(x)
    assert torch.equal(*seen)


def test_dropout_before_a_frozen_layer_is_off_and_before_the_head_is_on() -> None:
    with torch.device("meta"):
        net = Torchvision("vgg11").build().module
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith("classifier.6."))
    hold(net.train())
    assert not net.classifier[2].training and net.classifier[5].training
    squeeze, _, _ = ready("squeezenet")
    hold(squeeze.train())
    assert squeeze.classifier[0].training and not squeeze.features.training


def partly(batch_norm: BatchNorm) -> tuple[nn.Module, Phase]:
    """A ResNet whose last stage and head train, in training mode."""
    net, _, _ = ready("resnet")
    rules = (Rule("head", 1), Rule(r"layer4\..*", 0.1), Rule("backbone", 0))
    phase = OrderedRules(rules, batch_norm=batch_norm).phases(layout(net, ["fc"]), 1)[0]
    apply(net, phase.rows)
    hold(net.train(), batch_norm)
    return net, phase


def test_part_of_a_network_trains_while_its_frozen_part_keeps_its_statistics() -> None:
    net, phase = partly("eval")
    assert net.layer4[0].bn1.training and not net.layer3[0].bn1.training and not net.bn1.training
    still = frozen(net, phase.rows)
    assert {"bn1.running_mean", "layer3.0.bn1.num_batches_tracked", "conv1.weight"} <= still
    assert not {n for n in still if n.startswith(("layer4.", "fc."))}


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(
    ("batch_norm", "moves"),
    [("eval", ()), ("adapt", NORM[2:]), ("train", NORM)],
)
def test_a_batch_norm_in_the_frozen_part_does_what_the_policy_says(
    batch_norm: BatchNorm, moves: tuple[str, ...]
) -> None:
    net, phase = partly(batch_norm)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        net.train()
        hold(net, batch_norm)
        F.cross_entropy(net(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    moved = {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
    assert frozen(net, phase.rows, batch_norm) == set(before) - moved
    norms = {n.rpartition(".")[0] for n in before if n.endswith(".running_mean")}
    in_frozen = {n for n in moved if not n.startswith(("layer4.", "fc."))}
    expected = {f"{p}.{name}" for p in norms if not p.startswith("layer4.") for name in moves}
    assert in_frozen == expected


def test_dropout_of_a_frozen_block_is_off_though_its_batch_norms_train() -> None:
    net, heads, _ = ready("mobilenetv3")
    policy = OrderedRules(HEAD_ONLY.rules, batch_norm="train")
    apply(net, policy.phases(layout(net, [head[:-1] for head in heads]), 1)[0].rows)
    net.blocks[0].insert(0, nn.Dropout())
    hold(net.train(), "train")
    assert not net.blocks[0][0].training and not net.blocks.training
    assert net.blocks[0][1].bn1.training and net.blocks[0][1].bn1.weight.requires_grad


def test_batch_norms_cannot_move_where_there_are_none() -> None:
    net, heads, _ = ready("squeezenet")
    policy = OrderedRules(HEAD_ONLY.rules, batch_norm="adapt")
    with pytest.raises(ConfigError, match=r"E231: freeze\.batch_norm: .*has no BatchNorm"):
        policy.phases(layout(net, [head[:-1] for head in heads]), 1)


def test_a_wholly_trainable_network_is_held_nowhere() -> None:
    net, _, _ = ready("resnet")
    net.requires_grad_(True)
    hold(net.train())
    assert all(module.training for module in net.modules())


class Probed(nn.Module):
    """A BatchNorm without scale and shift before the head, as probes of MoCo-v3 and MAE have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
        self.layer = nn.Linear(6, 6)
        self.top = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Dropout(0.5), nn.Linear(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.top(self.layer(self.stem(x)))
        return answers


class Aside(Probed):
    """The same one, made behind the head that it is before."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Sequential(nn.Linear(6, 2))
        self.norm = nn.BatchNorm1d(6, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.top(self.norm(self.layer(self.stem(x))))
        return answers


def moved_by_training(net: nn.Module, phase: Phase, batch_norm: BatchNorm = "eval") -> set[str]:
    """Names of what three steps move."""
    apply(net, phase.rows)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        hold(net.train(), batch_norm)
        F.cross_entropy(net(torch.randn(8, 3, 2, 2)), torch.tensor([0, 1] * 4)).backward()
        optimizer.step()
    return {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}


STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize(
    ("kind", "head", "norm"), [(Probed, "top.2", "top.0"), (Aside, "top.0", "norm")]
)
@pytest.mark.parametrize(
    ("rules", "batch_norm", "moves"),
    [
        (("head",), "eval", False),
        (("head", "stem"), "eval", False),
        (("head", "layer", "stem"), "eval", True),
        (("head",), "adapt", True),
        (("head",), "train", True),
    ],
)
def test_a_norm_without_parameters_moves_only_inside_what_trains(
    kind: type[nn.Module],
    head: str,
    norm: str,
    rules: tuple[str, ...],
    batch_norm: BatchNorm,
    moves: bool,
) -> None:
    net = kind()
    trained = tuple(Rule(rule, 1) for rule in rules)
    closed = () if len(rules) == 3 else (Rule("backbone", 0),)
    known = layout(net, [head])
    phase = OrderedRules((*trained, *closed)).phases(known, 1)[0]
    moved = moved_by_training(net, phase, batch_norm)
    still, statistics = frozen(net, phase.rows, batch_norm), {f"{norm}.{n}" for n in STATISTICS}
    assert not still & moved
    assert statistics & moved == (statistics if moves else set())
    assert statistics & still == (set() if moves else statistics)
    if kind is Probed:
        assert net.get_submodule("top.1").training, "dropout goes with the head"


def test_a_norm_without_parameters_between_two_stages_that_train_moves() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 6)),
        nn.Linear(6, 6),
        nn.BatchNorm1d(6, affine=False),
        nn.Linear(6, 2),
    )
    rules = (Rule("head", 1), Rule(r"1\..*", 1), Rule("backbone", 0))
    phase = OrderedRules(rules).phases(layout(net, ["3"]), 1)[0]
    assert {f"2.{name}" for name in STATISTICS} <= moved_by_training(net, phase)
    assert frozen(net, phase.rows) == {"0.1.weight", "0.1.bias"}
