"""An optimizer goes on where another program's stopped, step for step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.optimizer import _optimizers_to_device
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from xfer.core.errors import ConfigError, WeightsError
from xfer.core.torch_file import load_tensors
from xfer.models.network import fill
from xfer.training.optim import AdamW, Options, Sgd, TimmOptim, TorchOptim
from xfer.training.optimizer_restore import load
from xfer.weights.content import OptimizerBuffers
from xfer.weights.optimizer_state import TorchState, trainable

Make = Callable[[nn.Module], torch.optim.Optimizer]
Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over threads would differ in their last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(seed: int, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: list[Batch]) -> None:
    for images, labels in steps:
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimizer.step()


def ours(net: nn.Module, spec: Any) -> torch.optim.Optimizer:
    multiples = {n: (float(p.requires_grad),) for n, p in net.named_parameters()}
    optimizer: torch.optim.Optimizer = spec.build(spec.groups(net, multiples))
    return optimizer


def parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    return dict(net.named_parameters())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())


def split(net: nn.Module, decay: float, vectors_first: bool) -> list[dict[str, Any]]:
    """As timm and many others make them."""
    vectors = {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    matrices = {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": decay}
    return [vectors, matrices] if vectors_first else [matrices, vectors]


def torch_case(name: str, **args: Any) -> tuple[Make, Options]:
    kind = getattr(torch.optim, name)
    spec = TorchOptim(name, lr=0.01, weight_decay=0.05, decay="all", args=args)
    return lambda net: kind(net.parameters(), lr=0.01, weight_decay=0.05, **args), spec


o, wd = torch.optim, 0.05
CASES: dict[str, tuple[Make, Options]] = {
    "SGD": (
        lambda net: o.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=wd),
        Sgd(lr=0.05, momentum=0.9, weight_decay=wd, decay="all"),
    ),
    "AdamW": (
        lambda net: o.AdamW(net.parameters(), lr=0.01, weight_decay=wd),
        AdamW(lr=0.01, weight_decay=wd, decay="all"),
    ),
    "SGD with torch's names": (
        lambda net: o.SGD(net.named_parameters(), lr=0.05, momentum=0.9, nesterov=True),
        Sgd(lr=0.05, momentum=0.9, nesterov=True),
    ),
    "AdamW, vectors first and not decayed": (
        lambda net: o.AdamW(split(net, wd, True), lr=0.01),
        AdamW(lr=0.01, weight_decay=wd),
    ),
    "SGD, vectors last and not decayed": (
        lambda net: o.SGD(split(net, wd, False), lr=0.05, momentum=0.9),
        Sgd(lr=0.05, momentum=0.9, weight_decay=wd),
    ),
    "timm's AdamW": (
        lambda net: create_optimizer_v2(net, opt="adamw", lr=0.01, weight_decay=wd),
        AdamW(lr=0.01, weight_decay=wd),
    ),
    "AdamW, fused": torch_case("AdamW", fused=True),
    "AdamW, foreach": torch_case("AdamW", foreach=True),
    "SGD, fused": torch_case("SGD", momentum=0.9, fused=True),
    "Adam, amsgrad": torch_case("Adam", amsgrad=True),
    "NAdam": torch_case("NAdam"),
}


def stopped(make: Make, path: Path) -> nn.Module:
    """Trains three steps, saves, and gives the network after three more."""
    net = network(0)
    optimizer = make(net)
    train(net, optimizer, batches(6)[:3])
    torch.save({"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}, path)
    train(net, optimizer, batches(6)[3:])
    return net


def gone_on(path: Path, spec: Options, with_momenta: bool) -> nn.Module:
    """The network after three more steps from what ``path`` holds."""
    content, net = load_tensors(path), network(9)
    fill(net, content["state_dict"])
    optimizer = ours(net, spec)
    if with_momenta:
        saved = TorchState(content["optimizer"]).named(trainable(content["state_dict"]))
        assert load(optimizer, parameters(net), saved) == tuple(parameters(net))
    train(net, optimizer, batches(6)[3:])
    return net


@pytest.mark.parametrize(("make", "spec"), CASES.values(), ids=CASES)
def test_the_next_steps_are_the_same_to_the_last_bit(
    make: Make, spec: Options, tmp_path: Path
) -> None:
    expected = stopped(make, tmp_path / "file.pth")
    assert same(gone_on(tmp_path / "file.pth", spec, with_momenta=True), expected)
    assert not same(gone_on(tmp_path / "file.pth", spec, with_momenta=False), expected)


class Lit(pl.LightningModule):
    """Trains ``net`` with what ``make`` gives."""

    def __init__(self, net: nn.Module, make: Make) -> None:
        super().__init__()
        self.net, self.make = net, make

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.net)


def trainer(steps: int) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


@pytest.mark.parametrize("case", ["SGD", "AdamW", "AdamW, vectors first and not decayed"])
def test_a_checkpoint_of_lightning_goes_on_in_lightning(case: str, tmp_path: Path) -> None:
    make, spec = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's hints about workers and intervals
        module, first = Lit(network(0), make), trainer(3)
        first.fit(module, DataLoader(batches(6)[:3], batch_size=None))
        first.save_checkpoint(tmp_path / "lit.ckpt")
        train(module.net, first.optimizers[0], batches(6)[3:])

        content, net = load_tensors(tmp_path / "lit.ckpt"), network(9)
        weights = content["state_dict"]
        fill(net, {name.removeprefix("net."): tensor for name, tensor in weights.items()})
        saved = TorchState(content["optimizer_states"][0]).named(trainable(weights))
        assert all(name.startswith("net.") for name in saved.buffers)
        renamed = {n.removeprefix("net."): b for n, b in saved.buffers.items()}

        def made(net: nn.Module) -> torch.optim.Optimizer:
            optimizer = ours(net, spec)
            load(optimizer, parameters(net), OptimizerBuffers(saved.algorithm, renamed))
            return optimizer

        trainer(3).fit(Lit(net, made), DataLoader(batches(6)[3:], batch_size=None))
    assert same(net, module.net)


def test_mindspores_momentum_spares_gamma_and_beta_alone() -> None:
    """v = mu v + (g + wd p), p = p - lr v, as nn.Momentum of MindSpore does by default."""
    lr, mu = 0.05, 0.9
    net, reference = network(0), network(0)
    generator = torch.Generator().manual_seed(2)
    memory = {n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in net.named_parameters()}
    spec = Sgd(lr=lr, momentum=mu, weight_decay=wd, decay="no_norms")
    optimizer = ours(net, spec)
    load(
        optimizer,
        parameters(net),
        OptimizerBuffers("sgd", {name: {"momentum_buffer": v} for name, v in memory.items()}),
    )
    spared = {"1.weight", "1.bias", "4.weight", "4.bias"}
    for batch in batches(3):
        train(net, optimizer, [batch])
        reference.zero_grad()
        cross_entropy(reference(batch[0]), batch[1]).backward()
        with torch.no_grad():
            for name, p in reference.named_parameters():
                decayed = p.grad if name in spared else p.grad + wd * p
                memory[name] = mu * memory[name] + decayed
                p -= lr * memory[name]
    for name, tensor in reference.state_dict().items():
        assert (net.state_dict()[name] - tensor).abs().max() <= 2e-7, name
    everything = network(0)
    train(everything, ours(everything, Sgd(lr=lr, weight_decay=wd, decay="all")), batches(3))
    assert (everything[1].weight - reference[1].weight).abs().max() > 1e-3


def filled(net: nn.Module, make: Make) -> OptimizerBuffers:
    """The optimizer state of ``net`` after one step of ``make``."""
    optimizer = make(net)
    train(net, optimizer, batches(1))
    return TorchState(optimizer.state_dict()).named(trainable(net.state_dict()))


def without_head(saved: OptimizerBuffers) -> OptimizerBuffers:
    kept = {n: b for n, b in saved.buffers.items() if not n.startswith("8.")}
    return OptimizerBuffers(saved.algorithm, kept)


def test_a_new_head_starts_fresh_and_the_file_is_not_shared() -> None:
    saved = without_head(filled(network(0), CASES["SGD"][0]))
    before = {n: b["momentum_buffer"].clone() for n, b in saved.buffers.items()}
    net = network(9, classes=5)
    optimizer = ours(net, Sgd(lr=0.05))
    continued = load(optimizer, parameters(net), saved)
    assert not {"8.weight", "8.bias"} & set(continued) and len(continued) == 8
    named = parameters(net)
    assert {n for n in named if named[n] in optimizer.state} == set(continued)
    train(net, optimizer, batches(2))
    assert {n for n in named if named[n] in optimizer.state} == set(named)
    assert all(torch.equal(b["momentum_buffer"], before[n]) for n, b in saved.buffers.items())


def test_fresh_and_continued_parameters_count_their_own_steps() -> None:
    saved = without_head(filled(network(0), CASES["AdamW"][0]))
    net = network(9, classes=5)
    optimizer = ours(net, AdamW(lr=0.05))
    load(optimizer, parameters(net), saved)
    train(net, optimizer, batches(1))
    steps = {n: float(optimizer.state[p]["step"]) for n, p in net.named_parameters()}
    assert steps == {n: 1.0 if n.startswith("8.") else 2.0 for n in steps}


def test_frozen_parameters_stay_out_of_the_state() -> None:
    net = network(9)
    net[0].requires_grad_(False)
    optimizer = ours(net, Sgd(lr=0.05))
    continued = load(optimizer, parameters(net), filled(network(0), CASES["SGD"][0]))
    assert len(continued) == 8
    assert not any(p in optimizer.state for p in net[0].parameters())


@pytest.mark.parametrize("args", [{}, {"fused": True}, {"foreach": True}])
def test_the_state_is_what_the_optimizer_would_have_made_itself(args: dict[str, Any]) -> None:
    make, spec = torch_case("AdamW", **args)
    net = network(9).to(memory_format=torch.channels_last)
    made = make(net)
    train(net, made, batches(1))
    saved = filled(network(0), CASES["AdamW"][0])
    optimizer = ours(net, spec)
    load(optimizer, parameters(net), saved)
    for name, parameter in net.named_parameters():
        state, like = optimizer.state[parameter], made.state[parameter]
        assert list(state) == list(like)
        for key, tensor in state.items():
            facts = (tensor.shape, tensor.dtype, tensor.device, tensor.stride())
            assert facts == (like[key].shape, like[key].dtype, like[key].device, like[key].stride())
            assert not tensor.requires_grad and type(tensor) is torch.Tensor
            assert torch.equal(tensor, saved.buffers[name][key])


def test_half_and_double_precision_are_read_into_single() -> None:
    saved = filled(network(0), CASES["AdamW"][0])
    for dtype in (torch.float16, torch.float64):
        other = {
            n: {k: b if k == "step" else b.to(dtype) for k, b in held.items()}
            for n, held in saved.buffers.items()
        }
        net = network(9)
        optimizer = ours(net, AdamW(lr=0.01))
        load(optimizer, parameters(net), OptimizerBuffers("adam", other))
        assert {t.dtype for s in optimizer.state.values() for t in s.values()} == {torch.float32}


def test_lightning_moves_the_buffers_and_leaves_the_step() -> None:
    net = network(9)
    optimizer = ours(net, AdamW(lr=0.01))
    load(optimizer, parameters(net), filled(network(0), CASES["AdamW"][0]))
    _optimizers_to_device([optimizer], torch.device("meta"))
    for state in optimizer.state.values():
        kinds = {key: tensor.device.type for key, tensor in state.items()}
        assert kinds == {"step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_nothing_but_the_state_of_the_optimizer_is_touched() -> None:
    net = network(9)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    optimizer = ours(net, AdamW(lr=0.01))
    settings = [{**g, "params": list(g["params"])} for g in optimizer.param_groups]
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    load(optimizer, parameters(net), filled(network(0), CASES["AdamW"][0]))
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert [len(g["params"]) for g in optimizer.param_groups] == [
        len(g["params"]) for g in settings
    ]
    assert {g["lr"] for g in optimizer.param_groups} == {0.005}
    assert {float(s["step"]) for s in optimizer.state.values()} == {1.0}


@pytest.mark.parametrize(
    ("file", "spec", "message", "fix"),
    [
        (
            "SGD",
            AdamW(lr=0.01),
            r"state of sgd \(momentum_buffer\), but AdamW as configured keeps exp_avg, exp_avg_sq",
            "type optim=sgd",
        ),
        (
            "AdamW",
            Sgd(lr=0.01),
            r"state of adam \(exp_avg, exp_avg_sq, step\), but SGD as configured keeps moment",
            "type optim=adamw, or source.optimizer=ignore",
        ),
        ("SGD", Sgd(lr=0.01, momentum=0.0), "SGD as configured keeps nothing", "momentum=0.9"),
        ("Adam, amsgrad", AdamW(lr=0.01), r"max_exp_avg_sq, step\), but AdamW", "amsgrad: true"),
        ("NAdam", AdamW(lr=0.01), r"mu_product, step\), but AdamW", "optim.name=NAdam"),
        ("AdamW", TorchOptim("NAdam", lr=0.01), "but NAdam as configured", "optim=adamw"),
        ("SGD", TimmOptim("lion", lr=0.01), "but Lion as configured keeps exp_avg", "optim=sgd"),
    ],
)
def test_the_state_of_another_algorithm_is_refused(
    file: str, spec: Options, message: str, fix: str
) -> None:
    saved, net = filled(network(0), CASES[file][0]), network(9)
    optimizer = ours(net, spec)
    with pytest.raises(WeightsError, match=message) as caught:
        load(optimizer, parameters(net), saved)
    assert caught.value.exit == 4 and fix in caught.value.fix
    assert not optimizer.state


@pytest.mark.parametrize("spec", [TimmOptim("lamb", lr=0.01), TorchOptim("Adafactor", lr=0.01)])
def test_an_optimizer_that_keeps_more_than_buffers_is_refused(spec: Options) -> None:
    net = network(9)
    with pytest.raises(ConfigError, match=r"optim: \w+ cannot continue from a file"):
        load(
            ours(net, spec),
            parameters(net),
            filled(network(0), CASES["AdamW"][0]),
        )


def changed(name: str, tensor: torch.Tensor) -> OptimizerBuffers:
    saved = filled(network(0), CASES["SGD"][0])
    return OptimizerBuffers("sgd", {**saved.buffers, name: {"momentum_buffer": tensor}})


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            changed("8.weight", torch.ones(5, 8)),
            r"'momentum_buffer' of '8\.weight' is \[5, 8\], but must be \[3, 8\]",
        ),
        (changed("8.weight", torch.tensor(1.0)), r"is \[\], but must be \[3, 8\]"),
        (changed("0.bias", torch.full((8,), torch.nan)), r"of '0\.bias' is not finite as"),
        (
            changed("0.bias", torch.full((8,), 1e300, dtype=torch.float64)),
            r"of '0\.bias' is not finite as torch\.float32",
        ),
        (changed("fc.weight", torch.ones(5, 8)), "'fc.weight', which the network does not have"),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused_and_nothing_loaded(
    saved: OptimizerBuffers, message: str
) -> None:
    net = network(9)
    optimizer = ours(net, Sgd(lr=0.01))
    with pytest.raises(WeightsError, match=message):
        load(optimizer, parameters(net), saved)
    assert not optimizer.state


def test_a_state_that_nothing_can_use_is_refused() -> None:
    net = network(9)
    net.requires_grad_(False)
    net[8].requires_grad_(True)
    saved = without_head(filled(network(0), CASES["SGD"][0]))
    with pytest.raises(WeightsError, match="nothing that trains has state in the file"):
        load(ours(net, Sgd(lr=0.01)), parameters(net), saved)
