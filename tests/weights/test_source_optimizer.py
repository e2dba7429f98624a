"""An optimizer state that counts its parameters gets their names back, or is refused."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from xfer.core.errors import WeightsError, XferError
from xfer.core.torch_file import load_tensors
from xfer.weights.content import OptimizerBuffers, Shape
from xfer.weights.optimizer_state import TorchState, trainable

Make = Callable[[nn.Module], torch.optim.Optimizer]


class Small(nn.Module):
    """Convolutions with normalisation, a token of three dimensions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.bn2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return self.head(x.mean((2, 3)) + self.token[0])


def stepped(net: nn.Module, make: Make) -> dict[str, Any]:
    """The state of an optimizer after one step on random gradients."""
    generator = torch.Generator().manual_seed(0)
    optimizer = make(net)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return optimizer.state_dict()


def shapes(net: nn.Module) -> dict[str, Shape]:
    return {name: tuple(p.shape) for name, p in net.named_parameters()}


def gradients_by_name(net: nn.Module, found: OptimizerBuffers) -> dict[str, bool]:
    """After one step of SGD the momentum is the gradient: whether each is its own parameter's."""
    own = dict(net.named_parameters())
    return {n: torch.equal(b["momentum_buffer"], own[n].grad) for n, b in found.buffers.items()}


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def split(net: nn.Module, vectors_first: bool, token: bool) -> list[dict[str, Any]]:
    """Two groups: vectors, and in timm's vision transformers the token; and the rest."""
    spared = [p for n, p in net.named_parameters() if p.ndim <= 1 or (token and n == "token")]
    rest = [p for p in net.parameters() if not any(p is s for s in spared)]
    groups = [{"params": spared}, {"params": rest}]
    return groups if vectors_first else groups[::-1]


GROUPINGS: dict[str, Make] = {
    "the model's order": lambda net: sgd(net.parameters()),
    "torch's names": lambda net: sgd(list(net.named_parameters())[::-1]),
    "vectors first": lambda net: sgd(split(net, True, token=False)),
    "vectors last": lambda net: sgd(split(net, False, token=False)),
    "timm's for transformers": lambda net: sgd(split(net, True, token=True)),
    "one group a parameter": lambda net: sgd([{"params": [p]} for p in net.parameters()]),
    "head and backbone": lambda net: sgd(
        [
            {"params": net.head.parameters()},
            {"params": [p for n, p in net.named_parameters() if not n.startswith("head")]},
        ]
    ),
    "an empty group": lambda net: sgd([{"params": []}, {"params": net.parameters()}]),
}


@pytest.mark.parametrize("make", GROUPINGS.values(), ids=GROUPINGS)
def test_every_buffer_gets_the_name_of_its_parameter(make: Make) -> None:
    net = Small()
    found = TorchState(stepped(net, make)).named(shapes(net))
    assert found.algorithm == "sgd"
    assert gradients_by_name(net, found) == dict.fromkeys(shapes(net), True)


def test_timms_own_groups_get_their_names() -> None:
    from timm.optim import param_groups_weight_decay

    def make(net: nn.Module) -> torch.optim.Optimizer:
        groups = param_groups_weight_decay(net, 0.1, no_weight_decay_list=["token"])
        assert [len(group["params"]) for group in groups] == [8, 3]
        return sgd([{"params": group["params"]} for group in groups])

    net = Small()
    found = TorchState(stepped(net, make)).named(shapes(net))
    assert gradients_by_name(net, found) == dict.fromkeys(shapes(net), True)


@pytest.mark.parametrize("known", ["all", "what trains", "what trains, in groups of one"])
def test_frozen_parameters_have_no_state(known: str) -> None:
    net = Small()
    frozen = {"token", "conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias"}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)

    def make(net: nn.Module) -> torch.optim.Optimizer:
        held = [p for p in net.parameters() if p.requires_grad or known == "all"]
        return sgd([{"params": [p]} for p in held] if "one" in known else held)

    found = TorchState(stepped(net, make)).named(shapes(net))
    trains = {name: True for name in shapes(net) if name not in frozen}
    assert gradients_by_name(net, found) == trains


