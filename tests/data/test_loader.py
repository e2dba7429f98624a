from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import folders, picture
from PIL import Image

from xfer.core.errors import DataError, XferError
from xfer.core.types import InputSpec, Samples
from xfer.data.augment import Strong
from xfer.data.image import Files
from xfer.data.loader import EvalLoader, ImageDataset, TrainLoader
from xfer.data.preprocess import prepare
from xfer.data.sampler import EpochSampler, RankShare, batches, shared_size

SPEC = InputSpec((8, 8), 8, "bilinear", (0.5,) * 3, (0.5,) * 3)


class Drawn:
    """Pictures drawn when asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __getitem__(self, index: int) -> object:
        return picture(index)

    def __len__(self) -> int:
        return self.count


def samples(count: int) -> Samples:
    names = tuple(str(i) for i in range(count))
    return Samples(names, np.arange(count, dtype=np.int64), Drawn(count), "")  # type: ignore[arg-type]


def loader(count: int = 11, workers: int = 0, seed: int = 0, size: int = 3) -> TrainLoader:
    pictures = ImageDataset(samples(count), Strong(mixup=0.2).transform(SPEC), seed)
    return TrainLoader(pictures, size, workers, pin=False, seed=pictures.seed)


def epoch(given: TrainLoader, number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    given.order.set_epoch(number)
    return list(given)


def same(
    one: list[tuple[torch.Tensor, torch.Tensor]], other: list[tuple[torch.Tensor, torch.Tensor]]
) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def orders(count: int, size: int, seed: int, number: int) -> list[list[int]]:
    order = EpochSampler(count, size, seed)
    order.set_epoch(number)
    return [[index for _, index in batch] for batch in order]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    found = {(s, e): orders(20, 4, s, e) for s in (0, 1) for e in (0, 1)}
    torch.rand(5)
    assert all(found[key] == orders(20, 4, *key) for key in found)
    assert len({str(value) for value in found.values()}) == 4
    assert all(sorted(chain(*value)) == list(range(20)) for value in found.values())


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (9, 4, [4, 5]),
        (8, 4, [4, 4]),
        (10, 4, [4, 4, 2]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
        (5, 9, [5]),
    ],
)
def test_a_remainder_of_one_image_joins_the_batch_before(
    count: int, size: int, expected: list[int]
) -> None:
    found = orders(count, size, 0, 0)
    assert [len(batch) for batch in found] == expected
    assert batches(count, size) == len(expected) == len(EpochSampler(count, size, 0))
    assert sorted(chain(*found)) == list(range(count))


def test_batches_are_the_same_with_and_without_workers_and_across_epochs() -> None:
    alone, helped = loader(), loader(workers=2)
    for number in (0, 1, 3):
        assert same(epoch(alone, number), epoch(helped, number))
    assert not same(epoch(alone, 0), epoch(alone, 1))
    assert not same(epoch(alone, 0), epoch(loader(seed=1), 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_behind_any_batch(workers: int) -> None:
    whole = epoch(loader(), 2)
    for given in range(len(whole)):
        first = loader()
        first.order.set_epoch(2)
        running: Iterator[object] = iter(first)
        for _ in range(given):
            next(running)
        state = first.state_dict()
        assert state == {"position": given}
        again = loader(workers=workers if given == 2 else 0)
        again.load_state_dict(state)
        assert same(epoch(again, 2), whole[given:])
        assert same(epoch(again, 3), epoch(loader(), 3)), "the next epoch is whole again"


def test_a_finished_epoch_is_the_beginning_of_the_next() -> None:
    given = loader()
    epoch(given, 0)
    assert given.state_dict() == {"position": 0}


def test_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    pictures = ImageDataset(samples(4), Strong().transform(SPEC), seed=5)
    first = pictures[(1, 2)][0]
    torch.rand(7)
    pictures[(0, 0)]
    assert np.array_equal(pictures[(1, 2)][0], first)
    assert not np.array_equal(pictures[(2, 2)][0], first)
    other = ImageDataset(samples(4), Strong().transform(SPEC), seed=6)
    assert not np.array_equal(other[(1, 2)][0], first)


def test_drawing_an_image_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    ImageDataset(samples(2), Strong().transform(SPEC))[(0, 0)]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_every_image_once_in_order(workers: int) -> None:
    plain = ImageDataset(samples(11), lambda image: prepare(image, SPEC))
    given = EvalLoader(plain, 4, workers, pin=False)
    for _ in range(2):
        images, labels = zip(*given, strict=True)
        assert [len(x) for x in images] == [4, 4, 3]
        assert torch.cat(labels).tolist() == list(range(11))
        expected = np.stack([prepare(picture(i), SPEC) for i in range(11)])
        assert np.array_equal(torch.cat(images).numpy(), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_broke_since_the_scan_is_named(tmp_path: Path, workers: int) -> None:
    files = sorted(folders(tmp_path, {"a": 4}).rglob("*.jpg"))
    files[2].write_bytes(b"no image")
    broken = Samples(tuple(map(str, files)), np.zeros(4, np.int64), Files(tuple(files)), "")
    plain = ImageDataset(broken, lambda image: prepare(image, SPEC))
    with pytest.raises(DataError, match=files[2].name) as told:
        list(EvalLoader(plain, 2, workers, pin=False))
    assert told.value.number == 310 and "\n" not in str(told.value)
    with pytest.raises(DataError, match=files[2].name):
        list(TrainLoader(plain, 2, workers, pin=False, seed=0))


def counted(order: EpochSampler) -> list[tuple[int, int]]:
    assert order.labels is not None
    found = Counter(order.labels[key[1]] for batch in order.groups() for key in batch)
    return sorted(found.items())


def test_a_balanced_order_shows_every_class_as_often_and_every_image_of_a_class_too() -> None:
    labels = [0] * 70 + [1] * 25 + [2] * 5
    order = EpochSampler(100, 8, 3)
    order.labels = labels
    seen: Counter[int] = Counter()
    for number in range(40):
        order.set_epoch(number)
        keys = list(chain(*order.groups()))
        assert len(keys) == len(set(keys)) == 100, "the same augmentation comes twice"
        assert sorted(count for _, count in counted(order)) == [33, 33, 34]
        per_image = Counter(key[1] for key in keys)
        assert {per_image[i] for i in range(95, 100)} <= {6, 7}
        seen.update(per_image)
    assert set(seen) == set(range(100)), "some image never comes"


def test_a_balanced_order_depends_on_seed_and_epoch_alone() -> None:
    def drawn(seed: int, number: int) -> list[list[tuple[int, ...]]]:
        order = EpochSampler(20, 4, seed)
        order.labels = [0] * 17 + [1] * 3
        order.set_epoch(number)
        return order.groups()

    found = {(s, e): drawn(s, e) for s in (0, 1) for e in (0, 1)}
    torch.rand(5)
    assert all(found[key] == drawn(*key) for key in found)
    assert len({str(value) for value in found.values()}) == 4


def several_labels() -> np.ndarray:
    """100 images of a common label, a rare one that comes with it or alone, and one unknown."""
    labels = np.zeros((100, 3), np.int64)
    labels[:70, 0] = labels[60:75, 1] = labels[:40:2, 2] = 1
    labels[1:40:2, 2] = -1
    return labels


def test_several_labels_are_balanced_by_the_rarest_of_each_image() -> None:
    """Counted here in plain Python: in proportion to the largest 1 / count of an image's labels;
    those without one are a class more."""
    labels = several_labels()
    has = [[c for c in range(3) if row[c] == 1] or ["none"] for row in labels.tolist()]
    counts = Counter(chain(*has))
    assert counts == {0: 70, 1: 15, 2: 20, "none": 25}
    odds = [max(1 / counts[c] for c in some) for some in has]
    expected = [100 * one / sum(odds) for one in odds]
    order, seen = EpochSampler(100, 8, 3), Counter[int]()
    order.labels = labels
    for number in range(200):
        order.set_epoch(number)
        keys = list(chain(*order.groups()))
        assert len(keys) == len(set(keys)) == 100, "the same augmentation comes twice"
        assert all(key[0] == number and key[2:] in ((), (1,), (2,)) for key in keys)
        per_image = Counter(key[1] for key in keys)
        assert all(abs(per_image[i] - n) < 1 for i, n in enumerate(expected))
        seen.update(per_image)
    assert all(abs(seen[i] / 200 - n) < 0.15 for i, n in enumerate(expected))
    order.set_epoch(7)
    assert order.groups() == order.groups()
    first = order.groups()
    order.set_epoch(8)
    assert order.groups() != first


def test_few_images_of_several_labels_come_as_often_as_they_should_too() -> None:
    order, seen = EpochSampler(3, 3, 5), Counter[int]()
    order.labels = np.array([[1, 0], [0, 1], [0, 1]])
    for number in range(600):
        order.set_epoch(number)
        seen.update(key[1] for key in chain(*order.groups()))
    assert [seen[i] / 600 for i in range(3)] == pytest.approx([1.5, 0.75, 0.75], abs=0.08)


def test_an_image_that_comes_again_is_augmented_anew() -> None:
    pictures = ImageDataset(samples(4), Strong().transform(SPEC), seed=5)
    assert not np.array_equal(pictures[(1, 2)][0], pictures[(1, 2, 1)][0])
    assert np.array_equal(pictures[(1, 2, 1)][0], pictures[(1, 2, 1)][0])


@pytest.mark.parametrize(
    ("count", "size", "ranks"), [(11, 2, 2), (717, 16, 2), (50, 7, 3), (9, 4, 4)]
)
def test_the_parts_of_the_ranks_are_the_batches_of_one_process(count: int, size: int, ranks: int):
    given = [EpochSampler(count, size, 3, RankShare(rank, ranks)) for rank in range(ranks)]
    for order in given:
        order.set_epoch(1)
    together = [sorted(key for part in parts for key in part) for parts in given[0].parts()]
    assert sorted(key for batch in together for key in batch) == [(1, i) for i in range(count)]
    own = [order.groups() for order in given]
    assert [sorted(k for part in turn for k in part) for turn in zip(*own, strict=True)] == together
    whole = EpochSampler(count, size * ranks, 3)
    whole.set_epoch(1)
    same = zip(together[:-1], whole.groups(), strict=False)
    assert all(batch == sorted(group) for batch, group in same)
    sizes = [len(part) for groups in own for part in groups]
    assert min(sizes) >= 2 and all(len(order) == len(together) for order in given)


@pytest.mark.parametrize(("count", "size", "ranks"), [(13, 4, 2), (50, 7, 3)])
def test_weighted_means_of_the_ranks_are_the_mean_over_the_images(
    count: int, size: int, ranks: int
):
    given = [EpochSampler(count, size, 0, RankShare(rank, ranks)) for rank in range(ranks)]
    for number, parts in enumerate(given[0].parts()):
        means = [sum(index for _, index in part) / len(part) for part in parts]
        weighted = [m * order.weight(number) for m, order in zip(means, given, strict=True)]
        indices = [index for part in parts for _, index in part]
        assert sum(weighted) / ranks == pytest.approx(sum(indices) / len(indices))


@pytest.mark.parametrize(
    ("count", "size", "ranks"), [(11, 4, 2), (179, 64, 3), (5, 64, 4), (4, 1, 4)]
)
def test_validation_is_dealt_out_and_never_padded(count: int, size: int, ranks: int) -> None:
    pictures = ImageDataset(samples(count), lambda image: np.zeros((3, 2, 2), np.float32))
    size = shared_size(count, size, ranks)
    dealt = [EvalLoader(pictures, size, 0, False, RankShare(rank, ranks)) for rank in range(ranks)]
    labels = [[batch[1].tolist() for batch in loader] for loader in dealt]
    assert all(labels)
    assert sorted(label for own in labels for batch in own for label in batch) == list(range(count))
    turns = [batch for turn in zip_longest(*labels) for batch in turn if batch is not None]
    assert [label for batch in turns for label in batch] == list(range(count))


def test_an_image_that_resizing_would_make_huge_is_named_and_the_others_are_answered(tmp_path):
    from xfer.core.types import InputSpec
    from xfer.evaluation.evaluate import answers
    from xfer.evaluation.predict import find

    for name, size in (("a", (40, 30)), ("line", (60_000, 1)), ("z", (30, 40))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    spec = InputSpec((8, 8), 256, "bilinear", (0.5,) * 3, (0.5,) * 3)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    broken: list[XferError] = []
    found = answers(net, find([str(tmp_path)]), spec, ("x", "y"), broken=broken)
    assert [Path(name).stem for name in found.names] == ["a", "z"]
    assert "line.png: 60000 x 1 pixels are 15360000 x 256 after resizing" in str(broken[0])
