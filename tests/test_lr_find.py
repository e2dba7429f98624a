"""The range test: it proposes a rate, keeps the multiples, and leaves the run as it was."""

import json

import pytest
import torch

import xfer
from xfer.config import compose_specs
from xfer.errors import ConfigError, DivergedError
from xfer.freeze import hashes
from xfer.lr_find import _longest_fall, _read, lr_find
from xfer.model import Classifier
from xfer.plan import make_plan


def planned(*options):
    return make_plan(compose_specs(["experiment=digits_sgd", "stages=[lr_find]", *options]))


def test_the_valley_lies_two_thirds_down_the_longest_fall():
    rates = [10.0**i for i in range(-12, 18)]
    losses = [1.0] * 12 + [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1] + [0.5] * 9
    found = _read(rates, losses)
    assert losses[rates.index(found["suggested"])] == 0.5
    assert 0.1 < losses[rates.index(found["steepest"])] < 1.0


def test_the_longest_fall_may_have_bumps_in_it():
    assert _longest_fall([5.0, 4.0, 4.5, 3.0, 3.5, 2.0, 9.0]) == (0, 5)


def test_a_loss_that_never_falls_is_an_error():
    with pytest.raises(DivergedError, match="no learning rate"):
        _read([1.0] * 30, [1.0 + i for i in range(30)])


def test_the_proposed_rate_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = xfer.run("digits_sgd", ["stages=[lr_find]"]).folder
    found = json.loads((run / "lr_find.json").read_text())
    assert 1e-4 < found["suggested"] < 1 and found["suggested"] in found["rates"]
    assert (run / "figures" / "lr_find.png").stat().st_size > 5000
    fit = ["stages=[fit]", f"optim.lr={found['suggested']}", "trainer.max_epochs=3"]
    assert xfer.run("digits_sgd", fit).facts["best"]["value"] > 0.6


def test_groups_keep_their_multiples_and_frozen_stays_frozen(monkeypatch):
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    lr_find(planned("freeze=last_stage", "freeze.lr=0.25"))
    assert len(seen[0]) > 1
    for rates in seen[:50]:
        assert {round(rate / max(rates), 6) for rate in rates} == {0.25, 1.0}


@pytest.mark.parametrize(
    "options", [["freeze=head_only"], ["freeze=last_stage"], ["freeze=lp_ft"]], ids=lambda o: o[0]
)
def test_the_climb_moves_nothing_that_the_first_phase_freezes(options, monkeypatch):
    seen = []

    class Seen(Classifier):
        def __init__(self, net, plan):
            super().__init__(net, plan)
            state = net.state_dict()
            seen.append((self, hashes(state, state)))

    monkeypatch.setattr("xfer.lr_find.Classifier", Seen)
    lr_find(planned(*options))
    ((module, before),) = seen
    after = hashes(module.net.state_dict(), before)
    frozen = module.frozen_in(0)
    assert {name for name in before if before[name] != after[name]} == set(before) - frozen
    assert {"bn1.weight", "bn1.running_mean", "bn1.num_batches_tracked"} <= frozen


def test_the_same_climb_twice_is_the_same():
    assert lr_find(planned()) == lr_find(planned())


def test_it_needs_data_and_no_checkpoint():
    with pytest.raises(ConfigError, match="makes its own checkpoint"):
        planned("checkpoint.path=some.ckpt")