@pytest.mark.parametrize(
    ("make", "algorithm", "buffers"),
    [
        (lambda p: torch.optim.Adam(p), "adam", {"exp_avg", "exp_avg_sq", "step"}),
        (lambda p: torch.optim.AdamW(p), "adam", {"exp_avg", "exp_avg_sq", "step"}),
        (
            lambda p: torch.optim.AdamW(p, amsgrad=True),
            "adam",
            {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"},
        ),
        (lambda p: torch.optim.NAdam(p), "adam", {"exp_avg", "exp_avg_sq", "mu_product", "step"}),
    ],
)
def test_the_algorithm_is_told_from_the_buffers(
    make: Callable[[Any], torch.optim.Optimizer], algorithm: str, buffers: set[str]
) -> None:
    net = Small()
    found = TorchState(stepped(net, lambda n: make(n.parameters()))).named(shapes(net))
    assert found.algorithm == algorithm
    for name, held in found.buffers.items():
        assert set(held) == buffers
        assert (held["step"].shape, held["step"].dtype) == ((), torch.float32)
        assert held.get("exp_avg", torch.zeros(shapes(net)[name])).shape == shapes(net)[name]


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "Adamax"])
def test_the_state_of_another_optimizer_is_refused(name: str) -> None:
    net = Small()
    stored = stepped(net, lambda n: getattr(torch.optim, name)(n.parameters()))
    with pytest.raises(WeightsError, match="neither SGD nor Adam keeps") as caught:
        TorchState(stored).named(shapes(net))
    assert caught.value.number == 424


def test_steps_that_are_plain_numbers_become_tensors() -> None:
    net = Small()
    stored = stepped(net, lambda n: torch.optim.Adam(n.parameters()))
    for entry in stored["state"].values():
        entry["step"] = 7  # as torch wrote it before 1.12
    found = TorchState(stored).named(shapes(net))
    steps = {(float(held["step"]), held["step"].dtype) for held in found.buffers.values()}
    assert steps == {(7.0, torch.float32)}


def test_the_tensors_that_train_are_told_from_statistics() -> None:
    net = Small()
    net.register_buffer("index", torch.arange(3))
    assert trainable(net.state_dict()) == shapes(net)


