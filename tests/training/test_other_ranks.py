"""Runs that are killed and go on with other ranks: the same images in the same steps."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import labelled
import pytest
import torch
import warm
from runs import (
    assert_equal,
    assert_same,
    finish,
    in_an_epoch,
    kill,
    only_run,
    start,
    wait_for,
)

from xfer.config.hydra import compose_specs
from xfer.core.errors import RanksError
from xfer.core.files import write_json
from xfer.core.torch_file import load_tensors
from xfer.data.sampler import EpochSampler, RankShare
from xfer.plan.make import make_plan
from xfer.plan.resume import choose

SEEN = """
from hashlib import sha256
from pathlib import Path

import pytorch_lightning as pl

class Seen(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        with Path(f"seen{trainer.global_rank}").open("a") as file:
            for image in batch[0]:
                digest = sha256(image.contiguous().numpy().tobytes()).hexdigest()
                print(trainer.global_step, digest, file=file)
"""
CPU = ["trainer.accelerator=cpu", "data.batch_size=16", "features=never"]
NOTED = ["trainer.callbacks=[{_target_: seen.Seen}]", "augment=standard"]
# Nothing here depends on who else is in a part of a batch.
APART = ["freeze=head_only", "head=linear", *NOTED]
# BatchNorm that trains, and dropout: parts must be as they were.
TUNED = ["freeze=none", "head=dropout", *NOTED]


def noted(folder: Path, *options: str) -> warm.Run:
    folder.mkdir(exist_ok=True)
    (folder / "seen.py").write_text(SEEN)
    return start(folder, *CPU, *options, XFER_ALLOW="seen")


def seen(folder: Path) -> dict[int, set[str]]:
    """What the network was given in each step, by all ranks together."""
    images = defaultdict(set)
    for file in folder.glob("seen?"):
        for line in file.read_text().splitlines():
            step, digest = line.split()
            images[int(step)].add(digest)
    return images


def gone_on(folder: Path, began: list[str], *then: str, after: int = 7) -> Path:
    """A run that is killed in an epoch, and goes on with other devices."""
    process = noted(folder, *began)
    wait_for(lambda: in_an_epoch(folder, after), process)
    kill(process)
    finish(noted(folder, *began, f"checkpoint.resume={only_run(folder)}", *then))
    return only_run(folder)


def assert_close(run: Path, whole: Path) -> None:
    for name in ("best", "last"):
        ours, theirs = (load_tensors(r / f"checkpoints/{name}.ckpt") for r in (run, whole))
        assert ours["state_dict"].keys() == theirs["state_dict"].keys()
        for key, tensor in theirs["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][key], tensor, rtol=1e-4, atol=1e-5)
    ours, theirs = (content["optimizer_states"][0] for content in (ours, theirs))
    assert_equal(ours["param_groups"], theirs["param_groups"], "groups")


@pytest.mark.parametrize(("began", "now"), [(4, 2), (3, 1), (1, 2), (3, 2), (2, 3)])
def test_other_ranks_have_the_images_of_each_batch_with_their_weights(began: int, now: int) -> None:
    count, size, seed = 101, 8, 3
    whole = EpochSampler(count, size, seed, RankShare(0, began))
    batches = [sorted(key for part in parts for key in part) for parts in whole.parts()]
    share = RankShare(0, now, began)
    orders = [EpochSampler(count, size, seed, share._replace(rank=rank)) for rank in range(now)]
    given = [list(order) for order in orders]
    assert {len(order) for order in orders} == {len(batches) * share.pieces}
    for number, batch in enumerate(batches):
        here = range(number * share.pieces, (number + 1) * share.pieces)
        together = sorted(key for rank in given for i in here for key in rank[i])
        assert together == batch
        # The mean loss over the parts, each weighted, is the mean over the images.
        mean = sum(
            order.weight(i) * sum(index for _, index in rank[i]) / len(rank[i])
            for order, rank in zip(orders, given, strict=True)
            for i in here
        )
        assert mean / share.parts == pytest.approx(sum(i for _, i in batch) / len(batch))
    if share.parts == began:  # and the parts are those that each rank had
        parts = {
            order.part(i): keys
            for order, rank in zip(orders, given, strict=True)
            for i, keys in enumerate(rank)
        }
        for rank in range(began):
            own = EpochSampler(count, size, seed, RankShare(rank, began)).groups()
            assert own == [parts[number, rank] for number in range(len(batches))]


def planned(folder: Path, *words: str) -> list[str]:
    """A command, and the folder of a run of it that has begun."""
    typed = ["experiment=digits_sgd", "trainer.accelerator=cpu", *words]
    folder.mkdir()
    write_json(folder / "plan.json", make_plan(compose_specs(typed)).facts)
    return [*typed, f"checkpoint.resume={folder}"]


def resumed(typed: list[str]):
    specs = compose_specs(typed)
    earlier = choose(specs.checkpoint.resume, specs.config, Path(), None)
    assert earlier is not None
    return make_plan(replace(specs, begun=earlier.begun))


def test_a_run_that_goes_on_keeps_identity_steps_and_rate(tmp_path: Path) -> None:
    typed = planned(tmp_path / "run", "trainer.devices=4", "optim.lr=auto", "data.batch_size=16")
    before = json.loads((tmp_path / "run/plan.json").read_text())
    plan = resumed([*typed, "trainer.devices=2"])
    assert plan.facts["fingerprint"] == before["fingerprint"]
    assert plan.facts["begun"] == {"devices": 4, "nodes": 1, "strategy": "ddp"}
    assert plan.specs.optim.rate == resumed(typed).specs.optim.rate
    assert plan.facts["steps"]["total"] == before["steps"]["total"]
    # Once more, from the plan that it then has written; and back again.
    (tmp_path / "run/plan.json").write_text(json.dumps(plan.facts))
    assert resumed([*typed, "trainer.devices=1"]).facts["begun"]["devices"] == 4
    assert "begun" not in resumed(typed).facts
    # Unnamed, it is found with what it began with or goes on with, and with nothing else.
    for devices, there in ((4, True), (2, True), (1, False)):
        config = compose_specs([*typed, f"trainer.devices={devices}"]).config
        assert (choose("auto", config, tmp_path) is not None) is there


@pytest.mark.parametrize(
    ("words", "devices", "number"),
    [
        # 717 images in batches of 44: the last has 13 of them.
        (["data.batch_size=44"], 7, 676),
        (["data.folds=3", "freeze=none"], 1, 678),
    ],
)
def test_what_cannot_go_on_is_refused_with_what_can(
    words: list[str], devices: int, number: int, tmp_path: Path
) -> None:
    began = 1 if devices > 1 else 2
    typed = planned(tmp_path / "run", *words, f"trainer.devices={began}")
    with pytest.raises(RanksError) as caught:
        resumed([*typed, f"trainer.devices={devices}"])
    assert (caught.value.number, caught.value.exit) == (number, 5)
    resumed([*typed, *caught.value.fix.removeprefix("type ").split()])


def test_labels_that_are_unknown_are_counted_by_as_many_ranks(tmp_path: Path) -> None:
    rows = labelled.digits(tmp_path / "images", 40)
    labelled.write_columns(tmp_path / "all.csv", rows)
    labelled.write_columns(tmp_path / "some.csv", rows, unknown=0.2)
    for name in ("all", "some"):
        words = ["task=multilabel", "data=csv", f"data.file={tmp_path / name}.csv"]
        words += [f"data.root={tmp_path / 'images'}", "data.batch_size=4", "trainer.devices=2"]
        typed = planned(tmp_path / name, *words)
        if name == "all":
            resumed([*typed, "trainer.devices=1"])
    with pytest.raises(RanksError, match="how many of its labels are known") as caught:
        resumed([*typed, "trainer.devices=1"])
    assert caught.value.number == 677
    resumed([*typed, *caught.value.fix.removeprefix("type ").split()])


# What follows starts many processes.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("began", "now", "options"),
    [(2, 1, TUNED), (3, 1, TUNED), (1, 2, APART), (3, 2, APART), (4, 2, TUNED)],
    ids=["2 to 1", "3 to 1", "1 to 2", "3 to 2", "4 to 2"],
)
def test_images_and_weights_are_those_of_an_undisturbed_run(
    began: int, now: int, options: list[str], tmp_path: Path
) -> None:
    first = [*options, f"trainer.devices={began}", "trainer.accumulate=2", "checkpoint.keep=0"]
    finish(noted(tmp_path / "whole", *first))
    run = gone_on(tmp_path / "other", first, f"trainer.devices={now}", after=4)
    whole = only_run(tmp_path / "whole")
    assert seen(tmp_path / "other") == seen(tmp_path / "whole") != {}
    assert_close(run, whole)
    result = json.loads((run / "result.json").read_text())
    assert [row["ranks"] for row in result["ranks"]] == [began, now]


@pytest.mark.slow
def test_other_ranks_are_killed_too_and_the_first_come_back(tmp_path: Path) -> None:
    """2, 1 and 2 ranks, the first two killed in an epoch."""
    began = [*TUNED, "trainer.devices=2"]
    finish(noted(tmp_path / "whole", *began))
    other = tmp_path / "other"
    for after, devices in ((4, 2), (14, 1)):
        again = [f"checkpoint.resume={only_run(other)}"] if after > 4 else []
        process = noted(other, *began, f"trainer.devices={devices}", *again)
        wait_for(lambda step=after: in_an_epoch(other, step), process)
        kill(process)
    finish(noted(other, *began, f"checkpoint.resume={only_run(other)}"))
    run, whole = only_run(other), only_run(tmp_path / "whole")
    assert seen(other) == seen(tmp_path / "whole")
    assert_close(run, whole)
    ranks = json.loads((run / "result.json").read_text())["ranks"]
    assert [row["ranks"] for row in ranks] == [2, 1, 2]
    assert "begun" not in json.loads((run / "plan.json").read_text())


@pytest.mark.slow
def test_a_divided_network_goes_on_undivided_on_one_device(tmp_path: Path) -> None:
    began = [*TUNED, "trainer.devices=2", "trainer.strategy=fsdp", "trainer.ema_decay=0"]
    began += ["trainer.channels_last=false"]  # which has no effect on what is divided
    finish(noted(tmp_path / "whole", *began))
    alone = ["trainer.devices=1", "trainer.strategy=ddp"]
    run = gone_on(tmp_path / "other", began, *alone)
    assert seen(tmp_path / "other") == seen(tmp_path / "whole")
    assert_close(run, only_run(tmp_path / "whole"))


@pytest.mark.slow
def test_features_of_a_phase_are_those_that_the_first_ranks_computed(own_cache, tmp_path) -> None:
    """A view an epoch, computed in the parts of each batch."""
    began = ["freeze=head_only", "head=linear", "augment=standard", "trainer.devices=2"]
    began += ["features=require", "features.views=max"]
    finish(noted(tmp_path / "whole", *began))
    entries = {path.name for path in (own_cache / "features").glob("*.npy")}
    run = gone_on(tmp_path / "other", began, "trainer.devices=1")
    assert json.loads((run / "result.json").read_text())["features"]["hit"]
    assert_close(run, only_run(tmp_path / "whole"))
    assert {path.name for path in (own_cache / "features").glob("*.npy")} >= entries


@pytest.mark.slow
@pytest.mark.parametrize(("began", "now"), [(2, 1), (1, 2)])
def test_a_solved_head_is_the_same_on_any_number_of_ranks(
    began: int, now: int, tmp_path: Path
) -> None:
    """Killed while features are computed; bit for bit, its identity included."""
    typed = ["experiment=digits_freeze", "trainer.accelerator=cpu", "stages=[fit,evaluate]"]
    typed += ["data.eval_batch_size=32", f"trainer.devices={began}", "run.dir=run"]
    for name in ("whole", "other"):
        (tmp_path / name).mkdir()
    finish(warm.start(tmp_path / "whole", *typed, XFER_CACHE=str(tmp_path / "first")))
    cache = {"XFER_CACHE": str(tmp_path / "second")}
    process = warm.start(tmp_path / "other", *typed, **cache)
    features = tmp_path / "second" / "features"
    wait_for(lambda: features.is_dir() and any(features.iterdir()), process)
    kill(process)
    again = [f"trainer.devices={now}", "checkpoint.resume=auto"]
    finish(warm.start(tmp_path / "other", *typed, *again, **cache))
    assert_same(tmp_path / "other/run", tmp_path / "whole/run")
