"""Files decoded once: the same pictures, in memory that worker processes share."""

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import folders
from PIL import Image
from torch.utils.data import DataLoader

import xfer
from xfer.core.errors import ConfigError
from xfer.core.types import Dataset, InputSpec, Samples
from xfer.data.decode_cache import Decoded, decoded, decoded_limit, fitted
from xfer.data.image import Arrays, Files
from xfer.data.preprocess import normalise, prepare


@pytest.fixture
def files(tmp_path):
    chance = np.random.default_rng(0)
    paths = []
    for i, shape in enumerate([(8, 6, 3), (5, 9, 3), (7, 7, 3)]):
        path = tmp_path / f"{i}.png"
        Image.fromarray(chance.integers(0, 256, shape, dtype=np.uint8)).save(path)
        paths.append(path)
    return Files(tuple(paths))


def pixels(images):
    return [np.asarray(images[i]) for i in range(len(images))]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_pictures_stay_when_their_files_are_gone(files):
    kept, before = Decoded(files, 10_000), pixels(files)
    assert same(pixels(kept), before)
    for path in files.paths:
        path.unlink()
    assert same(pixels(kept), before) and same(pixels(kept), before)


def test_what_does_not_fit_is_decoded_again(files):
    before, kept = pixels(files), Decoded(files, 150)
    assert same(pixels(kept), before)
    files.paths[0].unlink()
    assert np.array_equal(np.asarray(kept[0]), before[0])
    files.paths[1].unlink()
    with pytest.raises(Exception, match=r"1\.png"):
        kept[1]


class Read:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return int(np.asarray(self.images[index]).sum())


def test_workers_share_what_one_of_them_decoded(files):
    kept = Decoded(files, 10_000)
    sums = [int(array.sum()) for array in pixels(files)]
    assert [int(x) for x in DataLoader(Read(kept), num_workers=2)] == sums
    for path in files.paths:
        Path(path).unlink()
    assert [int(x) for x in DataLoader(Read(kept), num_workers=2)] == sums
    assert [int(np.asarray(kept[i]).sum()) for i in range(3)] == sums


def split(images):
    count = len(images)
    names = tuple(map(str, range(count)))
    return Samples(names, np.zeros(count, np.int64), images, "")


SPEC = InputSpec((4, 5), 6, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_only_files_are_kept_and_zero_keeps_none(files):
    arrays = Arrays(np.zeros((2, 4, 4), np.uint8))
    data = Dataset(("a",), {"train": split(files), "val": split(arrays)})
    assert isinstance(decoded(data, 1_000_000, SPEC).splits["train"].images, Decoded)
    assert decoded(data, 0, SPEC).splits["train"].images is files
    turned = Dataset(("a",), {"train": split(arrays), "val": split(files)})
    assert decoded(turned, 1_000_000, SPEC).splits["train"].images is arrays


@pytest.mark.parametrize("max_bytes", [1_000_000, 200, 0])
def test_fitted_images_of_val_are_what_evaluation_makes_of_them(files, max_bytes):
    data = Dataset(("a",), {"train": split(files), "val": split(files)})
    kept = fitted(data, max_bytes, SPEC).images
    for _ in range(2):
        for i in range(len(files)):
            assert np.array_equal(normalise(kept[i], SPEC), prepare(files[i], SPEC))


def test_val_is_read_once_and_leaves_the_rest_to_training(files):
    data = Dataset(("a",), {"train": split(files), "val": split(files)})
    kept, need = fitted(data, 10_000, SPEC).images, 3 * 4 * 5 * 3
    before = pixels(kept)
    for path in files.paths:
        path.unlink()
    assert same(pixels(kept), before)
    assert len(kept._pixels) == need
    assert len(decoded(data, 10_000, SPEC).splits["train"].images._pixels) == 10_000 - need
    assert len(fitted(data, 100, SPEC).images._pixels) == 50  # its share of the images, no more


def test_auto_is_a_tenth_of_the_memory_and_a_number_wins(monkeypatch):
    monkeypatch.setattr("xfer.data.decode_cache.available", lambda: 23_400_000_000)
    value, why = decoded_limit("auto")
    assert value == 2.34 and "a tenth of the 23.4 GB" in why
    assert decoded_limit(0.5)[0] == 0.5 and decoded_limit(0)[0] == 0


@pytest.mark.parametrize("typed", ["much", "-1", "[1]"])
def test_other_words_and_negative_numbers_are_refused(typed, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.decoded_gb"):
        xfer.run("digits_freeze", [f"data.decoded_gb={typed}", f"run.dir={tmp_path}/x"])


def test_what_is_kept_changes_no_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders(tmp_path / "data", {f"{split}/{c}": 8 for split in ("train", "val") for c in "ab"})
    typed = ["data.root=data", "data.batch_size=8", "data.workers=0", "augment=standard"]
    typed += ["backbone=digits_resnet", "source=digits_0_4", "freeze=none", "optim=sgd"]
    opened, read = [], Files.__getitem__
    monkeypatch.setattr(Files, "__getitem__", lambda f, i: opened.append(i) or read(f, i))
    texts, counts = [], []
    for limit in ("auto", "0"):
        opened.clear()
        work = ["stages=[fit]", "trainer.max_epochs=2", f"data.decoded_gb={limit}"]
        folder = xfer.run(overrides=[*typed, *work]).folder
        rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        texts.append([{k: v for k, v in r.items() if k not in TIMES} for r in rows])
        counts.append(len(opened))
    assert texts[0] == texts[1] and len(texts[0]) == 2
    assert counts[0] < counts[1], "nothing was kept"


TIMES = ("epoch_s", "step_ms", "data_share")


def test_the_share_of_time_that_training_waits_for_data_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick, clock, late = Arrays.__getitem__, time.perf_counter, [0.0]

    def slow(self, index):
        late[0] += 1  # by the clock, so that no machine takes as long for the steps
        return quick(self, index)

    monkeypatch.setattr(Arrays, "__getitem__", slow)
    monkeypatch.setattr("time.perf_counter", lambda: clock() + late[0])
    typed = ["stages=[fit,report]", "trainer.max_epochs=1", "data.workers=0", "features=never"]
    folder = xfer.run("digits_sgd", [*typed, "data.digits=[5,6]"]).folder
    share = json.loads((folder / "result.json").read_text())["timing"]["data_share"]
    assert 0.5 < share < 1
    assert f"{100 * share:.0f} % of the training time" in (folder / "report.md").read_text()
