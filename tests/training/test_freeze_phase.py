"""Phases of a fit: entered in time, proved, and found again by a run that was killed."""

import json

import pytest
from runs import assert_same, finish, in_an_epoch, kill, only_run, rows, start, wait_for

import xfer
from xfer.core.errors import ConfigError, XferError
from xfer.core.torch_file import load_tensors
from xfer.training.callbacks.timeline import Timeline

SHORT = ["data.workers=0", "stages=[fit]", "data.digits=[5,6]"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(*options):
    folder = xfer.run("digits_sgd", [*SHORT, *options]).folder
    return folder, json.loads((folder / "freeze_proof.json").read_text())


def weights(file):
    return load_tensors(file)["state_dict"]


def changed(a, b):
    """The stages whose tensors differ."""
    return {name.split(".")[0] for name in a if not a[name].equal(b[name])}


def test_the_proof_holds_a_hash_of_every_frozen_tensor_before_and_after():
    run, proof = fit("trainer.max_epochs=1")
    state = weights(run / "checkpoints/best.ckpt")
    assert proof["proved"] and proof["moved"] == []
    assert set(proof["hashes"]) == set(state) - {"fc.weight", "fc.bias"}
    assert all(h["before"] == h["after"] for h in proof["hashes"].values())
    assert "bn1.running_mean" in proof["hashes"]
    assert json.loads((run / "result.json").read_text())["freeze"]["proved"] is True


def test_a_frozen_tensor_that_moves_fails_the_run(monkeypatch):
    # What holds statistics still is taken away: the batches move them.
    monkeypatch.setattr("xfer.freeze.hold", lambda *_: None)
    with pytest.raises(XferError, match=r"frozen tensor moved.*bn1\.num_batches_tracked"):
        fit("trainer.max_epochs=1")
    (run,) = (p.parent for p in (run for run in only_runs().glob("*/freeze_proof.json")))
    proof = json.loads((run / "freeze_proof.json").read_text())
    assert proof["proved"] is False and "bn1.running_mean" in proof["moved"]
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(
    "options",
    [["trainer.max_epochs=1"], ["freeze=gradual", "freeze.every=1", "trainer.max_epochs=6"]],
    ids=["at the end", "between phases"],
)
def test_what_is_opened_during_a_phase_fails_the_audit_behind_it(options, monkeypatch):
    whole = Timeline.on_train_epoch_end

    def opened(self, trainer, module):
        # No optimizer has it, so that it does not move and no hash tells.
        if not trainer.current_epoch:
            module.net.conv1.weight.requires_grad_(True)
        whole(self, trainer, module)

    monkeypatch.setattr(Timeline, "on_train_epoch_end", opened)
    with pytest.raises(XferError, match=r"'conv1\.weight' has a gradient in phase"):
        fit(*options, "augment=none")
    (proof,) = only_runs().glob("*/freeze_proof.json")
    found = json.loads(proof.read_text())
    assert found["proved"] and len(found["phases"]) == 1


def only_runs():
    from pathlib import Path

    return Path("outputs/digits_sgd")


def test_gradual_trains_one_stage_more_each_phase():
    run, proof = fit(
        *("freeze=gradual", "freeze.every=1", "trainer.max_epochs=6", "augment=none"),
        *("checkpoint.every_n_epochs=1", "checkpoint.keep=0", "freeze.lr=1", "optim.lr=0.05"),
    )
    plan = json.loads((run / "plan.json").read_text())
    assert [phase["start"] for phase in plan["phases"]] == [0, 1, 2, 3, 4, 5]
    first, second, third = (
        weights(run / f"checkpoints/checkpoint_epoch{n}.ckpt") for n in (1, 2, 3)
    )
    assert changed(first, second) == {"net"}
    moved = [n for n in first if n.startswith("net.") and not first[n].equal(second[n])]
    assert {n.split(".")[1] for n in moved} == {"layer4", "fc"}
    moved = [n for n in second if n.startswith("net.") and not second[n].equal(third[n])]
    assert {n.split(".")[1] for n in moved} == {"layer3", "layer4", "fc"}
    assert [phase["from_epoch"] for phase in proof["phases"]] == [1, 2, 3, 4, 5, 6]
    frozen = [len(phase["hashes"]) for phase in proof["phases"]]
    assert frozen[0] > frozen[1] > frozen[2] and proof["proved"]


def test_the_rate_of_a_new_phase_holds_from_its_first_step():
    run, _ = fit(
        *("freeze=lp_ft", "freeze.probe_epochs=1", "trainer.max_epochs=2", "freeze.head_lr=0.125"),
        *("schedule=constant", "optim.lr=0.08"),
    )
    assert [float(row["lr"]) for row in rows(run)] == [0.08, 0.01]


def test_a_phase_waits_for_the_metric():
    run, proof = fit(
        *("freeze=lp_ft", "freeze.probe_epochs=null", "freeze.patience=2"),
        *("trainer.max_epochs=8", "optim.lr=1e-60"),
    )
    # In float32 this rate is none: no epoch is better than the first, the probe ends two later.
    accuracies = [float(row["val_acc"]) for row in rows(run)]
    assert max(accuracies[1:3]) <= accuracies[0]
    assert [phase["from_epoch"] for phase in proof["phases"]] == [1, 4]


def test_early_stopping_waits_for_the_last_phase_and_counts_from_its_start():
    run, proof = fit(
        *("freeze=lp_ft", "freeze.probe_epochs=4", "trainer.patience=2"),
        *("trainer.max_epochs=12", "optim.lr=1e-60"),
    )
    # At a rate of none it gets no better after its first epoch, for longer than the patience.
    accuracies = [float(row["val_acc"]) for row in rows(run)]
    assert max(accuracies[1:4]) <= accuracies[0]
    assert [phase["from_epoch"] for phase in proof["phases"]] == [1, 5]
    best = accuracies.index(max(accuracies)) + 1
    assert len(accuracies) == max(best, 4) + 2 < 12


def test_a_phase_behind_the_last_epoch_is_refused():
    with pytest.raises(ConfigError, match="would start at epoch 5"):
        fit("freeze=lp_ft", "freeze.probe_epochs=5", "trainer.max_epochs=3")


PHASED = ["freeze=gradual", "freeze.every=1", "trainer.max_epochs=6", "features=never"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder, *PHASED))
    return only_run(folder)


