"""Whole runs on real data, every stage, through the Python door."""

import csv
import hashlib
import json
import shutil
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from pictures import folders
from PIL import Image
from shipped import SHIPPED

import xfer
from xfer.core.control_groups import busy_cores
from xfer.core.errors import ConfigError, DataError, ExportError, OutputError, WeightsError
from xfer.core.files import file_sha256
from xfer.core.types import InputSpec
from xfer.data.image import decode
from xfer.data.preprocess import prepare
from xfer.models.backbone import Timm

FILES = """
    config.yaml plan.json load_report.json freeze_proof.json metrics.csv predictions_val.csv
    report.html report.md result.json
    status.json run.log checkpoints/best.ckpt checkpoints/last.ckpt export/model.onnx
    export/model.safetensors export/labels.json export/preprocess.json export/parity.json
    figures/batch_grid.png figures/prediction_grid.png figures/confusion_matrix.png
    figures/curves.png
""".split()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The quick start, two epochs of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("digits"))
        result = xfer.run("digits_sgd", ["trainer.max_epochs=2"])
        yield result.folder.resolve(), result


def facts(folder, name="result.json"):
    return json.loads((folder / name).read_text())


def table(folder, name):
    with (folder / name).open() as stream:
        return list(csv.DictReader(stream))


def test_every_file_of_the_contract_is_there(digits):
    folder, _ = digits
    assert [name for name in FILES if not (folder / name).is_file()] == []


def test_status_vouches_for_every_file(digits):
    folder, _ = digits
    status = facts(folder, "status.json")
    assert status["state"] == "finished" and status["exit"] == 0
    assert {"result.json", "checkpoints/best.ckpt", "export/model.onnx"} <= set(status["files"])
    assert all(file_sha256(folder / name) == digest for name, digest in status["files"].items())


def test_result_has_the_keys_of_the_contract(digits):
    folder, result = digits
    found = facts(folder)
    assert found == result.facts
    assert set(found) == set(
        "experiment status seed best scores params freeze source timing features export device "
        "precision versions command warnings memory solved checkpoint tta calibration "
        "certificate audit cv worth embed soup teacher chosen mirroring ranks".split()
    )
    assert found["params"] == {"total": 91541, "trainable": 325, "frozen": 91216}
    assert found["freeze"]["proved"] is True
    best = "checkpoints/best.ckpt"
    assert found["checkpoint"] == {"path": best, "sha256": file_sha256(folder / best)}
    assert found["source"]["coverage"] == 1.0 and found["source"]["dropped"] == 2
    assert {e["format"] for e in found["export"]} == {"onnx", "safetensors"}


def test_the_reloaded_best_scores_what_training_saw(digits):
    folder, _ = digits
    found = facts(folder)
    best, score = found["best"], found["scores"]["val"]
    row = table(folder, "metrics.csv")[best["epoch"] - 1]
    assert best["value"] == float(row["val_acc"]) == score["acc"]
    assert score["n"] == 179 and score["used_for_selection"] is True
    low, high = score["acc_ci95"]
    assert low < score["acc"] < high


def test_predictions_name_every_image_once(digits):
    folder, _ = digits
    rows = table(folder, "predictions_val.csv")
    assert len({row["path"] for row in rows}) == len(rows) == 179
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / 179 == facts(folder)["scores"]["val"]["acc"]
    for row in rows[:20]:
        shares = [float(row[f"p_{c}"]) for c in "56789"]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert max(shares) == float(row["confidence"])


def test_the_backbone_never_moved(digits):
    from xfer.weights.source import Shipped

    folder, _ = digits
    model = xfer.load(folder)
    source = Shipped("digits_0_4").load(Timm("resnet18")).state
    moved = [n for n, t in model.net.state_dict().items() if not t.equal(source[n])]
    assert moved == ["fc.weight", "fc.bias"]


