"""optim=exact on real runs: its files, its proof, what it refuses, and what starts from it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from pictures import folders
from runs import facts, table

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError, DataError, Problems
from xfer.core.torch_file import load_tensors
from xfer.export import gate
from xfer.plan import auto
from xfer.plan.make import make_plan
from xfer.plan.table import table as plan_table
from xfer.report import heat, plot

QUICK = ["stages=[fit,evaluate]"]
FEW = [*QUICK, "data.digits=[5,6]"]


def assert_same_weights(*runs: Path) -> None:
    ours, theirs = (load_tensors(r / "checkpoints/best.ckpt")["state_dict"] for r in runs)
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("solved")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        return (place / xfer.run("digits_freeze").folder).resolve()


def test_every_file_of_the_contract_is_there(solved: Path) -> None:
    names = (
        "config.yaml plan.json load_report.json freeze_proof.json metrics.csv predictions_val.csv "
        "predictions_cv.csv checkpoints/best.ckpt checkpoints/last.ckpt figures/curves.png "
        "export/model.onnx report.html result.json status.json"
    ).split()
    assert [name for name in names if not (solved / name).is_file()] == []


def test_a_row_a_strength_and_the_best_is_the_one_of_least_loss(solved: Path) -> None:
    rows, result = table(solved, "metrics.csv"), facts(solved)
    assert list(rows[0])[:8] == "epoch step train_loss val_loss val_acc lr epoch_s step_ms".split()
    losses = [float(row["cv_loss"]) for row in rows]
    best = result["best"]
    assert best["metric"] == "cv_loss"
    assert best["epoch"] == int(np.argmin(losses)) + 1
    assert best["value"] == min(losses)
    row = rows[best["epoch"] - 1]
    assert float(row["val_acc"]) == result["scores"]["val"]["acc"]
    # The rows are those of heads as they are solved; the score is that of the calibrated one.
    assert 0 < abs(float(row["val_loss"]) - result["scores"]["val"]["loss"]) < 0.05
    assert result["solved"]["l2"] == float(row["l2"])


def test_the_validation_images_chose_nothing(solved: Path) -> None:
    assert facts(solved)["scores"]["val"]["used_for_selection"] is False
    again = xfer.run("digits_sgd", ["stages=[evaluate]", f"checkpoint.path={solved}"]).folder
    assert facts(again)["scores"]["val"]["used_for_selection"] is False


def test_what_was_held_out_is_kept(solved: Path) -> None:
    rows, said = table(solved, "predictions_cv.csv"), facts(solved)["solved"]
    assert len(rows) == said["n"] == 717
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / len(rows) == said["cv_acc"]
    losses = [-np.log(float(row[f"p_{row['label']}"])) for row in rows]
    assert np.mean(losses) == pytest.approx(said["cv_loss"], rel=1e-3)


TIMED = {"result.json", "status.json", "run.log", "report.html", "report.md", "metrics.csv"}
"""Files that say when something was done, or how long it took."""


def without_times(folder: Path) -> dict[str, object]:
    result = facts(folder)
    del result["timing"]
    result["features"]["hit"] = None
    for file in result["export"]:
        file["facts"].pop("proved_at", None)
    return result


def test_the_same_command_again_leaves_the_same_files_and_computes_little(
    solved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(solved.parents[2])
    monkeypatch.setenv("XFER_CACHE", str(solved.parents[2] / "cache"))

    def computed(*_: object) -> None:
        raise AssertionError("what an earlier run has proved or drawn is made again")

    for module, name in ((gate, "_tried"), (plot, "png"), (heat, "heat_at")):
        monkeypatch.setattr(module, name, computed)
    again = xfer.run("digits_freeze").folder
    files = {path.relative_to(solved).as_posix() for path in solved.rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(again).as_posix() for path in again.rglob("*") if path.is_file()
    }
    changes = {
        name for name in files if (solved / name).read_bytes() != (again / name).read_bytes()
    }
    assert changes <= {*TIMED, "features.json", "export/parity.json"}
    assert without_times(again) == without_times(solved)
    log = (again / "run.log").read_text()
    assert log.count("; the file of an earlier run, which compared it at 2") == 2
    rows = [json.loads((run / "export/parity.json").read_text()) for run in (solved, again)]
    assert ["proved_at" in file["facts"] for run in rows for file in run] == [0, 0, 1, 1]


def test_what_is_frozen_is_proved(solved: Path) -> None:
    proof = facts(solved, "freeze_proof.json")
    assert proof["proved"] is True and proof["tensors"] > 50
    assert facts(solved)["freeze"]["proved"] is True


def test_the_plan_says_what_it_chose_and_why(solved: Path) -> None:
    rows = {row["key"]: row for row in facts(solved, "plan.json")["auto"]}
    assert rows["optim"]["value"] == "exact" and "convex" in rows["optim"]["why"]
    shown = plan_table(make_plan(compose_specs(["experiment=digits_freeze"])))
    assert "optim=exact: a linear head" in shown and "none: the head is solved exactly" in shown


def test_a_run_that_is_killed_and_begun_again_ends_as_a_whole_one(tmp_path: Path, solved) -> None:
    script = (
        "import os, sys, xfer.training.logistic as l\n"
        "minimum, count = l.Problem.minimum, [0]\n"
        "def killed(self, *given):\n"
        "    count[0] += 1\n"
        "    if count[0] == int(sys.argv[1]): os.kill(os.getpid(), 9)\n"
        "    return minimum(self, *given)\n"
        "l.Problem.minimum = killed\n"
        "import xfer\n"
        "xfer.run('digits_freeze', ['stages=[fit,evaluate]', 'checkpoint.resume=auto'])\n"
    )
    (place := tmp_path / "killed").mkdir()
    for kill, code in ((3, -9), (40, -9), (0, 0)):
        process = warm.start(place, str(kill), script=script)
        assert process.communicate() and process.returncode == code
    # To the byte of every tensor and number, with features of its own.
    (run,) = (place / "outputs" / "digits_freeze").iterdir()
    assert_same_weights(run, solved)
    for name in ("predictions_val.csv", "predictions_cv.csv"):
        assert (run / name).read_bytes() == (solved / name).read_bytes(), name
    clocks = {"epoch_s", "step_ms"}
    rows = [[{k: v for k, v in r.items() if k not in clocks} for r in table(f, "metrics.csv")]
            for f in (run, solved)]  # fmt: skip
    assert rows[0] == rows[1]


def test_a_run_that_is_interrupted_says_what_is_kept_and_the_command_that_goes_on(tmp_path):
    hook = (
        "import os, signal, xfer.training.logistic as l\n"
        "l.Problem.minimum = lambda *given: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    words = ["experiment=digits_freeze", *FEW]
    process = warm.start(tmp_path, *words, script=hook + warm.COMMAND)
    said, _ = process.communicate()
    assert process.returncode == 130, said
    (line,) = [line for line in said.splitlines() if line.startswith("stopped")]
    known, _, again = line.partition("; to go on, type xfer ")
    assert known == "stopped by SIGINT, before it had a state to save beside what is cached"
    process = warm.start(tmp_path, *again.split())
    said, _ = process.communicate()
    assert process.returncode == 0 and "solved:" in said, said
    (run,) = (tmp_path / "outputs/digits_freeze").iterdir()
    assert run.name == again.split()[1] and facts(run)["status"] == "finished"


def test_a_fit_of_steps_goes_on_from_it(solved: Path) -> None:
    options = ["source=run", f"source.path={solved}", "head=keep", "freeze=lp_ft"]
    steps = ["freeze.probe_epochs=1", "trainer.max_epochs=2", "optim.lr=0.0001"]
    run = xfer.run("digits_freeze", [*options, *steps, *QUICK]).folder
    before, after = facts(solved)["scores"]["val"], facts(run)["scores"]["val"]
    assert after["acc"] >= before["acc"] - 0.01
    assert facts(run)["solved"] is None


def test_views_are_all_trained_on_and_the_evaluation_view_is_held_out() -> None:
    run = xfer.run("digits_freeze", [*FEW, "augment=standard", "features.views=2"]).folder
    found, count = facts(run), facts(run, "plan.json")["splits"]["train"]["n"]
    assert found["features"]["views"] == 2 and found["features"]["augmented"] is True
    assert len(table(run, "predictions_cv.csv")) == count > 200
    assert found["solved"]["l2"] > 0


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (["head=mlp"], "head=linear"),
        (["head=dropout"], "head=linear"),
        (["freeze=none"], "freeze=head_only"),
        (["freeze=lp_ft"], "freeze=head_only"),
        (["freeze=lora"], "freeze=head_only"),
        (["features=never"], "features=auto"),
        (["augment=mixed"], "augment=standard"),
        (["optim.lr=0.1"], "optim.lr=auto"),
        (["trainer.max_epochs=5"], "trainer.max_epochs=auto"),
        (["schedule=cosine"], "schedule=auto"),
        (["trainer.ema_decay=0.9"], "trainer.ema_decay=auto"),
        (["checkpoint.every_n_epochs=1"], "checkpoint.every_n_epochs=0"),
        (["optim.weight_decay=0.1"], "optim.weight_decay=0"),
        (["augment=standard", "features.views=max"], "features.views=4"),
        (["freeze.batch_norm=adapt"], "freeze.batch_norm=eval"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_it_cannot_solve_is_refused_and_the_remedy_works(options, fix: str) -> None:
    typed = ["experiment=digits_freeze", "optim=exact", "stages=[]"]
    with pytest.raises((ConfigError, Problems)) as caught:
        make_plan(compose_specs([*typed, *options]))
    assert f"Fix: type {fix}, or optim=adamw" in str(caught.value)
    key = fix.split("=")[0]
    kept = [option for option in options if option.split("=")[0] != key]
    plan = make_plan(compose_specs([*typed, *kept, fix]))
    assert plan.facts["optimizer"] == []
    # The other remedy works as well, but for what no optimizer has a part in.
    adamw = ["optim=adamw" if text == "optim=exact" else text for text in typed]
    make_plan(compose_specs([*adamw, *options]))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit step by step has two epochs, where the plan would choose up to fifty."""
    monkeypatch.setitem(auto._EPOCHS, "head", (2, 2))


