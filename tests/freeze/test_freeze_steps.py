"""Every freeze policy on eight families of architectures: one real step in each of its phases."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from networks import make
from torch import nn
from torch.nn import functional as F

from xfer.config import schema
from xfer.config.help import config_dir
from xfer.core.errors import ConfigError
from xfer.core.protocols import Backbone
from xfer.freeze import Layout, Policy, apply, audit, ever, frozen, hashes, hold, layout
from xfer.models.backbone import Timm, Torchvision
from xfer.training.optim import AdamW

SWIN = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}
VIT = {"depth": 3, "embed_dim": 48}
# With the stages of the whole architecture, or as many as say the same; pixels.
NETS: dict[str, tuple[Backbone, int]] = {
    "resnet": (Timm("resnet10t"), 64),
    "mobilenet": (Torchvision("mobilenet_v3_small"), 64),
    "efficientnet": (Torchvision("efficientnet_b0"), 64),
    "convnext": (Timm("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}), 64),
    "vit": (Timm("vit_tiny_patch16_224", VIT, 32), 32),
    "swin": (Timm("swin_tiny_patch4_window7_224", SWIN, 56), 56),
    "squeezenet": (Torchvision("squeezenet1_1"), 64),
    "googlenet": (Torchvision("googlenet"), 64),
}
POLICIES = (
    *("none", "head_only", "last_stage", "up_to", "first_n", "rules", "layer_decay"),
    *("discriminative", "gradual", "lp_ft", "bn_only", "bias_only"),
)
OPTIONS = AdamW(lr=1e-3, weight_decay=0.0)  # Adam's steps are as large for small gradients


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@cache
def made(family: str) -> tuple[nn.Module, Layout]:
    """A network whose every parameter has a gradient."""
    net = make(NETS[family][0])
    for name, parameter in net.named_parameters():
        if name.endswith("weight") and not parameter.any():  # the last scale of a residual block
            nn.init.ones_(parameter)
    return net, layout(net, NETS[family][0].build().heads)


def policy(option: str, known: Layout) -> Policy:
    """An option as it is shipped, its open keys filled for the network."""
    first, second = known.stages[0][0], known.stages[1][0]
    rules = [(first, 0), (second, 0.1), (".*", 1)]
    given: dict[str, dict[str, Any]] = {
        "up_to": {"stage": second},
        "first_n": {"n": 1},
        "rules": {"rules": [{"match": match, "lr": lr} for match, lr in rules]},
    }
    node = yaml.safe_load((Path(config_dir()) / "freeze" / f"{option}.yaml").read_text())
    found = schema.build("freeze", node | given.get(option, {}))
    assert isinstance(found, Policy)
    return found


# Each policy on two families and each family under three policies; all pairs are slow.
PAIRS = [
    pytest.param(option, family, marks=[] if (i + j) % 4 == 0 else pytest.mark.slow)
    for i, option in enumerate(POLICIES)
    for j, family in enumerate(NETS)
]


@pytest.mark.parametrize(("option", "family"), PAIRS)
def test_a_step_in_each_phase_moves_what_trains_and_nothing_else(option: str, family: str) -> None:
    net, known = copy.deepcopy(made(family)[0]), made(family)[1]
    chosen, size = policy(option, known), NETS[family][1]
    if option == "lp_ft":
        # Without the statistics of a batch, some layers of a random network have no gradient.
        chosen = replace(chosen, norms="train")
    if (option, family) == ("bn_only", "squeezenet"):
        with pytest.raises(ConfigError, match="the network has no norms"):
            chosen.phases(known, 24)
        return
    phases = chosen.phases(known, 24)
    optimizer = OPTIONS.build(OPTIONS.groups(net, ever(phases)))
    for i, phase in enumerate(phases):
        apply(net, phase.rows)
        for group in optimizer.param_groups:
            group["lr"] = OPTIONS.lr * group["phases"][i]
        audit(optimizer, net.named_parameters(), phases, i)
        net.zero_grad(set_to_none=True)
        hold(net.train())
        before, still = {n: t.clone() for n, t in net.state_dict().items()}, frozen(net, phase.rows)
        proof = hashes(before, still)
        images = torch.randn(4, 3, size, size)
        F.cross_entropy(net(images), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
        audit(optimizer, net.named_parameters(), phases, i)
        moved = {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
        trained = {row.name for row in phase.rows if not row.frozen}
        assert moved & {row.name for row in phase.rows} == trained, phase.name
        assert hashes(net.state_dict(), still) == proof
        assert {row.name for row in phase.rows if row.frozen} <= still