def test_the_onnx_file_explains_itself_and_answers_alike(digits):
    folder, _ = digits
    session = onnxruntime.InferenceSession(folder / "export" / "model.onnx")
    stored = session.get_modelmeta().custom_metadata_map
    assert json.loads(stored["classes"]) == list("56789")
    spec = InputSpec.from_plain(json.loads(stored["preprocess"]))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    path = folder.parent / "picture.png"
    picture.save(path)
    (logits,) = session.run(None, {session.get_inputs()[0].name: prepare(decode(path), spec)[None]})
    (answer,) = xfer.load(folder).predict(path)
    assert answer.label == "56789"[int(logits.argmax())]
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert list(answer.probabilities.values()) == pytest.approx(shares.tolist(), abs=1e-5)


def test_the_same_seed_gives_the_same_weights(digits, tmp_path, monkeypatch):
    folder, _ = digits
    monkeypatch.chdir(tmp_path)
    options = ["trainer.max_epochs=2", "stages=[fit]"]
    again = xfer.run("digits_sgd", [*options, "data.workers=2"]).folder
    ours, theirs = (xfer.load(f).net.state_dict() for f in (again, folder))
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())
    other = xfer.run("digits_sgd", [*options, "seed=1"]).folder
    assert not xfer.load(other).net.fc.weight.equal(theirs["fc.weight"])


def test_a_checkpoint_alone_evaluates_exports_and_predicts(digits, tmp_path, monkeypatch):
    folder, _ = digits
    monkeypatch.chdir(tmp_path)
    checkpoint = f"checkpoint.path={folder}"
    found = xfer.run(
        overrides=["stages=[evaluate,export,report]", checkpoint, "data=digits", "export=onnx"]
    )
    assert found.facts["scores"]["val"]["acc"] == facts(folder)["scores"]["val"]["acc"]
    assert found.facts["scores"]["val"]["used_for_selection"] is True
    assert [e["format"] for e in found.facts["export"]] == ["onnx"]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.new("L", (20 + i, 30), 40 * i).save(pictures / f"{i}.png")
    named = xfer.run(overrides=["stages=[predict]", checkpoint, f"predict.input={pictures}"])
    rows = table(named.folder, "predictions.csv")
    assert [row["path"] for row in rows] == [str(pictures / f"{i}.png") for i in range(3)]
    assert "label" not in rows[0]


def test_a_split_is_used_for_selection_only_where_it_chose(digits, tmp_path, monkeypatch):
    folder, _ = digits
    monkeypatch.chdir(tmp_path)

    def used(*overrides):
        found = xfer.run("digits_sgd", ["stages=[evaluate]", *overrides]).facts
        return found["scores"]["val"]["used_for_selection"]

    kept = ["head=keep", "data=digits"]
    state = xfer.load(folder).net.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    # Nobody knows what chose the weights of a plain file; this run trained nothing.
    assert (
        used(*kept, "source=file", "source.path=plain.pt", "source.classes=['5','6','7','8','9']")
        is False
    )
    # The run that made these weights chose its epoch on the same images.
    assert used(*kept, "source=run", f"source.path={folder}") is True
    one = ["stages=[fit,evaluate]", "data.digits=[5,6]", "data.workers=0"]
    assert used(*one, "trainer.max_epochs=1") is False
    last = ["checkpoint.monitor=train_loss", "trainer.max_epochs=2"]
    assert used(*one, *last) is False
    assert used(*one, "trainer.max_epochs=2", "checkpoint.start_epoch=2") is False


def test_last_and_interrupted_checkpoints_evaluate_too(digits, tmp_path, monkeypatch):
    folder, _ = digits
    monkeypatch.chdir(tmp_path)
    last = folder / "checkpoints" / "last.ckpt"
    model = xfer.load(last)
    assert model.classes == tuple("56789")
    rows = table(folder, "metrics.csv")
    found = xfer.run(overrides=["stages=[evaluate]", f"checkpoint.path={last}", "data=digits"])
    assert found.facts["scores"]["val"]["acc"] == float(rows[-1]["val_acc"])


