from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from xfer.core.checksum import fingerprint
from xfer.core.errors import WeightsError
from xfer.core.run_folder import best_checkpoint
from xfer.core.torch_file import load_tensors, save_tensors
from xfer.core.types import Card, InputSpec
from xfer.weights.formats.checkpoint_format import FORMAT, Snapshot, read_snapshot, write_snapshot

SPEC = InputSpec((32, 32), 36, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
CARD = Card(
    {"_target_": "xfer.models.backbone.Timm", "name": "resnet18"},
    {"_target_": "x"},
    ("a", "b"),
    SPEC,
)
STATE = {"w": torch.randn(3, 2), "n": torch.tensor(4), "h": torch.ones(2, dtype=torch.bfloat16)}


def test_a_snapshot_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    write_snapshot(path, Snapshot(CARD, STATE, {"epoch": 3, "value": 0.5}, "print"))
    found = read_snapshot(path)
    assert (found.card, found.progress, found.frozen) == (CARD, {"epoch": 3, "value": 0.5}, "print")
    assert list(found.state) == list(STATE)
    for name, tensor in STATE.items():
        assert torch.equal(found.state[name], tensor) and found.state[name].dtype == tensor.dtype


def test_a_resume_files_names_are_the_networks_own(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "a", Snapshot(CARD, {f"net.{n}": t for n, t in STATE.items()}))
    content = load_tensors(tmp_path / "a")
    content["state_dict"]["train_loss.mean_value"] = torch.ones(1)
    save_tensors(tmp_path / "b", content | {"loops": {}, "ema": {"w": torch.zeros(3, 2)}})
    found = read_snapshot(tmp_path / "b").state
    assert list(found) == list(STATE) and torch.equal(found["n"], STATE["n"])
    assert not found["w"].any(), "the average is what was scored"


def test_a_view_of_a_large_tensor_is_saved_alone(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "a", Snapshot(CARD, {"w": torch.zeros(1000, 1000).t()[:, :2]}))
    assert (tmp_path / "a").stat().st_size < 50_000


@pytest.mark.parametrize("content", [{"w": torch.ones(1)}, {"xfer": {}}, {"xfer": 1}, [1], 3])
def test_a_foreign_file_is_told_where_it_belongs(tmp_path: Path, content: object) -> None:
    save_tensors(tmp_path / "a", content)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"not an xfer checkpoint.*source=file"):
        read_snapshot(tmp_path / "a")


@pytest.mark.parametrize(
    "content",
    [
        save({"w": torch.ones(1)}),
        b'<?xml version="1.0"?>\n<net name="a">',
        b"\x1c\0\0\0TFL3" + bytes(99),
    ],
)
def test_an_exported_file_is_told_from_a_damaged_checkpoint(tmp_path: Path, content: bytes) -> None:
    write_snapshot(best_checkpoint(tmp_path), Snapshot(CARD, STATE))
    file = tmp_path / "export" / "model"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"E405: .*and no checkpoint of xfer") as told:
        read_snapshot(file)
    typed = told.value.fix.removeprefix("type checkpoint.path=").partition(",")[0]
    assert read_snapshot(best_checkpoint(Path(typed))).card == CARD


def test_a_newer_format_asks_for_a_newer_xfer(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "a", Snapshot(CARD, STATE))
    content = load_tensors(tmp_path / "a")
    content["xfer"]["format"] = FORMAT + 1
    save_tensors(tmp_path / "a", content)
    with pytest.raises(WeightsError, match=rf"format {FORMAT + 1}.*update xfer"):
        read_snapshot(tmp_path / "a")


def test_the_fingerprint_sees_name_type_shape_and_every_bit() -> None:
    base = fingerprint(STATE.items())
    assert fingerprint(reversed(list(STATE.items()))) == base
    changed = [
        STATE | {"w": STATE["w"].reshape(2, 3)},
        STATE | {"w": STATE["w"].nextafter(torch.tensor(9.0))},
        STATE | {"n": STATE["n"].int()},
        {("v" if n == "w" else n): t for n, t in STATE.items()},
    ]
    assert len({base, *(fingerprint(state.items()) for state in changed)}) == 5


def test_cards_are_equal_by_their_facts() -> None:
    assert Card.from_plain(CARD.to_plain()) == CARD
    assert replace(CARD, experiment="x") != CARD
