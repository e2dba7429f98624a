"""Certificates of several labels an image: what is refused, labels that no fold knows, and a run by
steps; tests/workflow/test_multilabel.py has one of a solved head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import labelled
import numpy as np
import onnxruntime
import pytest
import warm
from PIL import Image
from runs import table

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import CombinationError
from xfer.core.files import read_json
from xfer.plan.make import make_plan
from xfer.plan.table import brief
from xfer.training.certificate_fit import HeldOut, certify
from xfer.weights.formats.checkpoint_format import read_snapshot

CLASSES = list(labelled.LABELS)
NETWORK = ["experiment=digits_freeze", "data=csv", "task=multilabel", "data.leakage=ignore"]


def shares(rows: list[dict[str, str]]) -> np.ndarray[Any, Any]:
    return np.array([[float(row[f"p_{c}"]) for c in CLASSES] for row in rows])


def truth(rows: list[dict[str, str]]) -> np.ndarray[Any, Any]:
    """Which labels each image is known to have, bool (n, classes)."""
    return np.array([[c in row["label"].split("|") for c in CLASSES] for row in rows])


def risk(p, has, cut: float) -> tuple[float, int]:
    """The sum of the shares of labels that are lost, and the number of images that have one."""
    some = has.any(axis=1)
    lost = (has & (p < cut)).sum(axis=1)[some] / has.sum(axis=1)[some]
    return float(lost.sum()), int(some.sum())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("promised")
    rows = labelled.digits(folder / "images", 240, unlabelled=12)
    named = [(f"images/{name}", labels) for name, labels in rows]
    labelled.write_columns(folder / "columns.csv", named, unknown=0.1)
    labelled.write_cells(folder / "few.csv", named[:40])
    return folder


def answer_of(session: Any, given: Any) -> dict[str, Any]:
    names = [put.name for put in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": given}), strict=True))


def test_too_few_images_are_refused_and_the_remedy_works(place: Path) -> None:
    base = [*NETWORK, f"data.file={place / 'few.csv'}", "certificate.coverage=0.98"]
    with pytest.raises(CombinationError) as caught:
        make_plan(compose_specs(base))
    assert "E019: certificate.coverage: 0.98 asks for 49 training images" in str(caught.value)
    assert "with a label, and there are 32" in str(caught.value)
    fix = str(caught.value).rpartition("type ")[2].partition(",")[0]
    plan = make_plan(compose_specs([*base[:-1], fix]))
    line = next(text for text in brief(plan).splitlines() if text.startswith("certificate"))
    assert "sets with 96 % of an image's labels on average, by 32 labelled training" in line
    with pytest.raises(CombinationError, match="of each class, and of '") as caught:
        make_plan(compose_specs([*base[:-1], fix, "certificate.by_class=true"]))
    fix = str(caught.value).rpartition("type ")[2].partition(",")[0]
    plan = make_plan(compose_specs([*base[:-1], fix, "certificate.by_class=true"]))
    assert "of the images that have it, by 32 labelled" in brief(plan)


def test_a_label_that_no_fold_could_know_is_missed_and_so_in_every_set() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((60, 3)) < 0.4).astype(np.int64)
    labels[:, 2] = 0
    labels[:3, 2] = 1
    logits = (random.normal(size=(60, 3)) + 3 * labels).astype(np.float32)
    logits[:12, 2] = np.nan  # the fold that has all of the third label
    promise = compose_specs(["experiment=digits_sgd", "certificate.coverage=0.7"]).certificate
    made = certify(promise, HeldOut(logits, labels, "cv", "a"), None)
    assert made is not None and made.several and made.n == int((labels == 1).any(axis=1).sum())
    p = np.nan_to_num(1 / (1 + np.exp(-logits.astype(np.float64))))
    sound = [c for c in np.unique(p) if (risk(p, labels == 1, c)[0] + 1) / (made.n + 1) <= 0.3]
    np.testing.assert_allclose(made.least, max(sound), rtol=1e-6)
    by_class = certify(type(promise)(0.7, by_class=True), HeldOut(logits, labels, "cv", "a"), None)
    assert by_class is not None and by_class.least[2] == 0 < by_class.least[0]
    assert by_class.sets(p)[:, 2].all()


@pytest.mark.slow
def test_steps_by_class_and_a_service_that_takes_pictures(place: Path) -> None:
    typed = ["data.file=columns.csv", "run.dir=steps", "certificate.coverage=0.8"]
    typed += ["certificate.by_class=true", "freeze=none", "optim=adamw", "trainer.max_epochs=3"]
    run = warm.start(place, *NETWORK, *typed, "export=[onnx_image,service]")
    said, _ = run.communicate()
    assert run.returncode == 0, said
    steps = place / "steps"
    rows = table(steps / "predictions_val.csv")
    p, has = shares(rows), truth(rows)
    made = read_snapshot(steps / "checkpoints/best.ckpt").card.certificate
    assert made is not None and made.several and made.by_class and made.fitted_on == "val"
    for c in range(len(CLASSES)):
        own = np.sort(p[has[:, c], c])
        lost = int(np.floor(len(own) - 0.8 * (len(own) + 1) + 1e-9))
        assert made.least[c] == pytest.approx(own[lost], abs=2e-6)
    outcome = read_json(steps / "result.json")["certificate"]
    assert outcome["checked_on"] is None and outcome["covered"] is None
    for file in read_json(steps / "export" / "parity.json"):
        # Each class's bound is the share of one of these images, which rounding may move.
        assert file["facts"]["certificate"]["sets_apart"] <= len(CLASSES)
    picture = place / "images" / "0008.png"
    (answer,) = xfer.load(steps).predict(picture)
    given = np.asarray(Image.open(picture).convert("RGB")).transpose(2, 0, 1)[None]
    for path in ("model_image.onnx", "service/model_image.onnx"):
        session = onnxruntime.InferenceSession(steps / "export" / path)
        found = answer_of(session, np.ascontiguousarray(given))
        assert [*found] == ["probabilities", "labels", "prediction_set", "p_unlike"]
        members = found["prediction_set"][0]
        assert answer.prediction_set == tuple(c for c, m in zip(CLASSES, members, strict=True) if m)
    card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    assert card["certificate"]["by_class"] is True
