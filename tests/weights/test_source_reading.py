from __future__ import annotations

import io
import os
import re
import resource
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import BACKBONES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from weights_files import (
    BOMBS,
    DAMAGED,
    FOREIGN,
    GOOD,
    TENSOR,
    State,
    npz_bytes,
    safetensors_bytes,
    state,
    torch_bytes,
    torch_zip,
    with_member,
)

from xfer.core.errors import SafetyError, WeightsError, XferError
from xfer.weights.formats import pickle_scan
from xfer.weights.formats.detect import kind_of
from xfer.weights.formats.pickle_scan import CALLABLE
from xfer.weights.formats.read import read
from xfer.weights.formats.state_dict import AVERAGES, PLAIN
from xfer.weights.optimizer_state import TorchState
from xfer.weights.source import File


def written(folder: Path, data: bytes, name: str = "weights.bin") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def equal(ours: Any, theirs: State) -> bool:
    return list(ours) == list(theirs) and all(
        torch.equal(t, theirs[n]) and t.dtype == theirs[n].dtype for n, t in ours.items()
    )


# Every kind that is read


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.npz", "a.ckpt", "a"])
@pytest.mark.parametrize("kind", GOOD)
def test_every_kind_is_read_whatever_it_is_called(tmp_path: Path, kind: str, name: str) -> None:
    path = written(tmp_path, GOOD[kind](state()), name)
    assert kind_of(path) == kind
    content = read(path)
    assert content.format == kind and content.asides == {} and content.optimizer is None
    ours = dict(content.state)
    if kind == "safetensors":  # its writer orders by width
        ours = {n: ours[n] for n in state()}
    assert equal(ours, state())


@pytest.mark.parametrize("kind", GOOD)
def test_the_file_source_keeps_what_the_reader_learned(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, GOOD[kind](state()))
    weights = File(str(path)).load(BACKBONES["digits_resnet"])
    assert (
        weights.kind == "file" and weights.origin == str(path) and len(weights.sha256 or "") == 64
    )
    assert weights.facts["format"] == kind and set(weights.state or {}) == set(state())


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    written(tmp_path, torch_bytes(state()), "blob")
    (tmp_path / "link.pt").symlink_to("blob")
    assert equal(read(tmp_path / "link.pt").state, state())


def test_metadata_of_safetensors_is_kept_when_it_is_small(tmp_path: Path) -> None:
    small = written(tmp_path, safetensors_bytes(state(), {"format": "pt", "author": "x"}))
    assert read(small).facts == {"metadata": {"format": "pt", "author": "x"}}
    large = written(tmp_path, safetensors_bytes(state(), {"text": "x" * 100_000}))
    assert read(large).facts == {}


def test_numpy_arrays_come_in_any_order_width_and_packing(tmp_path: Path) -> None:
    arrays = {
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "big": np.arange(3, dtype=">f8"),
        "scalar": np.float32(2.5),
        "block/kernel": np.zeros((2, 0, 3), np.int64),
        "labels": np.array(["cat", "dog"]),
    }
    content = read(written(tmp_path, npz_bytes(packed=True, **arrays)))
    assert content.asides == {"labels": "an array of text"}
    for name, tensor in content.state.items():
        assert np.array_equal(tensor.numpy(), arrays[name]), name
        assert tensor.shape == arrays[name].shape and tensor.is_contiguous()
    assert content.state["big"].dtype == torch.float64