def test_a_network_that_does_more_behind_its_head_is_trained_step_by_step(
    monkeypatch, brief
) -> None:
    """The plan cannot know; the fit finds out, says so, and writes the plan anew."""
    from xfer.models.backbone import Timm

    build = Timm.build

    def odd(self, classes=None):
        network = build(self, classes)
        network.module.register_forward_hook(lambda *given: given[-1] ** 3)
        return network

    monkeypatch.setattr(Timm, "build", odd)
    run = xfer.run("digits_freeze", FEW).folder
    assert facts(run)["solved"] is None
    rows = {row["key"]: row for row in facts(run, "plan.json")["auto"]}
    assert rows["optim"]["value"] == "adamw" and "after its head" in rows["optim"]["why"]
    assert "trained step by step" in (run / "run.log").read_text()
    with pytest.raises(ConfigError, match=r"exact: .* Fix: type optim=adamw"):
        xfer.run("digits_freeze", [*FEW, "optim=exact"])


def test_features_that_are_no_numbers_name_the_image(monkeypatch) -> None:
    from xfer.models.backbone import Timm

    build = Timm.build

    def broken(self, classes=None):
        network = build(self, classes)
        pool = network.module.global_pool
        pool.register_forward_hook(lambda *given: given[-1] * torch.where(
            given[-1].mean(dim=1, keepdim=True) > 0.2, float("nan"), 1.0))  # fmt: skip
        return network

    monkeypatch.setattr(Timm, "build", broken)
    with pytest.raises(DataError, match="features are NaN or Inf"):
        xfer.run("digits_freeze", FEW)


