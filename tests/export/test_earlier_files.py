"""A file that an earlier run has proved is copied where nothing could be another, there alone."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from xfer import api
from xfer.core.errors import ExportError, OutputError
from xfer.core.files import file_sha256
from xfer.core.types import Card, Exported
from xfer.export import Evidence, Safetensors, export
from xfer.export.earlier_files import earlier_files
from xfer.export.onnx_graph import GraphCache
from xfer.training.features.store import Store

Images = np.ndarray[Any, np.dtype[np.float32]]
SEEN = "0" * 64


@dataclass
class Runs:
    """Exports of one network, each in a folder of its own; ``asked`` counts how often the images
    were wanted: a copied file needs none."""

    net: nn.Module
    card: Card
    images: Images
    folder: Path
    store: Store
    asked: int = 0

    def export(self, name: str, seen: str = SEEN, tolerance: float = 1e-3) -> Exported:
        def given() -> Images:
            self.asked += 1
            return self.images

        evidence = Evidence(graphs=GraphCache(self.store), sha256=seen)
        place = self.folder / name
        writers = [Safetensors()]
        (found,) = export(self.net, given, writers, self.card, place, tolerance, evidence)
        assert found.sha256 == file_sha256(place / found.file)
        assert json.loads((place / "parity.json").read_text())[0]["facts"] == found.facts
        return found

    def entry(self) -> Path:
        (entry,) = self.store.folder.glob("*.npy")
        return entry


@pytest.fixture
def runs(digits: api.Model, images: Images, tmp_path: Path) -> Runs:
    made = Runs(digits.net, digits.card, images, tmp_path, Store(tmp_path / "cache", 1.0))
    assert "proved_at" not in made.export("first").facts
    assert made.asked == 1
    return made


def test_the_same_export_copies_the_file_and_says_when_it_was_compared(runs: Runs) -> None:
    first, again = runs.folder / "first", runs.export("again")
    assert runs.asked == 1, "nothing was computed"
    assert again.facts["proved_at"].endswith("+00:00")
    assert (runs.folder / "again" / again.file).read_bytes() == (first / again.file).read_bytes()
    facts = {key: value for key, value in again.facts.items() if key != "proved_at"}
    (row,) = json.loads((first / "parity.json").read_text())
    assert json.loads(json.dumps(replace(again, facts=facts).__dict__)) == row


def other_weights(runs: Runs) -> None:
    runs.net = copy.deepcopy(runs.net)
    with torch.no_grad():
        last = [*runs.net.parameters()][-1]
        last[0] += 1e-6 * last[0].abs() + 1e-6


def other_layers(runs: Runs) -> None:
    runs.net = copy.deepcopy(runs.net)
    norm = next(m for m in runs.net.modules() if isinstance(m, nn.BatchNorm2d))
    norm.eps *= 1.001


CHANGES: dict[str, Callable[[Runs], dict[str, Any] | None]] = {
    "other weights": other_weights,
    "other layers": other_layers,
    "other names": lambda runs: setattr(
        runs, "card", replace(runs.card, classes=(*runs.card.classes[:-1], "other"))
    ),
    "other images": lambda runs: {"seen": "1" * 64},
    "another tolerance": lambda runs: {"tolerance": 2e-3},
    "nobody knows the images": lambda runs: {"seen": ""},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_could_make_another_file_or_proof_does(runs: Runs, change: str) -> None:
    given = CHANGES[change](runs) or {}
    assert "proved_at" not in runs.export("again", **given).facts
    assert runs.asked == 2


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


SPOILT: dict[str, Callable[[Path], None]] = {
    "removed": Path.unlink,
    "a bit flipped": lambda path: flipped(path, -10),
    "cut short": lambda path: os.truncate(path, 100),
    "a folder": lambda path: (path.unlink(), path.mkdir())[1],
    "empty": lambda path: path.write_bytes(b"") and None,
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_file_that_is_not_what_was_proved_is_written_and_tried_anew(
    runs: Runs, spoil: str
) -> None:
    right = (runs.folder / "first" / "model.safetensors").read_bytes()
    SPOILT[spoil](runs.folder / "first" / "model.safetensors")
    assert "proved_at" not in runs.export("again").facts
    assert runs.asked == 2
    assert (runs.folder / "again" / "model.safetensors").read_bytes() == right
    assert "proved_at" in runs.export("third").facts, "that of the second run"
    assert runs.asked == 2


def rewritten(runs: Runs, **row: Any) -> None:
    """What is stored, with other facts under a manifest that vouches for them."""
    evidence = Evidence(graphs=GraphCache(runs.store), sha256=SEEN)
    earlier = earlier_files(runs.net, runs.card, 1e-3, evidence)
    assert earlier is not None
    key = earlier._key(Safetensors())
    assert key is not None
    record = json.loads(runs.store.known(key) or b"")
    record["row"] |= row
    runs.store.forget(key, "")
    runs.store.content(key, lambda: json.dumps(record).encode())


@pytest.mark.parametrize(
    "row",
    [
        {"max_abs_diff": 1.0},
        {"file": "model.onnx"},
        {"agree": "all"},
        {"more": 1},
        {"sha256": "0" * 64},
    ],
    ids=lambda row: next(iter(row)),
)
def test_a_record_that_no_run_writes_is_not_used(runs: Runs, row: dict[str, Any]) -> None:
    rewritten(runs, **row)
    assert "proved_at" not in runs.export("again").facts
    assert runs.asked == 2


def test_a_spoilt_record_is_not_used_and_said(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    flipped(runs.entry(), -10)
    assert "proved_at" not in runs.export("again").facts
    assert "sha256" in caplog.text and runs.asked == 2
    assert "proved_at" in runs.export("third").facts


def test_code_of_ones_own_is_tried_each_time(runs: Runs) -> None:
    runs.net = copy.deepcopy(runs.net)
    runs.net.register_forward_hook(lambda *seen: None)
    for turn in (1, 2):
        assert "proved_at" not in runs.export(f"again{turn}").facts
    assert runs.asked == 3


@dataclass(frozen=True)
class OfTheUser:
    """A writer whose code may be another one tomorrow."""

    file: ClassVar[str] = "model.bin"

    def write(self, net: nn.Module, images: Images, card: Card, path: Path) -> dict[str, Any]:
        path.write_bytes(b"1")
        return {}

    def open(self, path: Path, net: nn.Module) -> Any:
        return lambda images: net(torch.from_numpy(images)).detach().numpy()


def test_so_is_a_file_of_a_writer_of_ones_own(runs: Runs) -> None:
    evidence = Evidence(graphs=GraphCache(runs.store), sha256=SEEN)
    for turn in (1, 2):
        place = runs.folder / f"own{turn}"
        (found,) = export(runs.net, runs.images, [OfTheUser()], runs.card, place, 1e-3, evidence)
        assert "proved_at" not in found.facts


def test_what_was_refused_is_refused_again(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Safetensors.write

    def wrong(self: Safetensors, net: nn.Module, *rest: Any) -> Any:
        worse = copy.deepcopy(net)
        with torch.no_grad():
            [*worse.parameters()][-1].add_(torch.arange(len([*worse.parameters()][-1])))
        return write(self, worse, *rest)

    monkeypatch.setattr(Safetensors, "write", wrong)
    for turn in (1, 2):
        with pytest.raises(ExportError, match="answers differently"):
            runs.export(f"wrong{turn}", tolerance=5e-4)
        assert not (runs.folder / f"wrong{turn}" / "model.safetensors").exists()
    assert runs.asked == 3


class _Full:
    def known(self, key: Any) -> bytes | None:
        raise OutputError("cache", "cannot be written (full)", "free space", 12)

    def content(self, key: Any, make: Callable[[], bytes]) -> tuple[bytes, bool]:
        raise OutputError("cache", "cannot be written (full)", "free space", 12)

    def forget(self, key: Any, reason: str) -> None:
        pass


def test_a_cache_that_cannot_be_written_costs_a_line(
    digits: api.Model, images: Images, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evidence = Evidence(graphs=GraphCache(_Full()), sha256=SEEN)
    export(digits.net, images, [Safetensors()], digits.card, tmp_path, 1e-3, evidence)
    assert "not remembered: cache: cannot be written (full)" in caplog.text