def test_what_torch_writes_beside_tensors_is_read(tmp_path: Path) -> None:
    beside = {
        "epoch": 3,
        "milestones": Counter({10: 1, 20: 1}),
        "seen": {1, 2},
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "bytes": b"\x00\xff" * 1000,
        "complex": 1j,
        "large": 1 << 300,
        "layout": torch.strided,
    }
    for legacy in (True, False):
        # torch's own reader of legacy files has no storage for the newest types.
        beside |= {} if legacy else {"float8": torch.ones(2).to(torch.float8_e4m3fn)}
        data = torch_bytes({"state_dict": OrderedDict(state()), **beside}, legacy)
        content = read(written(tmp_path, data))
        assert equal(content.state, state())
        assert content.asides == dict.fromkeys(beside, "training state")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_modules_state_dict_is_read_with_its_metadata(tmp_path: Path, legacy: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    tied = {**module.state_dict(), "tied": module[0].weight, "view": module[0].weight.data[1:]}
    path = written(tmp_path, torch_bytes(module.state_dict(), legacy))
    assert equal(read(path).state, dict(module.state_dict()))
    found = read(written(tmp_path, torch_bytes(tied, legacy))).state
    assert torch.equal(found["view"], module[0].weight.data[1:])
    assert not any(t.requires_grad for t in found.values())


def test_a_thousand_tensors_with_adams_momenta_are_within_the_limits(tmp_path: Path) -> None:
    tensors = {f"layer.{i}.weight": torch.ones(1) for i in range(1000)}
    memory = {i: {"step": torch.ones(()), "exp_avg": torch.ones(1), "exp_avg_sq": torch.ones(1)}
              for i in range(1000)}  # fmt: skip
    optimizer = {"state": memory, "param_groups": [{"lr": 0.1, "params": list(range(1000))}]}
    path = written(tmp_path, torch_bytes({"model": tensors, "optimizer": optimizer}))
    assert len(read(path).state) == 1000


# Which entry is taken


@pytest.mark.parametrize("name", dict.fromkeys((*AVERAGES, *PLAIN)))
def test_every_known_name_is_found(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, torch_bytes({"epoch": 3, name: state()}))
    content = read(path)
    assert equal(content.state, state())
    assert content.facts == {"nested": name, "alternatives": []}
    assert content.asides == {"epoch": "training state"}


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("plain", ["state_dict", "model", "student", "teacher"])
def test_an_average_is_preferred_and_the_others_are_told(
    tmp_path: Path, average: str, plain: str
) -> None:
    path = written(tmp_path, torch_bytes({plain: state(1), average: state(2), "lr": 0.1}))
    content = read(path)
    assert equal(content.state, state(2))
    assert content.facts == {"nested": average, "alternatives": [plain]}
    assert content.asides == {plain: "other weights", "lr": "training state"}
    assert equal(read(path, plain).state, state(1))


def test_in_self_distillation_the_teacher_is_taken_but_never_before_a_model(
    tmp_path: Path,
) -> None:
    both = {"student": state(1), "teacher": state(2)}
    assert read(written(tmp_path, torch_bytes(both))).facts["nested"] == "teacher"
    three = both | {"model": state(3)}
    assert read(written(tmp_path, torch_bytes(three))).facts["nested"] == "model"


def test_weights_two_levels_down_are_found_and_named_by_their_dotted_path(tmp_path: Path) -> None:
    content = {"model": {"net": state(1), "ema": state(2), "decay": 0.9}, "epoch": 1}
    path = written(tmp_path, torch_bytes(content))
    found = read(path)
    assert equal(found.state, state(2))
    assert found.facts == {"nested": "model.ema", "alternatives": ["model.net"]}
    assert found.asides == {
        "epoch": "training state",
        "model.net": "other weights",
        "model.decay": "training state",
    }
    assert equal(read(path, "model.net").state, state(1))


def test_a_key_may_have_dots_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path, torch_bytes({"v1.0": {"a.b": state(4)}}))
    assert equal(read(path, "v1.0.a.b").state, state(4))


def test_a_wrong_key_offers_those_there_are(tmp_path: Path) -> None:
    path = written(tmp_path, torch_bytes({"state_dict": state(), "encoder": state(2)}))
    with pytest.raises(WeightsError, match=r"no entry 'state_dct'.*did you mean 'state_dict'"):
        read(path, "state_dct")
    with pytest.raises(WeightsError, match=r"no entry 'x'.*allowed: state_dict, encoder"):
        read(path, "x")
    with pytest.raises(WeightsError, match=r"no entry 'state_dict.y'"):
        read(path, "state_dict.y")