def test_other_classes_than_the_checkpoints_are_refused(digits, tmp_path, monkeypatch):
    folder, _ = digits
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="lacks") as told:
        xfer.run(overrides=["stages=[evaluate]", f"checkpoint.path={folder}", "data=digits_0_4"])
    assert told.value.exit == 3
    with pytest.raises(ConfigError, match="contradicts"):
        xfer.run(
            overrides=["stages=[evaluate]", f"checkpoint.path={folder}", "data=digits", "head=mlp"]
        )


def test_a_second_transfer_starts_from_the_first(digits, tmp_path, monkeypatch):
    folder, _ = digits
    monkeypatch.chdir(tmp_path)
    options = ["data=digits_0_4", "source=run", f"source.path={folder}", "stages=[]"]
    plan = xfer.run("digits_sgd", options).plan
    assert plan["source"]["kind"] == "run" and plan["source"]["coverage"] == 1.0
    with pytest.raises(WeightsError, match="its backbone is 'resnet18'"):
        xfer.run("digits_sgd", [*options, "backbone=resnet50"])


def test_a_run_folder_is_never_shared(digits, tmp_path, monkeypatch):
    folder, _ = digits
    with pytest.raises(OutputError, match="already holds files") as told:
        xfer.run("digits_sgd", [f"run.dir={folder}"])
    assert told.value.exit == 9
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").write_text("a file where the folder must be")
    with pytest.raises(OutputError, match="cannot be written"):
        xfer.run("digits_sgd", ["stages=[fit]"])
    assert xfer.run("digits_sgd", ["stages=[]"]).plan["classes"]  # the plan alone needs no place


def test_diverging_is_an_error_that_keeps_the_last_good_epoch(tmp_path, monkeypatch):
    from xfer.core.errors import DivergedError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(DivergedError, match="NaN or Inf") as told:
        xfer.run("digits_finetune", ["optim.lr=9000", "trainer.max_epochs=3", "stages=[fit]"])
    assert told.value.exit == 7
    (folder,) = (tmp_path / "outputs" / "digits_finetune").iterdir()
    assert facts(folder, "status.json")["state"] == "failed"
    assert "DivergedError" in (folder / "error.log").read_text()


def test_early_stopping_and_every_kind_of_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = """
        trainer.max_epochs=30 trainer.patience=1 checkpoint=every_epoch checkpoint.keep=2
        checkpoint.prefix=kept trainer.accumulate=2 trainer.clip_norm=1 loss=smoothed
        optim.lr=0.00001 stages=[fit]
    """.split()
    folder = xfer.run("digits_sgd", options).folder
    rows = table(folder, "metrics.csv")
    assert len(rows) < 30 and int(rows[0]["step"]) == 12
    copies = sorted(p.stem for p in (folder / "checkpoints").glob("kept*"))
    assert copies == sorted(f"kept_epoch{n}" for n in (len(rows) - 1, len(rows)))


def test_a_folder_of_photographs_is_a_whole_command(assets, tmp_path, monkeypatch):
    """S8 and S12: the tutorials' pipeline on real photographs, seen through the reloaded best."""
    monkeypatch.chdir(tmp_path)
    for part in ("dogs", "wolves"):
        files = sorted((assets / "Canidae" / "train" / part).iterdir())[:20]
        for file in files:
            (tmp_path / "mine" / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / "mine" / part)
    weights = assets / "weights" / "squeezenet1_0_imagenet.safetensors"
    options = f"""
        data.root=mine backbone=squeezenet1_0 source=file source.path={weights} data.workers=0
        trainer.max_epochs=2 optim.lr=0.003 backbone.image_size=96
    """.split()
    result = xfer.run(overrides=options)
    assert [s["n"] for s in result.plan["splits"].values()] == [32, 8]
    assert result.plan["input"]["size"] == [96, 96]
    for name in ("batch_grid", "prediction_grid", "curves", "confusion_matrix"):
        with Image.open(result.folder / "figures" / f"{name}.png") as figure:
            assert min(figure.size) > 200
    assert result.facts["export"][1]["facts"]["plain_loadable"] == "yes"


