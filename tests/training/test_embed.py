"""stages=[embed]: the file against the network itself, the same bytes again, and neighbours."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import folders
from sklearn.metrics.pairwise import cosine_distances

import xfer
from xfer.config.hydra import compose_specs, prepare_overrides
from xfer.core.errors import CombinationError, DataError
from xfer.data.image import decode
from xfer.data.preprocess import prepare
from xfer.plan.make import make_plan
from xfer.training.embed import Embeddings, nearest

RANDOM = ["backbone=digits_resnet", "source=none", "data=folder"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("embed")
    folders(place / "images", {"a": 5, "b": 3})
    (place / "images" / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return place


def embedded(place: Path, name: str, *extra: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        folder = xfer.run(None, ["stages=[embed]", *RANDOM, f"run.dir={name}", *extra]).folder
        return (place / folder).resolve()


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    query = "embed.neighbours=images/a/02.jpg"
    return embedded(place, "one", "predict.input=images", query, "embed.k=3")


def contents(run: Path) -> dict[str, Any]:
    with np.load(run / "embeddings.npz", allow_pickle=False) as file:
        return dict(file)


def test_a_row_an_image_with_its_path_and_the_recipe(run: Path) -> None:
    held, result = contents(run), json.loads((run / "result.json").read_text())
    recipe = json.loads(str(held["recipe"]))
    assert held["features"].dtype == np.float32
    assert held["features"].shape == (8, recipe["width"])
    assert [Path(path).name for path in held["paths"]] == [
        *(f"{i:02d}.jpg" for i in range(5)),
        *(f"{i:02d}.jpg" for i in range(3)),
    ]
    assert (held["labels"] == -1).all()
    assert recipe["axes"] == ["image", "feature"]
    digest = hashlib.sha256((run / "embeddings.npz").read_bytes()).hexdigest()
    assert result["embed"]["sha256"] == digest
    assert result["embed"]["images"] == 8


def test_the_rows_are_what_enters_the_classifier(run: Path, place: Path) -> None:
    """The same image through the network without xfer's loader."""
    from xfer.models.network import assemble

    plan = make_plan(compose_specs(["stages=[embed]", *RANDOM, "predict.input=images"]))
    net = assemble(plan.parts, plan.state).eval()
    seen: list[torch.Tensor] = []
    (path,) = [name for name, m in net.named_modules() if isinstance(m, torch.nn.Linear)]
    net.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pixels = prepare(decode(place / "images/a/03.jpg"), plan.card.input)
    with torch.no_grad():
        net(torch.from_numpy(pixels)[None])
    ours = contents(run)["features"][3]
    assert np.allclose(ours, seen[0][0].numpy(), atol=1e-5)


def test_the_same_again_is_the_same_bytes(run: Path, place: Path) -> None:
    again = embedded(place, "two", "predict.input=images")
    files = [(folder / "embeddings.npz").read_bytes() for folder in (run, again)]
    assert files[0] == files[1]


def test_neighbours_are_those_of_scikit_learn(run: Path) -> None:
    log = (run / "run.log").read_text()
    assert "each with its cosine distance" in log and "as in one/neighbours.csv:" in log
    held = contents(run)
    with (run / "neighbours.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    distances = cosine_distances(held["features"][2:3].astype(np.float64), held["features"])[0]
    order = np.argsort(distances, kind="stable")[:3]
    assert [row["path"] for row in rows] == [held["paths"][i] for i in order]
    assert [float(row["distance"]) for row in rows] == pytest.approx(distances[order], abs=2e-6)
    assert float(rows[0]["distance"]) == pytest.approx(0, abs=1e-6)  # the image itself


def test_without_images_named_the_splits_come_with_their_labels(place: Path) -> None:
    folders(place / "data", {"train/x": 4, "train/y": 4, "val/x": 2, "val/y": 2})
    run = embedded(place, "splits", "data.root=data")
    held = contents(run)
    assert held["splits"].tolist() == ["train"] * 8 + ["val"] * 4
    names = [held["classes"][label] for label in held["labels"]]
    assert names == [Path(path).parent.name for path in held["paths"]]


def test_a_large_table_is_searched_in_blocks() -> None:
    drawn = np.random.default_rng(0)
    rows = drawn.normal(size=(9_000, 600)).astype(np.float32)  # more than one block
    rows[8_500] = rows[3] * 2
    found = nearest(rows, rows[3], 2)
    assert [at for at, _ in found] == [3, 8_500]


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="no pyarrow")
def test_parquet_holds_the_same(tmp_path: Path) -> None:
    from pyarrow import parquet

    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    labels, recipe = np.array([0, 1, -1, 0]), {"width": 3}
    made = Embeddings(rows, ("p", "q", "r", "s"), labels, ("",) * 4, ("a", "b"), recipe)
    for name in ("one.parquet", "two.parquet"):
        made.write(tmp_path / name)
    table = parquet.read_table(tmp_path / "one.parquet")
    assert table.column("label").to_pylist() == ["a", "b", None, "a"]
    assert np.array_equal(np.array(table.column("features").to_pylist(), np.float32), rows)
    assert json.loads(table.schema.metadata[b"xfer"]) == recipe
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


@pytest.mark.parametrize("form", ["npz", "parquet"])
@pytest.mark.parametrize("several", [False, True])
def test_features_given_as_images_are_called_that_and_the_remedy_works(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, several: bool
) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    labels = np.eye(2, dtype=np.int64)[[0, 1, 1]] if several else np.array([0, 1, 1])
    rows = np.arange(9, dtype=np.float32).reshape(3, 3)
    made = Embeddings(rows, ("p", "q", "r"), labels, ("",) * 3, ("a", "b"), {"width": 3})
    made.write(tmp_path / f"embeddings.{form}")
    option = {"npz": "arrays", "parquet": "parquet"}[form]
    task = ["task=multilabel"] if several else []
    typed = [*RANDOM[:2], *task, f"data={option}", f"data.root={tmp_path}/embeddings.{form}"]
    with pytest.raises(
        DataError, match=r"E3(27|38): .*holds features that stages=\[embed\]"
    ) as told:
        make_plan(compose_specs(typed))
    assert told.value.fix.startswith("type data.root=IMAGES, the folder")
    monkeypatch.chdir(place)
    remedy = told.value.fix.split()[1].rstrip(",").replace("IMAGES", "images")
    assert make_plan(compose_specs([*RANDOM, remedy, "data.on_bad=skip"])).split("train")


BASE = ["stages=[embed]", *RANDOM, "predict.input=images"]


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        (["stages=[fit]", *RANDOM, "data.root=images", "embed.k=3"], 36),
        ([*BASE, "embed.neighbours=nowhere.jpg"], 376),
    ],
)
def test_what_cannot_be_is_refused(typed: list[str], number: int) -> None:
    with pytest.raises((CombinationError, DataError)) as error:
        make_plan(compose_specs(typed))
    assert error.value.number == number


def test_parquet_without_pyarrow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xfer.config.contradictions.find_spec", lambda name: None)
    with pytest.raises(CombinationError) as error:
        compose_specs([*BASE, "embed.format=parquet"])
    assert error.value.number == 35
    compose_specs([*BASE, "embed.format=npz"])  # the remedy


def test_images_to_embed_are_a_task_of_their_own() -> None:
    """Not the quick start's, whose network knows digits alone."""
    assert not any("digits" in text for text in prepare_overrides(BASE[:1] + BASE[-1:]))
    assert any("digits" in text for text in prepare_overrides(["stages=[embed]"]))
