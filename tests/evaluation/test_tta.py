"""Test-time augmentation: the views, their mean, and everything that says so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pictures import picture
from PIL import Image, ImageOps
from runs import facts, table
from safetensors.torch import load_file
from torchvision.models import squeezenet1_0
from torchvision.transforms import InterpolationMode, v2

import xfer
from xfer.config.help import config_dir
from xfer.config.hydra import compose_specs
from xfer.core.errors import CombinationError, ConfigError, Problems
from xfer.core.types import InputSpec, Tta
from xfer.data import Digits
from xfer.data.tta import VIEWS, check_tta, prepare_views
from xfer.evaluation.predict import mean_over_views
from xfer.plan.make import make_plan
from xfer.plan.table import brief
from xfer.plan.table import table as table_of

SPEC = InputSpec((24, 32), 41, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
SQUEEZENET = ["backbone=squeezenet1_0", "source=squeezenet_file", "data.workers=0"]


def of_torchvision(image: Image.Image, spec: InputSpec, tta: Tta) -> list[Any]:
    """The views by torchvision alone."""
    resize = v2.Resize(spec.resize, InterpolationMode(spec.interpolation))
    whole, size = resize(image), list(spec.size)
    centre = v2.CenterCrop(size)(whole)
    views = {
        "none": [centre],
        "flip": [centre, v2.functional.horizontal_flip(centre)],
        "five_crop": v2.FiveCrop(size)(whole),
        "ten_crop": v2.TenCrop(size)(whole),
    }[tta]
    tensors = [v2.functional.to_dtype(v2.functional.to_image(v), scale=True) for v in views]
    return [v2.functional.normalize(t, list(spec.mean), list(spec.std)) for t in tensors]


@pytest.mark.parametrize("tta", VIEWS)
@pytest.mark.parametrize("size", [(100, 60), (60, 101), (41, 41), (7, 50), (1, 1), (333, 90)])
def test_views_are_those_of_torchvision(tta: Tta, size: tuple[int, int]) -> None:
    image = picture(1, size)
    expected = of_torchvision(image, SPEC, tta)
    found = prepare_views(image, SPEC, tta)
    assert found.dtype == np.float32 and len(found) == len(expected) == VIEWS[tta]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_the_mean_is_that_of_probabilities_and_its_softmax_is_the_mean_again() -> None:
    logits = np.random.default_rng(0).normal(0, 6, (7, 5, 4)).astype(np.float32)
    expected = torch.from_numpy(logits).double().softmax(2).mean(1)
    found = torch.from_numpy(mean_over_views(logits)).double().softmax(1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    of_logits = torch.from_numpy(logits).double().mean(1).softmax(1)
    assert (expected - of_logits).abs().max() > 0.05  # the other mean is another number
    far = np.array([[[0, 5000, -9000], [0, 4000, -9000]]], np.float32)
    assert np.isfinite(mean_over_views(far)).all()
    for bad in (np.nan, np.inf, -np.inf):
        far[0, 1, 2] = bad
        assert np.isnan(mean_over_views(far)).all()


def hymenoptera(assets: Path, place: Path, train: int, val: int) -> Path:
    """So many photographs of each class and split, copied into a folder of their own."""
    for split, count in (("train", train), ("val", val)):
        for name in ("ants", "bees"):
            (place / split / name).mkdir(parents=True)
            for path in sorted((assets / "Hymenoptera" / split / name).iterdir())[:count]:
                shutil.copy(path, place / split / name)
    return place


@pytest.fixture(scope="module")
def ants_and_bees(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of 96 pixels on SqueezeNet: an exact head, and the validation images answered
    over ten crops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XFER_ASSETS", str(assets))
        patch.chdir(tmp_path_factory.mktemp("bees"))
        root = hymenoptera(assets, Path("hymenoptera"), 10, 5).resolve()
        typed = [f"data.root={root}", *SQUEEZENET, "tta=ten_crop", "export=[onnx,safetensors]"]
        typed += ["backbone.image_size=96", "export.images=8", "report.maps=3"]
        return xfer.run(overrides=typed).folder.resolve()


@pytest.fixture
def photos(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of five photographs below ``photos``."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for path in sorted((assets / "Hymenoptera" / "val" / "bees").iterdir())[:5]:
        (Path("photos") / path.name).symlink_to(path)
    return [str(path) for path in sorted(Path("photos").iterdir())]


def shares(rows: list[dict[str, str]]) -> np.ndarray[Any, Any]:
    return np.array([[float(v) for k, v in row.items() if k.startswith("p_")] for row in rows])


def of_torch(run: Path, paths: list[Path], tta: Tta) -> np.ndarray[Any, Any]:
    """Mean probabilities by torchvision's own network and transforms and by torch; nothing of xfer
    but the plain state dict that the run has exported."""
    net = squeezenet1_0(num_classes=2).eval()
    net.load_state_dict(load_file(run / "export" / "model.safetensors"))
    spec = InputSpec.from_plain(facts(run, "plan.json")["input"])
    rows = []
    with torch.inference_mode():
        for path in paths:
            image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
            views = torch.stack(of_torchvision(image, spec, tta))
            rows.append(net(views).double().softmax(1).mean(0).numpy())
    return np.stack(rows)


def data_of(run: Path) -> Path:
    return Path(facts(run, "plan.json")["config"]["data"]["root"])


def assert_scored_as_by_torch(run: Path, tta: Tta, n: int) -> None:
    rows = table(run / "predictions_val.csv")
    expected = of_torch(run, [data_of(run) / row["path"] for row in rows], tta)
    np.testing.assert_allclose(shares(rows), expected, atol=5e-5)
    labels = np.array([["ants", "bees"].index(row["label"]) for row in rows])
    score = facts(run)["scores"]["val"]
    assert score["n"] == len(rows) == n
    assert score["acc"] == pytest.approx((expected.argmax(1) == labels).mean())
    loss = -np.log(expected[np.arange(len(labels)), labels]).mean()
    assert score["loss"] == pytest.approx(loss, abs=1e-4)


def test_the_score_is_that_of_ten_crops_computed_by_torchvision_and_torch_alone(
    ants_and_bees: Path,
) -> None:
    assert_scored_as_by_torch(ants_and_bees, "ten_crop", 10)


@pytest.mark.slow
@pytest.mark.parametrize("tta", ["flip", "five_crop", "ten_crop"])
def test_so_is_that_of_all_validation_images(
    tta: Tta, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XFER_ASSETS", str(assets))
    typed = [f"data.root={assets / 'Hymenoptera'}", *SQUEEZENET, f"tta={tta}"]
    run = xfer.run(overrides=[*typed, "export=safetensors"])
    assert_scored_as_by_torch(run.folder, tta, 153)


def test_everything_of_a_run_says_how_many_views_were_averaged(ants_and_bees: Path) -> None:
    said = {"kind": "ten_crop", "views": 10, "averaged": "probabilities"}
    assert facts(ants_and_bees)["tta"] == facts(ants_and_bees, "plan.json")["tta"] == said
    rows = table(ants_and_bees / "predictions_val.csv")
    assert list(rows[0])[-1] == "views" and {row["views"] for row in rows} == {"10"}
    words = "mean probabilities of 10 views an image (ten_crop)"
    log = (ants_and_bees / "run.log").read_text()
    assert (
        len([line for line in log.splitlines() if words in line]) == 2
    )  # the score, and the last lines
    for name in ("report.html", "report.md"):
        card = (ants_and_bees / name).read_text()
        assert "mean probabilities over 10 views of each image (tta=ten_crop)" in card


def test_exported_files_are_compared_as_without_it(ants_and_bees: Path) -> None:
    again = ants_and_bees.parent / "again"
    typed = [f"checkpoint.path={ants_and_bees}", f"data.root={data_of(ants_and_bees)}"]
    typed += ["data.workers=0", "export.images=8"]
    xfer.run(overrides=["stages=[export]", *typed, f"run.dir={again}"])
    with_tta, without = (facts(run, "export/parity.json") for run in (ants_and_bees, again))
    assert with_tta == without


@pytest.mark.parametrize("tta", VIEWS)
def test_checkpoint_python_and_onnx_predict_the_same_mean(
    tta: Tta, ants_and_bees: Path, photos: list[str]
) -> None:
    expected = of_torch(ants_and_bees, [Path(path) for path in photos], tta)
    asked = ["stages=[predict]", "predict.input=photos", f"tta={tta}"]
    models = (
        f"checkpoint.path={ants_and_bees}",
        f"predict.model={ants_and_bees}/export/model.onnx",
    )
    for i, model in enumerate(models):
        run = xfer.run(overrides=[*asked, model, f"run.dir=run{i}"])
        rows = table(run.folder / "predictions.csv")
        assert [row["path"] for row in rows] == photos
        np.testing.assert_allclose(shares(rows), expected, atol=5e-5)
        assert rows[0].get("views") == (None if tta == "none" else str(VIEWS[tta]))
        for name in ("result.json", "plan.json"):
            assert facts(run.folder, name)["tta"]["views"] == VIEWS[tta]
    answers = xfer.load(ants_and_bees).predict(photos, tta=tta)
    found = [list(answer.probabilities.values()) for answer in answers]
    np.testing.assert_allclose(found, expected, atol=5e-5)


def test_an_onnx_file_of_probabilities_or_of_one_batch_size_is_averaged_as_any_other(
    ants_and_bees: Path, photos: list[str]
) -> None:
    model = onnx.load(ants_and_bees / "export" / "model.onnx")
    graph = model.graph
    softmax = onnx.helper.make_node("Softmax", [graph.output[0].name], ["p"], axis=1)
    graph.node.append(softmax)
    graph.output[0].name = "p"
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, "softmax.onnx")
    rows = []
    for file in (ants_and_bees / "export" / "model.onnx", Path("softmax.onnx")):
        asked = ["stages=[predict]", f"predict.model={file}", "predict.input=photos"]
        run = xfer.run(overrides=[*asked, "tta=ten_crop", f"run.dir={file.stem}"])
        rows.append(shares(table(run.folder / "predictions.csv")))
    np.testing.assert_allclose(*rows, atol=5e-6)


FREEZE = Path(config_dir()) / "freeze"
WITH = {
    "first_n": ["freeze.n=2"],
    "head_only": ["features=require"],
    "lp_ft": ["freeze.probe_epochs=1", "features=require"],
    "lp_ft_20": ["freeze.probe_epochs=1"],
    "rules": ["freeze.rules=[{match: head, lr: 1}, {match: backbone, lr: 0.1}]"],
    "up_to": ["freeze.stage=layer3"],
}


# A solved head, one that is trained on from there, and one whose weights are merged.
SAMPLE = {"head_only", "lp_ft", "lora"}
POLICIES = [
    policy if policy in SAMPLE else pytest.param(policy, marks=pytest.mark.slow)
    for policy in sorted(file.stem for file in FREEZE.glob("*.yaml"))
]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_way_of_training_is_scored_over_the_views(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    epochs = {"lp_ft": 2, "lp_ft_20": 2, "gradual": 6}.get(policy, 1)
    short = [f"trainer.max_epochs={epochs}", "data.batch_size=128", "tta=flip"]
    short += ["stages=[fit,evaluate]", "data.workers=0"]
    run = xfer.run("digits_sgd", [*short, f"freeze={policy}", *WITH.get(policy, [])])
    rows = table(run.folder / "predictions_val.csv")
    model = xfer.load(run.folder)
    digits = dict(zip(*named_digits(), strict=True))
    size = model.card.input.size
    pixels = [prepare_views(digits[row["path"]], model.card.input, "none")[0] for row in rows]
    views = torch.from_numpy(np.stack(pixels))
    assert views.shape == (179, 3, *size)
    with torch.inference_mode():
        both = model.net(views).double().softmax(1) + model.net(views.flip(3)).double().softmax(1)
    np.testing.assert_allclose(shares(rows), (both / 2).numpy(), atol=1e-4)
    assert run.facts is not None and run.facts["tta"]["views"] == 2


def named_digits() -> tuple[list[str], list[Image.Image]]:
    samples = Digits(digits=(5, 6, 7, 8, 9)).dataset(training=False).splits["val"]
    return list(samples.names), [samples.images[i] for i in range(len(samples))]


def test_the_plan_shows_it_and_stays_within_a_dozen_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(compose_specs(["experiment=digits_sgd", "tta=flip", "augment=trivial",
                                    "augment.grey=0.1"]))  # fmt: skip
    assert plan.dataset is not None
    for count, more in ((4, "2 more remarks"), (3, "1 more remark")):
        crowd = replace(plan.dataset, remarks=("a", "b", "c", "d")[:count])
        lines = brief(replace(plan, dataset=crowd)).splitlines()
        assert len(lines) <= 12 and lines[-1].endswith(f"add 'stages=[]' to see it and {more}")
    assert any("answers" in line and "2 views an image (flip)" in line for line in lines)
    assert any("augment=trivial" in line for line in lines)
    whole = table_of(plan)
    assert "2 views an image (flip); exported files are compared without" in whole
    assert "augment" in whole and "trivialaugment" in whole and "grey=0.1" in whole
    assert plan.facts["augment"]["grey"] == 0.1
    bare = make_plan(compose_specs(["experiment=digits_sgd"]))
    assert "answers" not in table_of(bare) and bare.facts["tta"]["averaged"] is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["experiment=digits_sgd", "stages=[fit]", "tta=flip"], "E021: tta: is for evaluate and"),
        (["experiment=digits_sgd", "tta=mirror"], "E202: .*tta"),
        (["experiment=digits_sgd", "tta=true"], "E202: .*tta"),
    ],
)
def test_what_cannot_be_averaged_is_refused_before_anything_is_paid_for(
    typed: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, Problems), match=said):
        make_plan(compose_specs(typed))


def test_crops_are_refused_where_the_recipe_leaves_nothing_to_cut() -> None:
    check_tta(SPEC, "ten_crop")
    for resize in (None, 31):
        with pytest.raises(CombinationError, match="E020: tta: ten_crop cuts 24 x 32 pixels out"):
            check_tta(replace(SPEC, resize=resize), "ten_crop")
        check_tta(replace(SPEC, resize=resize), "flip")


def test_a_recipe_or_a_word_that_has_no_views_is_refused(
    ants_and_bees: Path, photos: list[str]
) -> None:
    recipe = json.loads((ants_and_bees / "export" / "preprocess.json").read_text())
    Path("squashed.json").write_text(json.dumps({**recipe, "resize": None}))
    file = f"predict.model={ants_and_bees}/export/model.onnx"
    asked = ["stages=[predict]", "predict.input=photos", file, "predict.recipe=squashed.json"]
    with pytest.raises(CombinationError, match="E020: tta: five_crop cuts 96 x 96 pixels out"):
        xfer.run(overrides=[*asked, "tta=five_crop"])
    with pytest.raises(ConfigError, match=r"E023: tta: there is no 'flips'. Fix: did you mean"):
        xfer.load(ants_and_bees).predict(photos, tta="flips")  # type: ignore[arg-type]