def test_a_key_of_what_holds_no_tensors_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, torch_bytes({"state_dict": state(), "epoch": 3}))
    with pytest.raises(WeightsError, match="'epoch' holds no tensors by name"):
        read(path, "epoch")


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_a_key_for_a_flat_file_is_told(tmp_path: Path, kind: str) -> None:
    with pytest.raises(WeightsError, match=r"no entries.*leave source\.key out"):
        read(written(tmp_path, GOOD[kind](state())), "state_dict")


def test_an_unknown_name_is_not_guessed_but_offered(tmp_path: Path) -> None:
    path = written(tmp_path, torch_bytes({"epoch": 1, "encoder": state(), "more": {"b": state()}}))
    with pytest.raises(WeightsError, match=r"encoder, more\.b.*source\.key=encoder"):
        read(path)
    assert equal(read(path, "encoder").state, state())


def test_entries_that_are_no_tensors_are_left_aside_by_name(tmp_path: Path) -> None:
    tensors = {**state(), "version": 2, "fc._extra_state": None, "q._extra_state": {"a": [1]}}
    content = read(written(tmp_path, torch_bytes(tensors)))
    assert equal(content.state, state())
    assert content.asides == {
        "version": "no tensor (int)",
        "fc._extra_state": "no tensor (NoneType)",
        "q._extra_state": "extra state of a module",
    }


@pytest.mark.parametrize("content", [[1], {}, {"a": 1}, {"state_dict": {"a": "b"}}, torch.ones(2)])
def test_a_file_without_tensors_by_name_is_told(tmp_path: Path, content: object) -> None:
    with pytest.raises(WeightsError, match="no tensors by name"):
        read(written(tmp_path, torch_bytes(content)))


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="'0' is a Tensor and no tensor by name"):
        read(written(tmp_path, torch_bytes({0: torch.ones(1)})))


