from __future__ import annotations

import torch
from torch import nn

from xfer.training.ema import Ema


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def move(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
        net[1].num_batches_tracked.add_(1)


def test_the_average_follows_the_weights_by_the_decay_of_its_age() -> None:
    model = net()
    names = ["0.weight", "1.num_batches_tracked"]
    ema, expected = Ema(model, names, 0.5), model[0].weight.clone()
    for step in range(1, 30):
        move(model)
        ema.update(model, step)
        share = min(0.5, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * model[0].weight
        torch.testing.assert_close(ema.shadow["0.weight"], expected.detach())
    assert list(ema.shadow) == names and ema.shadow["1.num_batches_tracked"] == 29


def test_a_step_counts_once_however_many_batches_it_took() -> None:
    model = net()
    ema = Ema(model, ["0.weight"], 0.9)
    move(model)
    ema.update(model, 1)
    held = ema.shadow["0.weight"].clone()
    ema.update(model, 1)
    assert torch.equal(held, ema.shadow["0.weight"])


def test_an_average_that_goes_on_does_not_count_its_last_step_again() -> None:
    model = net()
    ema = Ema(model, ["0.weight"], 0.9)
    move(model)
    ema.update(model, 1)
    held = ema.shadow["0.weight"].clone()
    again = Ema(model, ["0.weight"], 0.9)
    again.load(ema.shadow, 1)
    again.update(model, 1)
    assert torch.equal(again.shadow["0.weight"], held)
    move(model)
    for one in (ema, again):
        one.update(model, 2)
    assert torch.equal(ema.shadow["0.weight"], again.shadow["0.weight"])
    assert not torch.equal(ema.shadow["0.weight"], held)


def test_swapping_twice_changes_nothing() -> None:
    model = net()
    ema = Ema(model, list(model.state_dict()), 0.9)
    move(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    average = {n: t.clone() for n, t in ema.shadow.items()}
    ema.swap(model)
    assert all(torch.equal(t, average[n]) for n, t in model.state_dict().items())
    ema.swap(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