class Twins(nn.Module):
    """Two layers of one shape, which nothing but their place tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 2, bias=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda net: sgd([*net.b.parameters(), *net.head.parameters()]),
        lambda net: sgd([{"params": [net.b.weight, net.head.weight]}, {"params": [net.a.weight]}]),
    ],
    ids=["one of two frozen", "two groups"],
)
def test_an_order_that_cannot_be_told_is_refused(make: Make) -> None:
    net = Twins()
    with pytest.raises(WeightsError, match=r"state 0 may be of a\.weight or b\.weight") as caught:
        TorchState(stepped(net, make)).named(shapes(net))
    assert caught.value.exit == 4 and "named_parameters" in caught.value.fix


def test_a_doubt_about_parameters_without_state_is_none() -> None:
    net = Twins()
    net.requires_grad_(False)
    net.head.requires_grad_(True)
    stored = stepped(
        net,
        lambda n: sgd([{"params": list(n.parameters())[:1]}, {"params": list(n.parameters())[1:]}]),
    )
    assert list(TorchState(stored).named(shapes(net)).buffers) == ["head.weight"]


def test_an_order_with_too_many_ways_is_refused_in_time() -> None:
    net = nn.ModuleList(nn.Linear(4, 4) for _ in range(100))
    groups = [{"params": list(net.parameters())[i::8]} for i in range(8)]
    with pytest.raises(WeightsError, match="too many ways"):
        TorchState(stepped(net, lambda _: sgd(groups))).named(shapes(net))


def damaged(change: Callable[[Any], Any]) -> Any:
    """The state of AdamW over ``Small``, with one thing wrong."""
    stored = copy.deepcopy(stepped(Small(), lambda n: torch.optim.AdamW(n.parameters())))
    return change(stored) or stored


def put(*path: Any) -> Callable[[Any], None]:
    """Set what the keys but the last lead to."""

    def change(stored: Any) -> None:
        *keys, last, value = path
        for key in keys:
            stored = stored[key]
        stored[last] = value

    return change


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no groups": (lambda s: {"state": s["state"]}, "has no 'param_groups'"),
    "no state": (lambda s: {"param_groups": s["param_groups"]}, "has no 'state'"),
    "a list": (lambda s: [s], "has no 'state'"),
    "groups of text": (put("param_groups", "abc"), "has no 'param_groups'"),
    "a group of text": (put("param_groups", 0, "abc"), "without the numbers"),
    "numbers of text": (put("param_groups", 0, "params", ["0"]), "without the numbers"),
    "a number that is true": (put("param_groups", 0, "params", 1, True), "without the numbers"),
    "a number twice": (put("param_groups", 0, "params", 1, 0), "in two groups"),
    "a huge number": (put("param_groups", 0, "params", 1, 10**5000), "in two groups"),
    "state of nobody": (put("state", 99, {}), "is in no group"),
    "state of a huge number": (put("state", 10**5000, {}), "is in no group"),
    "state by a name": (put("state", "conv1.weight", {}), "is in no group"),
    "state that is a list": (put("state", 1, [1]), "of parameter 1 that is not by name"),
    "state by numbers": (put("state", 1, {1: torch.ones(1)}), "not by name"),
    "a list for a buffer": (put("state", 1, "exp_avg", [1.0]), r"1\.exp_avg is a list"),
    "a number for a buffer": (put("state", 1, "exp_avg", 1.0), r"1\.exp_avg is a float"),
    "a step of text": (put("state", 1, "step", "3"), r"1\.step is a str"),
    "a huge step": (put("state", 1, "step", 10**5000), r"1\.step is a int"),
    "a true step": (put("state", 1, "step", True), r"1\.step is a bool"),
    "half a step": (put("state", 1, "step", 1.5), r"'step' of 'conv1\.weight' holds"),
    "a step below zero": (put("state", 1, "step", -1), r"'step' of 'conv1\.weight' holds"),
    "a step that is NaN": (put("state", 1, "step", float("nan")), r"'step' of 'conv1\.weight'"),
    "steps": (put("state", 1, "step", torch.ones(2)), "several shapes for parameter 1"),
    "whole numbers": (
        put("state", 1, "exp_avg", torch.ones(4, 3, 3, 3, dtype=torch.int64)),
        r"1\.exp_avg is a torch\.int64",
    ),
    "a sparse buffer": (
        put("state", 1, "exp_avg", torch.ones(4, 3, 3, 3).to_sparse()),
        r"1\.exp_avg is a torch\.float32, not a plain tensor",
    ),
    "a buffer without numbers": (
        put("state", 1, "exp_avg", torch.ones(4, 3, 3, 3, device="meta")),
        "not a plain tensor",
    ),
    "NaN": (
        put("state", 1, "exp_avg", torch.full((4, 3, 3, 3), torch.nan)),
        r"'exp_avg' of 'conv1\.weight' holds NaN",
    ),
    "a square below zero": (
        put("state", 1, "exp_avg_sq", -torch.ones(4, 3, 3, 3)),
        r"'exp_avg_sq' of 'conv1\.weight' holds",
    ),
    "two shapes": (put("state", 1, "exp_avg", torch.ones(4, 3, 3)), "several shapes"),
    "half the buffers": (lambda s: s["state"][1].pop("exp_avg"), "neither SGD nor Adam keeps"),
    "another optimizer's": (put("state", 1, {"exp_avg": torch.ones(4)}), r"keeps \(exp_avg\) and"),
    "nothing remembered": (put("state", {}), "holds no state"),
    "only None": (put("state", {0: {"momentum_buffer": None}}), "holds no state"),
    "names for some": (put("param_groups", 0, "param_names", ["token"]), "'param_names'"),
    "names that are one": (put("param_groups", 0, "param_names", ["token"] * 11), "'param_names'"),
    "names without weights": (
        put("param_groups", 0, "param_names", [f"module.{n}" for n in shapes(Small())]),
        r"has state of 'module\.token', but no such weight",
    ),
    "names in another order": (
        put("param_groups", 0, "param_names", list(shapes(Small()))[::-1]),
        r"the state of 'head\.bias' is \[1, 1, 4\], the weight \[3\]",
    ),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_damage_is_one_clear_error(change: Callable[[Any], Any], message: str) -> None:
    stored = damaged(lambda s: r if isinstance(r := change(s), dict | list) else s)
    with pytest.raises(WeightsError, match=message) as caught:
        TorchState(stored).named(shapes(Small()))
    assert caught.value.exit == 4 and "source.optimizer=ignore" in caught.value.fix
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"conv1.weight": (4, 3, 5, 5)}, r"state 1 is \[4, 3, 3, 3\], 'conv1\.weight' \[4, 3, 5"),
        ({"head.weight": (9, 4), "head.bias": (9,)}, r"state 9 is \[3, 4\], 'head\.weight' \[9, 4"),
    ],
)
def test_a_state_of_other_weights_is_refused(other: dict[str, Shape], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        TorchState(damaged(lambda s: None)).named(shapes(Small()) | other)


def test_a_state_of_more_parameters_than_weights_is_refused() -> None:
    fewer = dict(list(shapes(Small()).items())[:-2])
    with pytest.raises(WeightsError, match="it is of 11 parameters, the file holds 9"):
        TorchState(damaged(lambda s: None)).named(fewer)


class Shadowed(OrderedDict):  # type: ignore[type-arg]
    """As a pickle makes it: a dictionary with attributes in place of its methods."""

    def __init__(self, held: dict[Any, Any]) -> None:
        super().__init__(held)
        self.get = self.items = self.values = self.keys = "boom"  # type: ignore[method-assign,assignment]


def test_shadowed_methods_do_no_harm() -> None:
    stored = damaged(lambda s: None)
    found = TorchState(stored).named(shapes(Small()))
    buffer = stored["state"][1]["exp_avg"]
    buffer.detach = buffer.reshape = buffer.numel = "boom"
    entries = {index: Shadowed(entry) for index, entry in stored["state"].items()}
    groups = [Shadowed(group) for group in stored["param_groups"]]
    shadowed = Shadowed({"state": Shadowed(entries), "param_groups": groups})
    again = TorchState(shadowed).named(shapes(Small()))
    for name, held in found.buffers.items():
        assert all(torch.equal(held[key], again.buffers[name][key]) for key in held)


SMALL_SHAPES: dict[str, Shape] = {
    "a.weight": (2, 2),
    "a.bias": (2,),
    "b.weight": (2, 2),
    "b.bias": (2,),
}
tensors = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.sampled_from([(), (1,), (2,), (2, 2), (0,)]),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]),
    st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf"), 2.5]),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=2),
    tensors,
)
junk = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
sound = st.builds(torch.full, st.sampled_from([(2,), (2, 2)]), st.just(1.0))
whole = st.integers(0, 9) | st.builds(torch.tensor, st.just(2.0))
kept = st.one_of(
    st.fixed_dictionaries({"momentum_buffer": sound}),
    st.fixed_dictionaries({"exp_avg": sound, "exp_avg_sq": sound, "step": whole}),
    st.fixed_dictionaries({"square_avg": sound, "step": whole}, optional={"grad_avg": tensors}),
    st.dictionaries(st.sampled_from(["exp_avg", "step", "mu", "x"]), tensors | leaves, max_size=3),
)


@st.composite
def states(draw: st.DrawFn) -> Any:
    """Built as torch builds them, of buffers that may be anything."""
    order = draw(st.permutations(range(4)))[draw(st.integers(0, 2)) :]
    cut = draw(st.integers(0, 4))
    groups: list[dict[str, Any]] = [{"params": order[:cut]}, {"params": order[cut:]}]
    if draw(st.booleans()):
        names = draw(st.permutations([*SMALL_SHAPES, "c"]))
        groups[0]["param_names"], groups[1]["param_names"] = names[:cut], names[cut : len(order)]
    like = draw(kept)
    mixed = draw(st.booleans())
    state = {index: draw(kept) if mixed else like for index in order if draw(st.booleans())}
    return {"state": state, "param_groups": groups}


FUZZ = settings(
    max_examples=400,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@FUZZ
@given(junk, junk, junk)
def test_junk_raises_errors_for_people_only(stored: Any, state: Any, group: Any) -> None:
    refused_or_sound(stored)
    refused_or_sound({"state": state, "param_groups": [group]})
    refused_or_sound({"state": {0: state}, "param_groups": [{"params": [0], "param_names": group}]})
    refused_or_sound({"state": {0: {"step": state}}, "param_groups": [{"params": [0, group]}]})


@FUZZ
@given(states())
def test_what_looks_like_a_state_raises_errors_for_people_only(stored: Any) -> None:
    refused_or_sound(stored)


@FUZZ
@given(
    st.permutations(range(4)),
    st.integers(0, 4),
    st.integers(0, 3),
    st.sampled_from(["exp_avg", "exp_avg_sq", "step"]),
    tensors | leaves,
)
def test_one_wrong_value_raises_errors_for_people_only(
    order: list[int], cut: int, index: int, key: str, value: Any
) -> None:
    names = list(SMALL_SHAPES)
    state = {
        place: {"exp_avg": torch.ones(s), "exp_avg_sq": torch.ones(s), "step": torch.tensor(3.0)}
        for place, s in enumerate(SMALL_SHAPES[names[i]] for i in order)
    }
    state[index][key] = value
    split = [{"params": list(range(cut))}, {"params": list(range(cut, 4))}]
    refused_or_sound({"state": state, "param_groups": split})


def refused_or_sound(stored: Any) -> None:
    """What is not refused fits, is finite and is not negative where it may not be."""
    try:
        found = TorchState(stored).named(SMALL_SHAPES)
    except XferError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert found.buffers
    for name, held in found.buffers.items():
        for key, tensor in held.items():
            assert tuple(tensor.shape) in ((), SMALL_SHAPES[name]) and tensor.isfinite().all()
            assert key not in ("step", "exp_avg_sq") or not (tensor < 0).any()


def test_a_file_on_disk_gives_the_same(tmp_path: Path) -> None:
    net = Small()
    stored = stepped(net, GROUPINGS["timm's for transformers"])
    torch.save({"state_dict": net.state_dict(), "optimizer": stored}, tmp_path / "file.pth")
    content = load_tensors(tmp_path / "file.pth")
    found = TorchState(content["optimizer"]).named(trainable(content["state_dict"]))
    assert gradients_by_name(net, found) == dict.fromkeys(shapes(net), True)
