"""The proof that frozen is frozen, and the audit of the optimizer, each with what must fail."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from xfer.core.errors import XferError
from xfer.freeze import ParameterRow, Phase, apply, audit, ever, frozen, hashes, verdict


def phases(*columns: dict[str, float]) -> list[Phase]:
    """Phases of a network of three layers, whose multiples are given by layer."""
    return [
        Phase(
            tuple(
                ParameterRow(f"{layer}.{kind}", layer == "2", lr)
                for layer, lr in column.items()
                for kind in ("weight", "bias")
            ),
            i,
            None,
            f"phase {i + 1}",
        )
        for i, column in enumerate(columns)
    ]


TWO = phases({"0": 0.0, "1": 0.0, "2": 1.0}, {"0": 0.0, "1": 0.1, "2": 1.0})


def network(at: int = 0) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    apply(net, TWO[at].rows)
    return net


def optimizer(net: nn.Module, *groups: tuple[str, float, float]) -> torch.optim.Optimizer:
    """Groups of layers, each with learning rate and weight decay."""
    return torch.optim.SGD(
        [
            {
                "params": [p for n, p in net.named_parameters() if n[0] in layers],
                "lr": lr,
                "weight_decay": decay,
            }
            for layers, lr, decay in groups
        ],
        lr=1.0,
    )


def test_an_audit_tells_every_group() -> None:
    net = network()
    made = optimizer(net, ("2", 0.5, 0.01), ("1", 0.05, 0.0))
    assert audit(made, net.named_parameters(), TWO, 0) == [
        {
            "lr": 0.5,
            "weight_decay": 0.01,
            "tensors": 2,
            "parameters": 10,
            "names": ["2.weight", "2.bias"],
        },
        {
            "lr": 0.05,
            "weight_decay": 0.0,
            "tensors": 2,
            "parameters": 8,
            "names": ["1.weight", "1.bias"],
        },
    ]
    apply(net, TWO[1].rows)
    assert len(audit(made, net.named_parameters(), TWO, 1)) == 2


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("2", 1, 0), ("1", 1, 0), ("0", 1, 0)], r"'0\.weight' never trains and is in"),
        ([("2", 1, 0)], r"'1\.weight' trains and is in 0 optimizer groups"),
        ([("12", 1, 0)], "mixes learning-rate multiples"),
    ],
)
def test_an_audit_refuses_a_wrong_group(
    groups: list[tuple[str, float, float]], message: str
) -> None:
    net = network()
    with pytest.raises(XferError, match=message):
        audit(optimizer(net, *groups), net.named_parameters(), TWO, 0)


def test_an_audit_refuses_a_parameter_in_two_groups_or_of_no_network() -> None:
    net = network()
    made = optimizer(net, ("2", 1, 0), ("1", 1, 0))
    made.param_groups.append({**made.param_groups[0]})
    with pytest.raises(XferError, match=r"'2\.weight' trains and is in 2 optimizer groups"):
        audit(made, net.named_parameters(), TWO, 0)
    made.param_groups[2] = {**made.param_groups[0], "params": [nn.Parameter(torch.zeros(1))]}
    with pytest.raises(XferError, match="'a parameter of no network' never trains"):
        audit(made, net.named_parameters(), TWO, 0)


@pytest.mark.parametrize(("at", "told"), [(0, "has no gradient"), (1, "has a gradient")])
def test_an_audit_refuses_gradients_of_another_phase(at: int, told: str) -> None:
    net = network(at)
    made = optimizer(net, ("2", 1, 0), ("1", 1, 0))
    with pytest.raises(XferError, match=rf"'1\.weight' {told} in phase 'phase {2 - at}'"):
        audit(made, net.named_parameters(), TWO, 1 - at)


def test_multiples_over_the_phases_by_name() -> None:
    assert ever(TWO)["1.bias"] == (0.0, 0.1)
    assert ever(TWO)["0.bias"] == (0.0, 0.0)


def proof(net: nn.Module, **moved: Any) -> dict[str, Any]:
    """Hash, put other tensors in the place of some, hash again."""
    state = {n: t.clone() for n, t in net.state_dict().items()}
    before = hashes(state, frozen(net, TWO[0].rows))
    state.update({name.replace("__", "."): value for name, value in moved.items()})
    after = hashes({n: t for n, t in state.items() if t is not None}, before)
    return verdict(before, after)


def test_what_did_not_move_is_proved() -> None:
    found = proof(network())
    assert found["proved"] and found["moved"] == [] and found["tensors"] == 7
    assert found["sha256"]["before"] == found["sha256"]["after"]
    assert set(found["hashes"]) == {"0.weight", "0.bias"} | {
        f"1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert all(h["before"] == h["after"] for h in found["hashes"].values())
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0__weight", torch.zeros(4, 4).index_fill(0, torch.tensor([3]), 1e-45)),
        ("1__num_batches_tracked", torch.tensor(1)),
        ("1__num_batches_tracked", torch.tensor(0, dtype=torch.int32)),
        ("1__running_mean", torch.zeros(2, 2)),
        ("1__running_mean", -torch.zeros(4)),
        ("0__weight", None),
    ],
)
def test_the_least_move_of_a_frozen_tensor_fails_the_proof(
    name: str, value: torch.Tensor | None
) -> None:
    net = network()
    net[0].weight.data.zero_()
    found = proof(net, **{name: value})
    assert not found["proved"] and found["moved"] == [name.replace("__", ".")]
    assert found["sha256"]["before"] != found["sha256"]["after"]


def test_what_trains_may_move() -> None:
    assert proof(network(), **{"2__weight": torch.ones(2, 4)})["proved"]


def test_a_frozen_batch_norm_left_in_training_mode_is_caught() -> None:
    """Somebody forgets ``hold``: no optimizer touches the layer, and yet it moves."""
    net = network()
    names = frozen(net, TWO[0].rows)
    before = hashes(net.state_dict(), names)
    net.train()(torch.randn(8, 4))
    found = verdict(before, hashes(net.state_dict(), names))
    assert found["moved"] == ["1.num_batches_tracked", "1.running_mean", "1.running_var"]


def test_hashes_read_any_dtype_and_layout() -> None:
    state = {
        "half": torch.ones(3, dtype=torch.bfloat16),
        "last": torch.ones(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "none": torch.ones(0),
        "flag": torch.tensor(True),
    }
    found = hashes(state, state)
    assert hashes({**state, "last": state["last"].contiguous()}, state) == found
    assert len(set(found.values())) == 4