def test_mixed_batches_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["augment=mixed", "loss=balanced", "trainer.max_epochs=1", "stages=[fit]"]
    options += ["data.digits=[5,6,7]"]
    rows = table(xfer.run("digits_finetune", options).folder, "metrics.csv")
    assert 0 < float(rows[0]["train_loss"]) < 10


def test_a_refused_format_hides_neither_the_others_nor_the_score(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "xfer.export.safetensors.Safetensors.open",
        lambda self, path, net: lambda images: np.zeros((len(images), 5), np.float32),
    )
    with pytest.raises(ExportError, match="safetensors"):
        xfer.run("digits_sgd", ["trainer.max_epochs=1"])
    (folder,) = (tmp_path / "outputs" / "digits_sgd").iterdir()
    found, status = facts(folder), facts(folder, "status.json")
    assert status["state"] == "failed" and status["exit"] == 10
    assert found["status"] == "failed" and found["scores"]["val"]["n"] == 179
    assert [file["format"] for file in found["export"]] == ["onnx"]
    assert any("safetensors" in line for line in found["warnings"])
    assert (folder / "report.html").is_file() and not (folder / "export/model.safetensors").exists()
    assert "export/model.onnx: " in (folder / "run.log").read_text()


def test_what_is_longer_than_the_fit_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["stages=[fit]", "trainer.max_epochs=1", "data.batch_size=5000"]
    warmup = ["schedule=cosine", "schedule.warmup_epochs=3"]
    remarks = facts(xfer.run("digits_sgd", asked + warmup).folder, "plan.json")["remarks"]
    assert any(line.startswith("schedule.warmup_epochs=3 is no less than") for line in remarks)
    assert any(line.startswith("data.batch_size=5000 is more than the") for line in remarks)
    planned = ["stages=[]", "trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=600"]
    remarks = xfer.run("digits_sgd", planned).plan["remarks"]
    assert not any("never falls" in line for line in remarks), remarks
    assert any("=600 on each of 2 devices is more than the" in line for line in remarks)


def test_more_workers_than_processors_are_a_remark_and_no_warning_of_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = busy_cores() + 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="This DataLoader will create")
        for workers in (asked, 0):
            words = ["trainer.max_epochs=1", "stages=[fit,evaluate]", f"data.workers={workers}"]
            remarks = facts(xfer.run("digits_sgd", words).folder, "plan.json")["remarks"]
            assert (f"data.workers={asked} is more than" in " ".join(remarks)) == bool(workers)


def test_an_evaluation_names_its_checkpoint_and_what_is_shown_is_counted(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(SHIPPED, tmp_path / "copy.ckpt")
    folders(tmp_path, {f"new/{n}": 5 for n in range(5)})
    again = ["stages=[evaluate,predict]", "checkpoint.path=copy.ckpt", "predict.input=new"]
    found = xfer.run(overrides=[*again, "data=digits_0_4", "data.workers=0"])
    digest = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    told = capsys.readouterr().out
    assert f"the network is copy.ckpt, sha256 {digest[:12]}" in told
    assert facts(found.folder)["checkpoint"] == {"path": "copy.ckpt", "sha256": digest}
    assert "25 predictions in " in told and "; the first 20 are shown" in told
    assert sum(line.startswith("new/") for line in told.splitlines()) == 20


def test_a_test_split_of_one_class_is_told_and_the_advice_leads_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = folders(tmp_path / "data", {"test/1": 2})
    typed = ["stages=[evaluate]", f"checkpoint.path={SHIPPED}", f"data.root={root}"]
    with pytest.raises(DataError, match=r"E305: .*add the images of the other classes"):
        xfer.run(overrides=[*typed, "data.workers=0"])
    folders(root, {"test/2": 2})
    with pytest.raises(DataError, match=r"E342: .*lacks \['0', '3', '4'\].*the 5 classes"):
        xfer.run(overrides=[*typed, "data.workers=0"])
    folders(root, {f"test/{n}": 2 for n in (0, 3, 4)})
    found = xfer.run(overrides=[*typed, "data.workers=0"])
    assert facts(found.folder)["scores"]["test"]["n"] == 10