def adam(module: torch.nn.Module) -> Any:
    optimizer = torch.optim.AdamW(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("name", ["optimizer", "optimizer_state_dict", "optim", "optimizer_states"])
@pytest.mark.parametrize("legacy", [False, True])
def test_the_optimizers_state_is_kept(tmp_path: Path, name: str, legacy: bool) -> None:
    module = torch.nn.Linear(2, 3)
    stored = [adam(module)] if name == "optimizer_states" else adam(module)
    path = written(tmp_path, torch_bytes({"model": module.state_dict(), name: stored}, legacy))
    content = read(path)
    assert isinstance(content.optimizer, TorchState) and content.facts["optimizer"] == name
    saved = content.optimizer.named({n: tuple(t.shape) for n, t in content.state.items()})
    assert saved.algorithm == "adam" and set(saved.buffers) == {"weight", "bias"}
    assert content.asides == {}


def test_two_optimizers_are_nobodys_state(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 3)
    two = {"state_dict": module.state_dict(), "optimizer_states": [adam(module), adam(module)]}
    content = read(written(tmp_path, torch_bytes(two)))
    assert content.optimizer is None and content.asides == {"optimizer_states": "training state"}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # Lightning and torch's newest release
def test_a_lightning_checkpoint_is_read(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class Tiny(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(batch[0]).mean()

        def configure_optimizers(self) -> Any:
            sgd = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
            return [sgd], [torch.optim.lr_scheduler.MultiStepLR(sgd, [1, 2])]

    trainer = pl.Trainer(
        max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(torch.ones(4, 2))
    model = Tiny()
    trainer.fit(model, torch.utils.data.DataLoader(data, num_workers=0))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = read(tmp_path / "a.ckpt")
    assert content.format == "Lightning checkpoint" and content.facts["nested"] == "state_dict"
    assert equal(content.state, dict(model.state_dict()))
    assert {"epoch", "global_step", "lr_schedulers", "loops"} <= set(content.asides)
    shapes = {n: tuple(t.shape) for n, t in content.state.items()}
    assert content.optimizer is not None and content.optimizer.named(shapes).algorithm == "sgd"


def test_an_xfer_checkpoint_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, torch_bytes({"xfer": {"format": 1}, "state_dict": state()}))
    with pytest.raises(WeightsError, match=r"is an xfer checkpoint.*source=run"):
        read(path)


def test_methods_that_a_pickle_hides_are_found_all_the_same(tmp_path: Path) -> None:
    tensors = OrderedDict(state())
    content = OrderedDict(model=tensors)
    for name in ("itemz", "gez", "keyz"):
        setattr(tensors, name, None)
        setattr(content, name, 3)

    def hide(pickled: bytes) -> bytes:
        pairs = ((b"itemz", b"items"), (b"gez", b"get"), (b"keyz", b"keys"))
        for ours, theirs in pairs:
            assert ours in pickled
            pickled = pickled.replace(ours, theirs)
        return pickled

    for saved in (tensors, content):
        path = written(tmp_path, with_member(torch_bytes(saved), "data.pkl", hide))
        assert equal(read(path).state, state())


# What weights are not


def with_tensor(name: str, tensor: torch.Tensor) -> State:
    return {**state(), name: tensor}


ODD_TENSORS: dict[str, tuple[State, str]] = {
    "nan": (with_tensor("head.bias", torch.tensor([1.0, float("nan")])), r"'head\.bias'.*NaN"),
    "inf": (with_tensor("a", torch.tensor([[float("-inf")]])), "'a' holds NaN or Inf"),
    "nan16": (with_tensor("a", torch.full((3,), float("nan"), dtype=torch.bfloat16)), "'a'.*NaN"),
    "nan8": (with_tensor("a", torch.full((3,), float("nan")).to(torch.float8_e4m3fn)), "'a'.*NaN"),
    "complex": (with_tensor("a", torch.ones(2, dtype=torch.complex64)), "'a' is complex"),
    "bnb": (with_tensor("fc.weight.absmax", torch.ones(2)), "quantised"),
    "bnb4": (with_tensor("fc.weight.quant_map", torch.ones(2)), "quantised"),
    "gptq": (with_tensor("fc.qweight", torch.ones(2, dtype=torch.int32)), "quantised"),
    "int8": (with_tensor("fc._packed_params", torch.ones(2, dtype=torch.int8)), "quantised"),
    "lora": ({"q.lora_A.weight": torch.ones(2), "q.lora_B.weight": torch.ones(2)}, "LoRA"),
    "lora2": (
        {"q.lora_down.weight": torch.ones(2), "q.lora_up.weight": torch.ones(2),
         "q.alpha": torch.ones(())}, "LoRA",
    ),
}  # fmt: skip


# torch's own reader of legacy files has no storage for float8.
ODD = [
    (n, k) for n in ODD_TENSORS for k in GOOD if k != "npz" and (n, k[6:12]) != ("nan8", "legacy")
]


@pytest.mark.parametrize(("name", "kind"), ODD)
def test_tensors_that_are_no_plain_finite_numbers_are_told(
    tmp_path: Path, name: str, kind: str
) -> None:
    tensors, message = ODD_TENSORS[name]
    with pytest.raises(WeightsError, match=message) as told:
        read(written(tmp_path, GOOD[kind](tensors)))
    assert "\n" not in str(told.value)


def test_weights_with_a_few_differences_beside_them_are_left_to_the_match(tmp_path: Path) -> None:
    tensors = with_tensor("fc.lora_A.weight", torch.ones(1))
    assert equal(read(written(tmp_path, torch_bytes(tensors))).state, tensors)


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will give these up
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


UNUSUAL: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "_rebuild_sparse_tensor"),
    "meta": (lambda: torch.ones(2, device="meta"), "_rebuild_meta_tensor"),
    "quantised": (quantised, "quantised"),
}


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_without_plain_data_are_told(tmp_path: Path, name: str, legacy: bool) -> None:
    make, message = UNUSUAL[name]
    with pytest.raises(WeightsError, match=message):
        read(written(tmp_path, torch_bytes({"a": make()}, legacy)))


HOSTILE_NAMES = {
    "empty": "", "long": "x" * 1025, "newline": "a\nb", "escape": "a\x1b[2Jb", "rtl": "a\u202eb",
    "null": "a\0b", "up": "../../x", "inside": "a/../b", "windows": "a\\..\\b",
    "absolute": "/etc/x", "drive": "C:\\x", "unc": "\\\\host\\x",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("kind", ["torch checkpoint", "torch legacy pickle", "safetensors"])
def test_hostile_names_of_tensors_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    data = GOOD[kind]({HOSTILE_NAMES[name]: torch.ones(1)})
    with pytest.raises(SafetyError) as told:
        read(written(tmp_path, data))
    assert told.value.exit == 6 and str(told.value).isprintable() and len(str(told.value)) < 500


def test_odd_but_harmless_names_are_read(tmp_path: Path) -> None:
    tensors = {"a..b": torch.ones(1), "блок/ядро:0": torch.ones(1), "x" * 1024: torch.ones(1)}
    assert equal(read(written(tmp_path, torch_bytes(tensors))).state, tensors)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_another_pickle_protocol_is_named(tmp_path: Path, protocol: int) -> None:
    data = torch_bytes({"a": torch.ones(2), "b": b"abc"}, protocol=protocol)
    with pytest.raises(WeightsError, match=r"another protocol.*save it again with torch\.save"):
        read(written(tmp_path, data))


# Damaged and foreign files: one line, no memory, no other error


def peak_growth(act: Callable[[], object]) -> int:
    """By how many bytes the process grew at most while ``act`` ran."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        act()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    clear.write_text("5")
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    act()
    line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 - before


def refused(path: Path) -> XferError:
    """Read ``path``, which must be refused in one line that names it, without much memory."""
    errors: list[XferError] = []

    def act() -> None:
        with pytest.raises((WeightsError, SafetyError)) as told:
            read(path)
        errors.append(told.value)

    growth = peak_growth(act)
    assert growth < 500 * 1024 * 1024
    text = str(errors[0])
    assert path.name in text and text.isprintable() and len(text) < 600
    assert "weights_only" not in text and "safe_globals" not in text
    return errors[0]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    refused(written(tmp_path, DAMAGED[name]))


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_told_as_what_it_is(tmp_path: Path, name: str) -> None:
    data, message = FOREIGN[name]
    error = refused(written(tmp_path, data))
    assert re.search(message, str(error)), error


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, name: str) -> None:
    refused(written(tmp_path, BOMBS[name]()))


def test_a_header_of_a_hundred_megabytes_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, struct.pack("<Q", 100_000_000) + b'{"a":')
    os.truncate(path, 200_000_000)
    assert isinstance(refused(path), SafetyError)


def test_places_that_are_no_files_are_told_and_never_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    told = {
        **{"fifo": "pipe", "dangling": "link to a file that is not there", "folder": "a folder"},
        **{"loop": "link", "missing": "no such file"},
    }
    for name, message in told.items():
        assert message in str(refused(tmp_path / name)), name
    assert "device" in str(refused(Path("/dev/zero")))
    with pytest.raises(WeightsError, match="no such file"):
        read(Path("a\0b"))
    with pytest.raises(WeightsError, match="no such file"):
        read(tmp_path / ("x" * 5000))


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, b"abc")
    path.chmod(0)
    assert "permission denied" in str(refused(path))


@pytest.mark.parametrize("suffix", [".ckpt", ".mindir"])
def test_mindspores_files_are_sent_to_their_source(assets: Path, suffix: str) -> None:
    for path in sorted((assets / "mindspore").glob(f"*{suffix}")):
        error = refused(path)
        assert f"source=mindspore source.path={path}" in str(error) and "MindSpore" in str(error)


def test_mindspores_safetensors_are_sent_to_their_source(assets: Path) -> None:
    path = assets / "mindspore" / "cv_v2.10.safetensors"
    assert "source=mindspore" in str(refused(path))


def test_the_real_weights_are_read(assets: Path) -> None:
    path = assets / "weights" / "squeezenet1_0_imagenet.safetensors"
    assert kind_of(path) == "safetensors" and len(read(path).state) == 52


def test_the_steps_that_a_pickle_may_take_leave_room_for_real_ones(tmp_path: Path) -> None:
    machine = pickle_scan.Machine()
    tensors = {f"layer.{i}.weight": torch.ones(1) for i in range(1000)}
    with zipfile.ZipFile(io.BytesIO(torch_bytes(tensors))) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        machine.run(io.BytesIO(archive.read(name)))
    assert machine.steps * 6 < pickle_scan.STEPS


# Fuzz: bytes of real files, changed anywhere


def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        way = draw(st.sampled_from(("set", "cut", "insert", "copy")))
        place = draw(st.integers(0, max(0, len(changed) - 1)))
        if way == "set" and changed:
            changed[place] = draw(st.integers(0, 255))
        elif way == "cut":
            del changed[place : place + draw(st.integers(1, 16))]
        elif way == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif changed:
            start = draw(st.integers(0, len(changed) - 1))
            changed[place : place + 8] = changed[start : start + 8]
    return bytes(changed)


def small(kind: str) -> bytes:
    return GOOD[kind]({"a.weight": torch.ones(2, 2), "b": torch.tensor(3)})


SEEDS: dict[str, list[bytes]] = {
    "torch checkpoint": [
        small("torch checkpoint"),
        torch_bytes({"model": state(), "epoch": 1, "c": {1}}),
    ],
    "torch legacy pickle": [small("torch legacy pickle")],
    "safetensors": [small("safetensors"), safetensors_bytes(state(), {"a": "b"})],
    "npz": [small("npz"), npz_bytes(packed=True, a=np.ones(3), b=np.array(["x"]))],
    "foreign": [data for data, _ in FOREIGN.values() if data],
}


def survives(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        content = read(path)
    except XferError as error:
        assert "\n" not in str(error) and error.exit in (4, 6)
    else:
        assert all(isinstance(t, torch.Tensor) for t in content.state.values())


FUZZ = settings(
    max_examples=int(os.environ.get("XFER_FUZZ", "150")),
    deadline=None,
    database=None,
    derandomize="XFER_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("kind", SEEDS)
@FUZZ
@given(st.data())
def test_no_change_of_bytes_brings_out_another_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    seed = data.draw(st.sampled_from(SEEDS[kind]))
    path = tmp_path_factory.getbasetemp() / f"fuzz {kind}"
    survives(path, mutated(data.draw, seed))


@pytest.mark.parametrize("kind", ["torch checkpoint", "npz"])
@FUZZ
@given(st.data())
def test_no_change_of_a_member_brings_out_another_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    seed = data.draw(st.sampled_from(SEEDS[kind]))
    name = data.draw(
        st.sampled_from(["data.pkl"] if kind == "torch checkpoint" else ["a.npy", "b.npy"])
    )
    path = tmp_path_factory.getbasetemp() / f"fuzz member of {kind}"
    survives(path, with_member(seed, name, lambda part: mutated(data.draw, part)))


# A tensor of 4 numbers takes the first line; the others are what a pickle can be made of.
PIECES = [
    TENSOR + b"0X\x03\0\0\0cpuK\x04tQK\0K\x02K\x02\x86K\x02K\x01\x86\x89N",
    *(b"(", b")", b"]", b"}", b"\x8f", b"a", b"e", b"s", b"u", b"t", b"\x85", b"\x86", b"\x87"),
    *(b"R", b"b", b"Q", b"\x81", b"N", b"\x88", b"\x89", b"K\x01", b"J" + b"\xff" * 4),
    *(b"X\x01\0\0\0a", b"X\x05\0\0\0model", b"U\x01a", b"\x8a\x09" + b"\x7f" * 9, b"q\0", b"h\0"),
    *(b"q\x01", b"h\x01", b"G?\xf0\0\0\0\0\0\0", b"tR", b"\x85R", b")R", b"(t", b"(K\x01K\x02t"),
    *(b"c%s\n%s\n" % tuple(name.encode().rsplit(b".", 1)) for name in sorted(CALLABLE)),
    *(b"ctorch\nFloatStorage\n", b"ctorch.storage\nUntypedStorage\n", b"ctorch\nint8\n"),
]  # fmt: skip


@FUZZ
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_no_order_of_opcodes_brings_out_another_error(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz opcodes"
    survives(path, torch_zip(b"\x80\x02" + b"".join(pieces) + b".", b"\0" * 16))


def test_a_saved_file_is_read_as_safetensors_writes_it(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "a")
    assert set(read(tmp_path / "a").state) == set(state())