# A run whose phases depend on its own scores is killed in two of them below.
@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_killed_inside_or_between_phases_ends_as_the_whole_one(whole, tmp_path, epoch):
    process = start(tmp_path, *PHASED, "checkpoint.resume=auto")
    wait_for(lambda: in_an_epoch(tmp_path, 23 * (epoch - 1)), process)
    kill(process)
    finish(start(tmp_path, *PHASED, "checkpoint.resume=auto"))
    run = only_run(tmp_path)
    assert_same(run, whole)
    proofs = [json.loads((r / "freeze_proof.json").read_text()) for r in (run, whole)]
    assert proofs[0] == proofs[1]
    ours, theirs = (json.loads((r / "result.json").read_text())["freeze"] for r in (run, whole))
    assert ours == theirs and len(ours["groups"]) == 6


KEPT = ["features=require", "features.views=max"]
RESUMED = {
    "patience": [
        *("freeze=lp_ft", "freeze.probe_epochs=null", "freeze.patience=1", "features=never"),
        *("trainer.max_epochs=6", "optim.lr=0.5", "trainer.ema_decay=0"),
    ],
    "lp_ft on features": ["freeze=lp_ft", "freeze.probe_epochs=2", "trainer.max_epochs=4", *KEPT],
    "gradual on features": ["freeze=gradual", "freeze.every=1", "trainer.max_epochs=6", *KEPT],
}


@pytest.mark.parametrize(
    "name",
    [
        "patience",
        pytest.param("lp_ft on features", marks=pytest.mark.slow),
        pytest.param("gradual on features", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_in_two_of_its_phases_ends_as_the_whole_one(name, tmp_path):
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    finish(start(tmp_path / "whole", *RESUMED[name], XFER_CACHE=str(tmp_path / "cache")))
    whole = only_run(tmp_path / "whole")
    options = [*RESUMED[name], "checkpoint.resume=auto"]
    later = proof_of(whole)["phases"][1]["from_epoch"]
    for epoch in (1, later):
        process = start(tmp_path / "killed", *options)
        wait_for(lambda e=epoch: in_an_epoch(tmp_path / "killed", 23 * (e - 1)), process)
        kill(process)
    finish(start(tmp_path / "killed", *options))
    run = only_run(tmp_path / "killed")
    assert_same(run, whole)
    assert proof_of(run) == proof_of(whole) and proof_of(run)["proved"]
    ours, theirs = (json.loads((r / "result.json").read_text()) for r in (run, whole))
    assert ours["freeze"] == theirs["freeze"]
    assert ours["features"]["cached"] is theirs["features"]["cached"] is (KEPT[0] in options)


def proof_of(run):
    return json.loads((run / "freeze_proof.json").read_text())


def test_the_plan_has_the_groups_that_the_optimizer_then_has():
    run, _ = fit(
        *("freeze=lp_ft", "freeze.probe_epochs=1", "trainer.max_epochs=2", "freeze.head_lr=0.125"),
        *("schedule=constant", "optim=adamw", "optim.weight_decay=0.05"),
    )
    planned = json.loads((run / "plan.json").read_text())["optimizer"]
    found = json.loads((run / "result.json").read_text())["freeze"]["groups"]
    keys = ("lr", "weight_decay", "tensors", "parameters")
    kept = [[{key: group[key] for key in keys} for group in row["groups"]] for row in found]
    assert [row["phase"] for row in planned] == ["linear probe", "fine-tune"]
    assert [row["groups"] for row in planned] == kept
    assert {group["weight_decay"] for group in planned[0]["groups"]} == {0.0, 0.05}
    assert {group["lr"] for group in planned[0]["groups"]} == {0.0, found[0]["groups"][-1]["lr"]}
