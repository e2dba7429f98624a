"""Figures and heat maps of an earlier run are read again where they would come out the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from xfer.core.errors import OutputError
from xfer.core.types import InputSpec, Predictions, Samples
from xfer.report import heat as heat_module
from xfer.report.heat import Heat, heat_of
from xfer.report.image_tiles import INFERNO
from xfer.report.plot import Figures
from xfer.training.features.store import Store


class Drawing:
    """A figure with a text in it, or none; counts how often it is drawn."""

    def __init__(self, text: str = "one") -> None:
        self.text, self.count = text, 0

    def __call__(self) -> Figure | None:
        self.count += 1
        if not self.text:
            return None
        figure = Figure(figsize=(1, 1))
        figure.text(0.1, 0.5, self.text)
        return figure


def figures(tmp_path: Path, name: str) -> Figures:
    return Figures(tmp_path / name, Store(tmp_path / "cache", 1.0))


def test_a_figure_is_drawn_once_and_is_the_same_file(tmp_path: Path) -> None:
    drawing = Drawing()
    for run in ("a", "b"):
        figures(tmp_path, run).draw("f.png", {"text": "one"}, drawing)
    Figures(tmp_path / "c", None).draw("f.png", {"text": "one"}, drawing)
    assert drawing.count == 2, "by the first, and by the one without a store"
    data = [(tmp_path / run / "f.png").read_bytes() for run in ("a", "b", "c")]
    assert data[0].startswith(b"\x89PNG") and data[0] == data[1] == data[2]


@pytest.mark.parametrize(
    ("name", "shows"), [("g.png", {"text": "one"}), ("f.png", {"text": "two"}), ("f.png", {})]
)
def test_another_figure_is_drawn(tmp_path: Path, name: str, shows: dict[str, Any]) -> None:
    figures(tmp_path, "a").draw("f.png", {"text": "one"}, Drawing())
    other = Drawing("two")
    figures(tmp_path, "b").draw(name, shows, other)
    assert other.count == 1


@pytest.mark.parametrize(
    "shows",
    [None, {"text": "狼"}, {"auroc": float("nan")}, {"loss": np.float32(1)}],
    ids=["unknown", "another font", "no number", "no JSON"],
)
def test_what_nobody_can_vouch_for_is_drawn_each_time(tmp_path: Path, shows: Any) -> None:
    drawing = Drawing()
    for run in ("a", "b"):
        figures(tmp_path, run).draw("f.png", shows, drawing)
    assert drawing.count == 2


def test_where_there_is_nothing_to_draw_an_earlier_figure_goes(tmp_path: Path) -> None:
    for run in ("a", "b"):
        made = figures(tmp_path, run)
        made.draw("f.png", {"text": "one"}, Drawing())
        assert made.draw("f.png", {"text": ""}, Drawing("")) is None
        assert not (tmp_path / run / "f.png").exists()


def test_a_spoilt_figure_is_drawn_again_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawing = Drawing()
    figures(tmp_path, "a").draw("f.png", {"text": "one"}, drawing)
    (entry,) = (tmp_path / "cache").glob("*.npy")
    data = bytearray(entry.read_bytes())
    data[-20] ^= 1
    entry.write_bytes(data)
    figures(tmp_path, "b").draw("f.png", {"text": "one"}, drawing)
    assert drawing.count == 2 and "sha256" in caplog.text
    assert (tmp_path / "a" / "f.png").read_bytes() == (tmp_path / "b" / "f.png").read_bytes()


class _Full:
    def content(self, key: Any, make: Callable[[], bytes]) -> tuple[bytes, bool]:
        raise OutputError("cache", "cannot be written (full)", "free space", 12)


def test_a_full_cache_costs_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    full: Any = _Full()
    assert Figures(tmp_path, full).draw("f.png", {}, Drawing())
    assert "f.png is not cached: cache: cannot be written (full)" in caplog.text


def test_the_colours_of_a_map_are_those_of_matplotlib() -> None:
    shades = colormaps["inferno"](np.linspace(0, 1, len(INFERNO) // 3))[:, :3]
    assert (shades * 255).round().astype(np.uint8).tobytes() == INFERNO


# ---- heat maps


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4, 2)).eval()


SPEC = InputSpec((16, 16), 16, "bilinear", (0.5,) * 3, (0.5,) * 3)


def given(sha256: str = "0" * 64, likes: int = 0) -> tuple[Predictions, Samples]:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(6)]
    names, labels = tuple(f"{i}.png" for i in range(6)), np.arange(6) % 2
    logits = np.zeros((6, 2), np.float32)
    logits[:, likes] = 1
    answers = Predictions(names, logits, labels, ("a", "b"))
    return answers, Samples(names, labels, pictures, sha256)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many maps each call computed."""
    counts: list[int] = []
    heat_at = heat_module.heat_at

    def counted(*args: Any) -> Heat:
        counts.append(len(args[1]))
        return heat_at(*args)

    monkeypatch.setattr(heat_module, "heat_at", counted)
    return counts


def test_maps_are_made_once_and_read_bit_for_bit(
    net: nn.Module, made: list[int], tmp_path: Path
) -> None:
    store = Store(tmp_path, 1.0)
    first, again = (heat_of(net, *given(), SPEC, 4, store) for _ in range(2))
    without = heat_of(net, *given(), SPEC, 4)
    assert made == [4, 4], "by the first, and by the one without a store"
    assert first.maps.keys() == again.maps.keys() and first.said == again.said != ""
    for heat in (again, without):
        assert heat.right == first.right
        for i, cells in first.maps.items():
            assert heat.maps[i].dtype == np.float32
            np.testing.assert_array_equal(heat.maps[i], cells)


def test_other_maps_are_made(net: nn.Module, made: list[int], tmp_path: Path) -> None:
    store, other = Store(tmp_path, 1.0), copy.deepcopy(net)
    with torch.no_grad():
        next(iter(other.parameters()))[0] += 1e-6
    heat_of(net, *given(), SPEC, 4, store)
    heat_of(other, *given(), SPEC, 4, store)
    heat_of(net, *given("1" * 64), SPEC, 4, store)
    heat_of(net, *given(likes=1), SPEC, 4, store)
    heat_of(net, *given(), SPEC, 6, store)
    heat_of(net, *given(""), SPEC, 4, store)
    heat_of(net, *given(""), SPEC, 4, store)
    assert made == [4, 4, 4, 4, 5, 4, 4]
    hooked = copy.deepcopy(net)
    hooked.register_forward_hook(lambda *seen: None)
    for _ in range(2):
        heat_of(hooked, *given(), SPEC, 4, store)
    assert len(made) == 9


def test_spoilt_maps_are_made_again_with_a_word(
    net: nn.Module, made: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path, 1.0)
    first = heat_of(net, *given(), SPEC, 4, store)
    (entry,) = tmp_path.glob("*.npy")
    entry.write_bytes(entry.read_bytes()[:-5])
    again = heat_of(net, *given(), SPEC, 4, store)
    assert len(made) == 2 and "bytes, not" in caplog.text
    np.testing.assert_array_equal([*first.maps.values()], [*again.maps.values()])
