"""Files decoded once: the same pictures, in memory that worker processes share."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

import xfer
from xfer.decoded import Decoded, decoded
from xfer.images import Arrays, Files
from xfer.types import Dataset, Samples


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


def test_only_files_are_kept_and_zero_keeps_none(files):
    arrays = Arrays(np.zeros((2, 4, 4), np.uint8))
    data = Dataset(("a",), {"train": split(files), "val": split(arrays)})
    found = decoded(data, 0.001)
    assert isinstance(found.splits["train"].images, Decoded)
    assert found.splits["val"].images is arrays
    assert decoded(data, 0).splits["train"].images is files


def test_the_share_of_time_that_training_waits_for_data_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = Arrays.__getitem__

    def slow(self, index):
        time.sleep(0.005)
        return quick(self, index)

    monkeypatch.setattr(Arrays, "__getitem__", slow)
    typed = ["stages=[fit,report]", "trainer.max_epochs=2", "data.workers=0", "features=never"]
    folder = xfer.run("digits_sgd", typed).folder
    share = json.loads((folder / "result.json").read_text())["timing"]["data_share"]
    assert 0.5 < share < 1
    assert f"{share:.0%} of the training time" in (folder / "report.md").read_text()
