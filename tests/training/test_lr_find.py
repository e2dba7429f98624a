"""The range test: it proposes a rate, keeps the multiples, and leaves the run as it was."""

import json
from contextlib import contextmanager

import pytest
import torch

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError, DivergedError
from xfer.freeze import hashes
from xfer.plan.make import make_plan
from xfer.training.lr_find import _read, lr_find
from xfer.training.module import Classifier


def planned(*options):
    few = ["data.digits=[5,6,7]", "data.workers=0"]
    return make_plan(compose_specs(["experiment=digits_sgd", "stages=[lr_find]", *few, *options]))


def test_a_third_of_the_rate_with_the_lowest_loss_is_proposed():
    rates = [10.0**i for i in range(-12, 18)]
    losses = [1.0] * 12 + [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1] + [0.5] * 9
    found = _read(rates, losses)
    assert losses[rates.index(found["lowest"])] == 0.1
    assert found["suggested"] == found["lowest"] / 3
    assert 0.1 < losses[rates.index(found["steepest"])] < 1.0


def test_noise_in_the_first_steps_is_not_the_lowest_loss():
    rates = [10.0**i for i in range(30)]
    found = _read(rates, [0.01, *([1.0] * 14), 0.8, 0.6, 0.4, *([0.7] * 12)])
    assert found["lowest"] == rates[17]


def test_a_loss_that_never_falls_is_an_error():
    with pytest.raises(DivergedError, match="no learning rate"):
        _read([1.0] * 30, [1.0 + i for i in range(30)])


def test_the_proposed_rate_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = xfer.run("digits_sgd", ["stages=[lr_find]"]).folder
    found = json.loads((run / "lr_find.json").read_text())
    assert 1e-4 < found["suggested"] < 1 and found["lowest"] in found["rates"]
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
    monkeypatch.setattr("xfer.training.lr_find._ON_IMAGES", (1, 60))
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
        def __init__(self, net, plan, **given):
            super().__init__(net, plan, **given)
            state = net.state_dict()
            seen.append((self, hashes(state, state)))

    monkeypatch.setattr("xfer.training.lr_find.Classifier", Seen)
    lr_find(planned(*options))
    ((module, before),) = seen
    after = hashes(module.net.state_dict(), before)
    frozen = module.frozen_in(0)
    assert {name for name in before if before[name] != after[name]} == set(before) - frozen
    assert {"bn1.weight", "bn1.running_mean", "bn1.num_batches_tracked"} <= frozen


def test_the_same_climb_twice_is_the_same():
    assert lr_find(planned()) == lr_find(planned())


def test_it_climbs_on_features_where_they_may_be_kept(monkeypatch):
    """The same steps give the same losses as on images."""
    shapes = []

    class Watched(Classifier):
        def loss_of(self, batch):
            shapes.append(batch[0].shape[1:])
            return super().loss_of(batch)

    monkeypatch.setattr("xfer.training.lr_find.Classifier", Watched)
    monkeypatch.setattr("xfer.training.lr_find._ON_IMAGES", (2, 60))
    monkeypatch.setattr("xfer.training.lr_find._ON_FEATURES", (2, 60))
    on_images = lr_find(planned("features=never"))
    assert {len(shape) for shape in shapes} == {3}
    shapes.clear()
    on_features = lr_find(planned("features=auto"))
    assert {len(shape) for shape in shapes} == {1}
    assert on_features["losses"] == pytest.approx(on_images["losses"], rel=1e-4)


def test_on_features_it_climbs_several_times(monkeypatch):
    begun = []

    class Watched(Classifier):
        def configure_optimizers(self):
            begun.append(sum(float(p.detach().abs().sum()) for p in self.net.parameters()))
            return super().configure_optimizers()

    monkeypatch.setattr("xfer.training.lr_find.Classifier", Watched)
    assert len(lr_find(planned("features=auto"))["rates"]) > 100
    assert len(begun) == 3 and len(set(begun)) == 1


def test_what_cannot_be_kept_is_climbed_on_images(monkeypatch, caplog):
    monkeypatch.setattr("xfer.training.lr_find._ON_IMAGES", (1, 60))
    with caplog.at_level("INFO", "xfer"):
        lr_find(planned("features=auto", "freeze=none"))
    assert "lr_find climbs on images: nothing frozen" in caplog.text


def test_it_shows_its_progress(monkeypatch):
    seen = []

    @contextmanager
    def line(doing, total):
        seen.append((doing, total))
        yield seen.append

    monkeypatch.setattr("xfer.training.lr_find.working", line)
    monkeypatch.setattr("xfer.training.lr_find._ON_IMAGES", (1, 40))
    lr_find(planned())
    assert seen[0] == ("lr_find", 40) and 30 < sum(seen[1:]) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["digits_sgd", "digits_finetune"])
def test_the_proposed_rate_does_as_well_as_the_shipped_one(experiment, tmp_path, monkeypatch):
    """Means over three seeds; bench/lr_find.py has the third experiment and the figures."""
    monkeypatch.chdir(tmp_path)
    own, proposed = [], []
    for seed in range(3):
        options = [f"seed={seed}", "features=auto", "data.workers=0"]
        run = xfer.run(experiment, ["stages=[lr_find]", *options]).folder
        rate = json.loads((run / "lr_find.json").read_text())["suggested"]
        fit = ["stages=[fit,evaluate]", *options]
        own.append(xfer.run(experiment, fit).facts["scores"]["val"])
        proposed.append(xfer.run(experiment, [*fit, f"optim.lr={rate}"]).facts["scores"]["val"])
    assert sum(s["acc"] for s in proposed) >= sum(s["acc"] for s in own)
    assert sum(s["loss"] for s in proposed) <= sum(s["loss"] for s in own)


def test_it_needs_data_and_no_checkpoint():
    with pytest.raises(ConfigError, match="makes its own checkpoint"):
        planned("checkpoint.path=some.ckpt")


@pytest.mark.parametrize(("digits", "flip"), [("[0,8]", 0.5), ("[5,6,7]", 0.0)])
def test_the_range_test_flips_what_the_fit_flips(digits, flip, monkeypatch):
    class Seen(Exception):
        pass

    def seen(samples, spec, augment):
        raise Seen(augment.flip)

    monkeypatch.setattr("xfer.training.lr_find.train_images", seen)
    solved = ["freeze=lp_ft", "features=auto", "trainer.head_start=solved", "augment=auto"]
    words = ["experiment=digits_sgd", "stages=[lr_find]", "data.workers=0", *solved]
    plan = make_plan(compose_specs([*words, f"data.digits={digits}"]))
    assert plan.specs.augment.flip == 0.5
    with pytest.raises(Seen) as caught:
        lr_find(plan)
    assert caught.value.args == (flip,)