def test_one_image_of_a_class_is_never_held_out_and_that_is_said(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    folders(root / "train", {"a": 9, "b": 8, "c": 1})
    folders(root / "val", {"a": 3, "b": 3, "c": 2})
    options = [f"data.root={root}", "source=none", "data.leakage=ignore", "backbone=squeezenet1_0"]
    options += ["backbone.image_size=64"]
    run = xfer.run(None, ["experiment=default", *options, *QUICK, "data.workers=0"]).folder
    assert facts(run)["solved"]["left_in"] == 1
    assert "1 image alone in a class was never held out" in (run / "run.log").read_text()


def one_image_a_class(root: Path) -> list[str]:
    folders(root, {f"{split}/{c}": 1 for split in ("train", "val") for c in "ab"})
    options = ["experiment=default", f"data.root={root}", "data.leakage=ignore", "data.workers=0"]
    return [*options, "backbone=digits_resnet", "source=digits_0_4"]


def test_one_image_a_class_is_refused_by_the_plan_and_the_remedies_train(tmp_path: Path) -> None:
    options = one_image_a_class(tmp_path)
    with pytest.raises(ConfigError, match=r"E009: .*each class has one image") as caught:
        xfer.run(None, [*options, "stages=[]", "optim=exact"])
    typed, _, _ = caught.value.fix.removeprefix("type ").rpartition(", or")
    remedies = re.split(", | or ", typed)
    assert remedies == ["head=prototype", "optim=exact optim.l2=0.1", "optim=adamw"]
    for typed in remedies:
        steps = ["trainer.max_epochs=1"] if "adamw" in typed else []
        stages = "stages=[fit,evaluate,report]" if "exact" in typed else QUICK[0]
        run = xfer.run(None, [*options, stages, *typed.split(), *steps]).folder
        assert facts(run)["scores"]["val"]["n"] == 2
        if steps:
            continue
        assert "each is alone in its class" in (run / "run.log").read_text()
        assert facts(run)["best"]["value"] is None
        assert table(run, "metrics.csv")[0]["cv_acc"] == ""
        if "exact" in typed:
            assert "as given; no training image was held out" in (run / "report.html").read_text()


def test_one_image_a_class_is_trained_step_by_step_and_the_plan_says_so(tmp_path: Path) -> None:
    options = one_image_a_class(tmp_path)
    result = xfer.run(None, [*options, *QUICK])
    assert result.plan["auto"][0]["value"] == "adamw"
    (remark,) = (line for line in result.plan["remarks"] if "step by step" in line)
    assert "each class has one image" in remark and "head=prototype" in remark
    assert facts(result.folder)["scores"]["val"]["n"] == 2


def test_the_plan_knows_that_a_fold_leaves_one_image_a_class(tmp_path: Path) -> None:
    folders(tmp_path, {"a": 2, "b": 2})
    options = ["experiment=default", f"data.root={tmp_path}", "data.folds=2", "stages=[]"]
    options += ["backbone=digits_resnet", "source=digits_0_4", "data.leakage=ignore"]
    with pytest.raises(ConfigError, match="E009"):
        xfer.run(None, [*options, "optim=exact"])
    assert xfer.run(None, options).plan["auto"][0]["value"] == "adamw"
    folders(tmp_path, {"a": 3, "b": 3})
    assert xfer.run(None, [*options, "optim=exact"]).plan["folds"]["folds"] == 2


@pytest.mark.slow
def test_one_image_a_class_is_fine_tuned_from_a_head_that_is_not_solved(tmp_path: Path) -> None:
    options = [*one_image_a_class(tmp_path), *QUICK, "freeze=lp_ft", "trainer.max_epochs=2"]
    log = (xfer.run(None, options).folder / "run.log").read_text()
    assert "the head does not begin solved: optim.l2 is chosen by images that are held out" in log


def test_more_features_than_their_folder_may_hold_are_trained_step_by_step(brief) -> None:
    run = xfer.run("digits_freeze", [*FEW, "features.max_gb=0.00001"]).folder
    assert facts(run)["solved"] is None
    assert "features.max_gb" in (run / "run.log").read_text()


def test_weights_and_balance_are_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["stages=[fit]", "data.digits=[5,6]", "optim=exact"]
    plain = xfer.run("digits_freeze", few).folder
    for option in ("loss=balanced", "loss=smoothed", "data.sampler=balanced", "optim.l2=0.5"):
        other = xfer.run("digits_freeze", [*few, option]).folder
        states = [load_tensors(r / "checkpoints/best.ckpt")["state_dict"] for r in (plain, other)]
        assert not states[0]["fc.weight"].equal(states[1]["fc.weight"]), option
    assert len(table(other, "metrics.csv")) >= 1
    assert facts(other)["solved"]["chosen_by"] == "given"
