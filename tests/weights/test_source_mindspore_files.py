"""MindSpore's files, real ones and hand-written, are read without MindSpore, or refused."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weights_files import encrypted

from xfer.core.errors import SafetyError, WeightsError, XferError
from xfer.weights.content import Content, OptimizerBuffers, Shape
from xfer.weights.mindspore import ckpt, mindir_tensors
from xfer.weights.mindspore.ckpt import is_mindspore_ckpt, read_safetensors
from xfer.weights.mindspore.tensors import is_encrypted
from xfer.weights.source import mindspore

READERS: dict[str, Callable[[Path], Content]] = {
    ".ckpt": ckpt.read,
    ".mindir": mindir_tensors.read,
    ".safetensors": read_safetensors,
}

# A writer of the wire format, with nothing that the reader has.


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    low = bytes([value & 127 | (128 if value > 127 else 0)])
    return low + varint(value >> 7) if value > 127 else low


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, content: bytes, length: int | None = None) -> bytes:
    return varint(field << 3 | 2) + varint(len(content) if length is None else length) + content


def dims(shape: Shape) -> bytes:
    return b"".join(number(1, n) for n in shape)


def value(tag: str | bytes, kind: str, shape: Shape, content: bytes) -> bytes:
    tensor = dims(shape) + block(2, kind.encode()) + block(3, content)
    name = tag.encode() if isinstance(tag, str) else tag
    return block(1, block(1, name) + block(2, tensor))


def entry(tag: str, array: Any, shape: Shape | None = None) -> bytes:
    found = np.asarray(array)
    kind = found.dtype.name.capitalize().replace("Uint", "UInt")
    return value(tag, kind, found.shape if shape is None else shape, found.tobytes())


def sealed(data: bytes) -> bytes:
    return data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big")


def graph(*parameters: bytes, after: bytes = b"", version: str = "0.1.1") -> bytes:
    head = block(1, version.encode()) + block(2, b"MindSpore")
    return head + block(7, b"".join(block(3, p) for p in parameters)) + after


def parameter(name: str, array: Any, kind: int = 1, extra: bytes = b"") -> bytes:
    found = np.asarray(array)
    named = block(7, f"12_graph:{name}".encode()) + block(9, found.tobytes())
    return dims(found.shape) + number(2, kind) + named + extra


def floats(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def read(tmp_path: Path, data: bytes, suffix: str = ".ckpt") -> Content:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(data)
    return READERS[suffix](path)


def refused(tmp_path: Path, data: bytes, suffix: str = ".ckpt") -> WeightsError:
    with pytest.raises(WeightsError) as told:
        read(tmp_path, data, suffix)
    assert told.value.exit == 4 and "\n" not in str(told.value)
    assert f"weights{suffix}" in told.value.where
    return told.value


# Real files


@pytest.fixture
def real(assets: Path) -> Path:
    return assets / "mindspore"


def contents(real: Path) -> dict[str, Content]:
    files = [f for f in sorted(real.iterdir()) if f.suffix in READERS]
    return {f.name: READERS[f.suffix](f) for f in files}


def test_all_real_files_of_a_network_hold_the_same_tensors(real: Path) -> None:
    found = contents(real)
    assert len(found) == 8
    for name, content in found.items():
        first = found["zoo_v1.0.ckpt" if name.startswith("zoo") else "cv_v2.10.ckpt"]
        assert content.state.keys() == first.state.keys(), name
        assert len(content.state) == (87 if name.startswith("zoo") else 67)
        for key, tensor in content.state.items():
            assert tensor.dtype == torch.float32 and torch.equal(tensor, first.state[key]), key


def test_the_first_bytes_of_a_real_file_are_its_first_tensor(real: Path) -> None:
    data = (real / "zoo_v1.0.ckpt").read_bytes()
    tensor = ckpt.read(real / "zoo_v1.0.ckpt").state["conv1.weight"]
    assert tensor.shape == (64, 3, 7, 7) and data[43:].startswith(tensor.numpy().tobytes())


def test_what_training_left_in_the_real_files_is_told_from_the_weights(real: Path) -> None:
    for name, content in contents(real).items():
        if name.startswith("zoo_v") and name.endswith(".ckpt") and "crc" not in name:
            scalars = {k for k, why in content.asides.items() if why == "training scalar"}
            assert scalars == {
                *("global_step", "learning_rate", "momentum", "epoch_num", "step_num")
            }
            state = {k for k, why in content.asides.items() if why == "optimizer state"}
            trained = {k for k in content.state if "moving_" not in k}
            assert state == {f"moments.{k}" for k in trained} and len(content.asides) == 58
        else:
            assert content.asides == {} and content.optimizer is None
    assert contents(real)["zoo_v2.10_crc.ckpt"].facts == {"crc": "verified"}


def test_tensors_can_be_written_and_are_aligned(real: Path) -> None:
    for suffix in (".ckpt", ".mindir"):
        for tensor in READERS[suffix](real / f"zoo_v2.10{suffix}").state.values():
            assert tensor.data_ptr() % 16 == 0
            tensor.add_(1)


def test_real_files_are_recognised_by_their_first_bytes(real: Path) -> None:
    for file in (f for f in real.iterdir() if f.suffix in (*READERS, ".npy")):
        size = file.stat().st_size
        for length in (100, 300, 4096):
            head = file.read_bytes()[:length]
            assert is_mindspore_ckpt(head, size) == (file.suffix == ".ckpt"), file.name
            assert not is_encrypted(head)
        # A graph has its version and its maker first, a cut one too.
        head = file.read_bytes()[:100]
        for length in (size, 100):
            assert mindir_tensors.is_mindir(head, length) == (file.suffix == ".mindir"), file.name


NO_MINDSPORE = {
    "empty": b"",
    "newlines": b"\n" * 300,
    "text": b"\nepoch,loss\n1,2\n" * 30,
    "html": b"<!DOCTYPE html>\n<html></html>" + b" " * 300,
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
    "zip": b"PK\x03\x04" + bytes(300),
    "pickle": b"\x80\x02}q\x00." + bytes(300),
    "zeros": bytes(300),
    "ones": b"\xff" * 300,
    "onnx": number(1, 8) + block(2, b"pytorch") + block(7, bytes(200)),
    "tensorflow": block(1, block(1, b"input") + block(2, b"Placeholder") + block(5, bytes(99))) * 3,
    "tensorflow without attributes": block(1, block(1, b"a") + block(2, b"NoOp")) * 30,
    "some protobuf": block(1, block(1, b"a") + block(5, b"\x08")) * 30,
    "caffe": block(1, b"GoogLeNet") + block(100, bytes(300)),
}


@pytest.mark.parametrize("name", NO_MINDSPORE)
def test_other_files_are_not_recognised_and_refused_in_one_line(tmp_path: Path, name: str) -> None:
    data = NO_MINDSPORE[name]
    assert not is_mindspore_ckpt(data[:300], len(data)) and not is_encrypted(data)
    assert not mindir_tensors.is_mindir(data[:300], len(data))
    for suffix in READERS:
        refused(tmp_path, data, suffix)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such file.*source\.path=FILE"):
        mindspore.read(tmp_path / "a")
    with pytest.raises(WeightsError, match="is a folder"):
        mindspore.read(tmp_path)


# Odd but whole

KINDS = "Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Float16 Float32 Float64 Bool".split()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [str, str.lower, str.upper])
def test_every_type_is_read_however_it_is_spelt(
    tmp_path: Path, kind: str, case: Callable[[str], str]
) -> None:
    array = np.arange(6).reshape(3, 2) % 2
    array = array.astype(kind.lower())
    tensor = read(tmp_path, value("a.b", case(kind), (3, 2), array.tobytes())).state["a.b"]
    assert str(tensor.dtype) == f"torch.{kind.lower()}"
    assert np.array_equal(tensor.numpy(), array)


def test_bfloat16_is_read_in_two_bytes_and_in_the_four_of_old_files(tmp_path: Path) -> None:
    numbers = torch.from_numpy(floats(4, 3)).bfloat16()
    short = numbers.view(torch.int16).numpy().tobytes()
    long = numbers.float().numpy().tobytes()
    data = value("a.s", "BFloat16", (4, 3), short) + value("a.l", "BFloat16", (4, 3), long)
    state = read(tmp_path, data).state
    assert state["a.s"].dtype == torch.bfloat16 and torch.equal(state["a.s"], numbers)
    assert state["a.l"].dtype == torch.float32 and torch.equal(state["a.l"], numbers.float())
    one = value("a.b", "BFloat16", (), long[:4]) + value("a.c", "BFloat16", (0,), short[:2])
    shapes = {k: (t.dtype, t.shape) for k, t in read(tmp_path, one).state.items()}
    assert shapes == {"a.b": (torch.float32, ()), "a.c": (torch.bfloat16, ())}
    refused(tmp_path, value("a.b", "BFloat16", (4, 3), short + short[:2]))
    refused(tmp_path, value("a.b", "BFloat16", (4, 3), short) * 2)


def test_scalars_of_1_and_of_2_10_have_no_dims_and_empty_tensors_have_none(tmp_path: Path) -> None:
    data = entry("a.old", np.float32(2.5), (0,)) + entry("a.new", np.float32(2.5), ())
    data += entry("a.one", floats(1)) + entry("a.none", np.zeros(0, np.float32))
    data += entry("a.flat", np.zeros((3, 0), np.float32))
    state = read(tmp_path, data).state
    assert {k: tuple(t.shape) for k, t in state.items()} == {
        **{"a.old": (), "a.new": (), "a.one": (1,), "a.none": (0,), "a.flat": (3, 0)}
    }
    assert state["a.old"] == state["a.new"] == 2.5


def test_texts_and_numbers_that_are_no_weights_are_set_aside(tmp_path: Path) -> None:
    data = entry("fc.weight", floats(3, 2)) + value("note", "str", (0,), "né".encode("utf-32-le"))
    data += entry("acc", np.float32(0.5)) + entry("best", np.bool_(True), (0,))
    data += entry("learning_rate", floats(90)) + entry("learning_rate_group_3", floats(1))
    data += entry("cls_token", floats(4)) + entry("bias", floats(3))
    content = read(tmp_path, data)
    assert list(content.state) == ["fc.weight", "cls_token", "bias"]
    scalars = dict.fromkeys(
        ("acc", "best", "learning_rate", "learning_rate_group_3"), "training scalar"
    )
    assert content.asides == {**scalars, "note": "text"}
    assert content.format == "MindSpore checkpoint"


def test_the_pieces_of_a_large_parameter_are_joined(tmp_path: Path) -> None:
    whole = floats(5, 4)
    raw = whole.tobytes()
    pieces = [value("a.w", "Float32", (5, 4), raw[i:j]) for i, j in ((0, 32), (32, 64), (64, 80))]
    state = read(tmp_path, entry("a.b", floats(2)) + b"".join(pieces)).state
    assert np.array_equal(state["a.w"].numpy(), whole)
    refused(tmp_path, b"".join(pieces[:2]))
    refused(tmp_path, b"".join([*pieces, pieces[0]]))
    other = value("a.w", "Float32", (4, 5), raw[64:])
    assert "differ" in str(refused(tmp_path, b"".join([*pieces[:2], other])))


def test_of_two_parameters_of_one_name_the_last_counts_and_it_is_told(tmp_path: Path) -> None:
    data = entry("a.w", floats(2)) + entry("a.b", floats(3)) + entry("a.w", floats(4))
    content = read(tmp_path, data)
    assert np.array_equal(content.state["a.w"].numpy(), floats(4))
    assert content.facts == {"repeated": ["a.w"]}


def test_several_values_in_one_message_and_fields_in_any_order_are_read(tmp_path: Path) -> None:
    raw = floats(2).tobytes()
    tensor = block(3, raw) + block(2, b"Float32") + dims((2,))
    data = block(1, block(2, tensor) + block(1, b"a.w"))
    assert np.array_equal(read(tmp_path, data).state["a.w"].numpy(), floats(2))


def test_a_checksum_is_verified_and_every_flipped_bit_found(real: Path, tmp_path: Path) -> None:
    data = (real / "zoo_v2.10_crc.ckpt").read_bytes()
    places = np.random.default_rng(0).integers(0, 8 * len(data), 150)
    for place in [*places, *range(8 * (len(data) - 17), 8 * len(data))]:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        refused(tmp_path, bytes(flipped))
    flipped = bytearray(data)
    flipped[9000] ^= 1
    assert refused(tmp_path, bytes(flipped)).number == 462
    ours = sealed(entry("a.w", floats(3)))
    assert read(tmp_path, ours).facts == {"crc": "verified"}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    weight = entry("a.w", floats(3))
    four = refused(tmp_path, weight + value("a.q", "Int4", (8,), bytes(4)))
    assert "'a.q' is quantised to 4 bits" in str(four)
    table = block(1, block(1, b"a.map") + block(3, block(1, b"")))
    assert "'a.map' is a hash table" in str(refused(tmp_path, weight + table))
    assert "unknown type 'complex64'" in str(
        refused(tmp_path, value("a.c", "Complex64", (1,), bytes(8)))
    )
    assert "no weights" in str(refused(tmp_path, entry("global_step", np.int32(3))))


@pytest.mark.parametrize(
    ("first", "cipher"), [(0xD8, "AES-GCM"), (0xD9, "AES-CBC"), (0xDA, "SM4-CBC")]
)
def test_encrypted_files_are_recognised_and_the_cipher_named(
    tmp_path: Path, first: int, cipher: str
) -> None:
    data = encrypted(first)
    assert is_encrypted(data[:300]) and not is_mindspore_ckpt(data[:300], len(data))
    for suffix in (".ckpt", ".mindir"):
        told = refused(tmp_path, data, suffix)
        assert f"encrypted by MindSpore ({cipher})" in str(told) and "enc_key" in told.fix


# Damaged

WEIGHT = entry("layer.weight", floats(5, 4)) + entry("layer.bias", floats(5))
RAW = floats(5, 4).tobytes()


def nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = block(1, data)
    return data


def of_dims(*shape: int) -> bytes:
    return WEIGHT + value("a.w", "Float32", shape, RAW)


DAMAGED = {
    "cut in the first length": WEIGHT[:1],
    "cut in the first name": WEIGHT[:9],
    "cut before the content": WEIGHT[:30],
    "cut in the content": WEIGHT[:60],
    "one byte short": WEIGHT[:-1],
    "one byte more": WEIGHT + b"\x0a",
    "zeros behind": WEIGHT + bytes(64),
    "value longer than the file": WEIGHT + block(1, b"\x0a\x01a", 2**31),
    "value of 2**63 bytes": WEIGHT + block(1, b"\x0a\x01a", 2**63),
    "value of 2**64 - 1 bytes": WEIGHT + block(1, b"\x0a\x01a", 2**64 - 1),
    "name of 2**62 bytes": WEIGHT + block(1, block(1, b"a", 2**62)),
    "tensor of 2**40 bytes": WEIGHT + block(1, block(1, b"a") + block(2, b"", 2**40)),
    "content longer than its tensor": WEIGHT
    + block(1, block(1, b"a") + block(2, dims((4,)) + block(2, b"Int8") + block(3, b"ab", 4))),
    "number without end": WEIGHT + b"\xff" * 40,
    "number of 65 bits": WEIGHT
    + block(1, block(1, b"a") + block(2, b"\x08" + b"\xff" * 9 + b"\x02")),
    "negative dim": of_dims(-5, 4),
    "two negative dims": of_dims(-5, -4),
    "smallest dim": of_dims(-(2**63), 0),
    "huge dim": of_dims(2**62, 4),
    "huge product": of_dims(2**32, 2**32, 5, 4),
    "product that overflows to the right size": of_dims(2**62, 2, 2, 5),
    "huge and nothing": WEIGHT + value("a.w", "Float32", (2**62, 2**62, 0), b""),
    "too few numbers": of_dims(5, 3),
    "too many numbers": of_dims(5, 5),
    "odd length": WEIGHT + value("a.w", "Float32", (5, 4), RAW[:-1]),
    "a dim of 0 with numbers": of_dims(0, 4),
    "scalar of two": WEIGHT + value("a.w", "Float32", (), RAW[:8]),
    "too many dims": of_dims(*([1] * 17), 5, 4),
    "bool of 2": WEIGHT + value("a.m", "Bool", (3,), b"\0\1\2"),
    "deep nesting": nested(10_000),
    "nesting in a tensor": WEIGHT + block(1, block(1, b"a") + block(2, nested(5_000))),
    "group": WEIGHT + b"\x0b\x0a\x01a\x0c",
    "wire type 6": WEIGHT + b"\x0e",
    "wire type 7": WEIGHT + b"\x0f",
    "field 0": WEIGHT + b"\x02\x00",
    "value as a number": WEIGHT + number(1, 5),
    "value as four bytes": WEIGHT + b"\x0d\0\0\0\0",
    "value as eight bytes": WEIGHT + b"\x09" + bytes(8),
    "name as a number": WEIGHT + block(1, number(1, 5) + block(2, b"")),
    "packed dims": WEIGHT + block(1, block(1, b"a") + block(2, block(1, b"\5\4"))),
    "content as a number": WEIGHT + block(1, block(1, b"a") + block(2, number(3, 5))),
    "no name": WEIGHT + block(1, block(2, dims((1,)) + block(2, b"Int8") + block(3, b"a"))),
    "empty name": WEIGHT + value("", "Int8", (1,), b"a"),
    "name that is no text": WEIGHT + value(b"\xff\xfe", "Int8", (1,), b"a"),
    "name of 5000 bytes": WEIGHT + value("a" * 5000, "Int8", (1,), b"a"),
    "two names": WEIGHT + block(1, block(1, b"a") * 2 + block(2, b"")),
    "no tensor": WEIGHT + block(1, block(1, b"a")),
    "no type": WEIGHT + block(1, block(1, b"a") + block(2, dims((1,)) + block(3, b"a"))),
    "no content": WEIGHT + block(1, block(1, b"a") + block(2, block(2, b"Int8"))),
    "empty value": WEIGHT + block(1, b""),
    "unknown field": WEIGHT + block(2, b"abc"),
    "only unknown fields": block(9, b"abc") * 20,
    "old type that never worked": WEIGHT + value("a.w", "random_op", (), b""),
    "same name twice": WEIGHT + entry("layer.bias", floats(5)),
    "hidden trailer": WEIGHT + b"crc_num" + bytes(10),
    "cut trailer": sealed(WEIGHT)[:-1],
    "trailer alone": sealed(b""),
    "line breaks in a name": WEIGHT + value("a\nb\x1b[2J", "Int8", (2,), b"a"),
    "many entries": value("a.w", "Int8", (1,), b"a") * 60_000,
    "many dims": WEIGHT
    + block(1, block(1, b"a") + block(2, b"\x08\x01" * 500_000 + block(2, b"Int8"))),
    "many names": (WEIGHT + entry("b.w", floats(1))) * 20_000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    told = refused(tmp_path, DAMAGED[name])
    assert "MindSpore checkpoint" in str(told) or told.number in (462, 465)
    assert len(str(told)) < 1000


def test_more_fields_than_weights_need_are_not_read_to_the_end(tmp_path: Path) -> None:
    for name, what in {
        **{"many entries": "more than 100000 fields", "many names": "more than 100000 fields"},
        **{"many dims": "field 1 comes more than 16 times"},
    }.items():
        assert what in str(refused(tmp_path, DAMAGED[name]))
    assert "more than 100000 fields" in str(refused(tmp_path, GRAPHS["many nodes"], ".mindir"))


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("name", ["zoo_v1.0.ckpt", "zoo_v2.10.mindir", "cv_v2.10.safetensors"])
def test_a_real_file_that_is_cut_off_is_refused(
    real: Path, tmp_path: Path, name: str, share: float
) -> None:
    data = (real / name).read_bytes()
    refused(tmp_path, data[: int(share * len(data))], Path(name).suffix)


def test_a_cut_checkpoint_is_still_recognised_as_one(real: Path) -> None:
    data = (real / "zoo_v1.0.ckpt").read_bytes()
    assert all(is_mindspore_ckpt(data[:n], n) for n in (60, 100, 5000))


GRAPHS = {
    "empty graph": graph(),
    "no graph": block(1, b"0.1.1") + block(2, b"MindSpore"),
    "no version": block(7, block(3, parameter("w", floats(3)))),
    "two graphs": graph(parameter("w", floats(3)), after=block(7, b"")),
    "version as a number": number(1, 8) + block(7, block(3, parameter("w", floats(3)))),
    "graph as a number": block(1, b"0.1.1") + number(7, 3),
    "negative dim": graph(dims((-3,)) + number(2, 1) + block(7, b"w") + block(9, bytes(12))),
    "huge dim": graph(dims((2**61,)) + number(2, 1) + block(7, b"w") + block(9, bytes(12))),
    "too few bytes": graph(dims((4,)) + number(2, 1) + block(7, b"w") + block(9, bytes(12))),
    "unknown type": graph(parameter("w", floats(3), kind=8)),
    "no type": graph(dims((3,)) + block(7, b"w") + block(9, bytes(12))),
    "no data": graph(dims((3,)) + number(2, 1) + block(7, b"w")),
    "no name": graph(dims((3,)) + number(2, 1) + block(9, bytes(12))),
    "same name twice": graph(parameter("w", floats(3)), parameter("w", floats(3))),
    "data of 2**63 bytes": graph(dims((3,)) + number(2, 1) + block(7, b"w") + block(9, b"", 2**63)),
    "parameter as a number": block(1, b"0.1.1") + block(7, number(3, 1)),
    "field 0": graph(parameter("w", floats(3)), after=b"\x02\x00"),
    "big endian": graph(parameter("w", floats(3)), after=number(10, 0)),
    "compressed": graph(parameter("w", floats(3), extra=number(16, 1))),
    "many nodes": block(1, b"0.1.1") + block(7, block(1, b"") * 200_000),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_damaged_graph_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    refused(tmp_path, GRAPHS[name], ".mindir")


def test_a_graph_with_its_parameters_elsewhere_says_so(tmp_path: Path) -> None:
    external = block(12, block(1, b"../../etc/passwd") + number(3, 12))
    bare = dims((3,)) + number(2, 1) + block(7, b"1_g:fc.bias")
    told = refused(tmp_path, graph(bare + external), ".mindir")
    assert "parameters in other files ('fc.bias'" in str(told) and told.number == 464


def test_a_hash_table_in_a_graph_is_named(tmp_path: Path) -> None:
    data = block(1, b"0.1.1") + block(7, block(3, parameter("w", floats(3))) + block(10, b""))
    assert "hash table" in str(refused(tmp_path, data, ".mindir"))


def test_a_graph_of_any_type_without_keys_is_read_by_its_names(tmp_path: Path) -> None:
    half = torch.from_numpy(floats(3)).bfloat16()
    content = read(
        tmp_path,
        graph(
            parameter("a.w", floats(3, 2).astype(np.float16), 10),
            parameter("a.d", floats(2).astype(np.float64), 17),
            parameter("a.i", np.arange(4), 7, extra=block(13, b"key.i")),
            parameter("a.h", half.view(torch.int16).numpy(), 16),
            after=number(10, 1) + number(13, 3) + block(12, b"prims"),
        ),
        ".mindir",
    )
    assert list(content.state) == ["a.w", "a.d", "key.i", "a.h"]
    assert np.array_equal(content.state["a.w"].numpy(), floats(3, 2).astype(np.float16))
    assert content.state["a.d"].dtype == torch.float64 and torch.equal(content.state["a.h"], half)
    assert content.facts == {"ir_version": "0.1.1"} and content.format == "MindIR file"


ALLOCATES_NOTHING = """
import resource, sys
from pathlib import Path
from xfer.core.errors import WeightsError
from xfer.weights.mindspore import ckpt, mindir_tensors
good, folder = Path(sys.argv[1]), Path(sys.argv[2])
ckpt.read(good / "zoo_v1.0.ckpt"), mindir_tensors.read(good / "zoo_v2.10.mindir")
used = int(next(s for s in open("/proc/self/status") if s.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 50_000_000,) * 2)
count = 0
for file in sorted(folder.iterdir()):
    try:
        (mindir_tensors if file.suffix == ".mindir" else ckpt).read(file)
    except WeightsError:
        count += 1
print(count)
try:
    bytearray(60_000_000)
except MemoryError:
    print("limited")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA")
def test_damaged_files_are_refused_within_50_megabytes(real: Path, tmp_path: Path) -> None:
    for i, data in enumerate(DAMAGED.values()):
        (tmp_path / f"{i}.ckpt").write_bytes(data)
    for i, data in enumerate(GRAPHS.values()):
        (tmp_path / f"{i}.mindir").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATES_NOTHING, str(real), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(DAMAGED) + len(GRAPHS)), "limited"]


# Safetensors


def saved(tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    from safetensors.numpy import save

    return save(dict(tensors), {"format": "ms", **(metadata or {})})


def crc_num(tensors: Mapping[str, Any]) -> str:
    crc = 0
    for name in sorted(tensors):
        # As MindSpore does, for better or worse: of a 0-d integer `bytes` makes that many zeros.
        crc = zlib.crc32(bytes(tensors[name]), zlib.crc32(name.encode(), crc))
    return str(crc)


def test_the_checksum_of_safetensors_is_verified(tmp_path: Path) -> None:
    tensors = {
        **{"b.w": floats(3, 2), "a.w": floats(4), "a.i": np.array([7, 8])},
        **{"epoch_num": np.array(3), "lr": np.array(0.5, np.float32), "best": np.array(True)},
    }
    data = saved(tensors, {"crc_num": crc_num(tensors)})
    content = read(tmp_path, data, ".safetensors")
    assert content.facts == {"crc": "verified"} and content.format == "MindSpore safetensors"
    assert set(content.state) == {"b.w", "a.w", "a.i"}
    assert content.asides == dict.fromkeys(("epoch_num", "lr", "best"), "training scalar")
    start = 8 + int.from_bytes(data[:8], "little")
    for place in range(start, len(data), 5):
        flipped = bytearray(data)
        flipped[place] ^= 4
        refused(tmp_path, bytes(flipped), ".safetensors")
    assert refused(tmp_path, saved(tensors, {"crc_num": "1"}), ".safetensors").number == 462
    assert read(tmp_path, saved(tensors), ".safetensors").facts == {}


def test_a_checksum_of_a_huge_counter_allocates_nothing(tmp_path: Path) -> None:
    tensors = {"a.w": floats(4), "epoch_num": np.array(2**62)}
    told = refused(tmp_path, saved(tensors, {"crc_num": "1"}), ".safetensors")
    assert told.number == 462


HEADERS = {
    "behind the file": (8 + 2, 100, WeightsError, "its header alone is 100 bytes"),
    "of 2**31 bytes": (8 + 2, 2**31, WeightsError, "its header alone"),
    "of 50 megabytes": (60_000_000, 50_000_000, SafetyError, "more than any network"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_the_size_that_a_header_claims_is_checked_before_it_is_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors

    size, claimed, error, what = HEADERS[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(claimed.to_bytes(8, "little") + b"{}")
    os.truncate(path, size)
    monkeypatch.setattr(safetensors, "safe_open", lambda *_: pytest.fail("it was opened"))
    for reader in (read_safetensors, mindspore.read):
        with pytest.raises(error, match=what) as told:
            reader(path)
        assert "\n" not in str(told.value) and str(path) in told.value.where


def test_quantised_safetensors_are_named(tmp_path: Path) -> None:
    data = saved({"a.w": np.zeros(4, np.int8), "a.b": floats(4)}, {"a.w": "Int4"})
    assert "'a.w' is quantised to 4 bits" in str(refused(tmp_path, data, ".safetensors"))


# Optimizers

NAMES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "moments.weight": (2, 4)}


def trained(prefixes: Mapping[str, float], scalars: Mapping[str, Any]) -> bytes:
    """A network with a module called ``moments``, and state of each of its parameters."""
    data = b"".join(entry(name, floats(*shape)) for name, shape in NAMES.items())
    data += b"".join(entry(name, number) for name, number in scalars.items())
    for i, (prefix, scale) in enumerate(prefixes.items()):
        for name, shape in NAMES.items():
            data += entry(f"{prefix}.{name}", np.abs(floats(*shape)) * np.float32(scale + i))
    return data


def optimizer_buffers(content: Content) -> OptimizerBuffers:
    assert content.optimizer is not None
    return content.optimizer.named({k: tuple(t.shape) for k, t in content.state.items()})


def told_by(content: Content) -> WeightsError:
    with pytest.raises(WeightsError, match=r"source\.optimizer=ignore") as told:
        optimizer_buffers(content)
    assert told.value.where == "source.optimizer" and "\n" not in str(told.value)
    return told.value


def test_the_momentum_of_a_real_file_is_torchs_momentum_buffer(real: Path) -> None:
    data = (real / "zoo_v2.0.ckpt").read_bytes()
    found = optimizer_buffers(ckpt.read(real / "zoo_v2.0.ckpt"))
    assert found.algorithm == "sgd" and len(found.buffers) == 53
    name = b"moments.end_point.bias"
    at = data.index(name) + len(name)
    wanted = np.frombuffer(data[at:].partition(b"Float32")[2][2:22], np.float32)
    assert found.buffers["end_point.bias"].keys() == {"momentum_buffer"}
    assert np.array_equal(found.buffers["end_point.bias"]["momentum_buffer"].numpy(), wanted)


def test_a_module_called_like_a_momentum_keeps_its_weights(tmp_path: Path) -> None:
    content = read(tmp_path, trained({"moments": 1}, {}))
    assert content.state.keys() == NAMES.keys()
    found = optimizer_buffers(content)
    assert found.buffers.keys() == NAMES.keys()
    buffer = found.buffers["moments.weight"]["momentum_buffer"]
    assert np.array_equal(buffer.numpy(), np.abs(floats(2, 4)))
    alone = read(tmp_path, trained({}, {}))
    assert alone.state.keys() == NAMES.keys() and alone.optimizer is None


def test_without_its_parameter_or_of_another_shape_nothing_is_a_momentum(tmp_path: Path) -> None:
    data = entry("weight", floats(2, 4)) + entry("moments.weight", floats(3, 3))
    data += entry("moments.gone", floats(2))
    content = read(tmp_path, data)
    assert set(content.state) == {"weight", "moments.weight", "moments.gone"}


def test_a_frozen_parameter_has_no_momentum(tmp_path: Path) -> None:
    data = entry("a.w", floats(3)) + entry("b.w", floats(3)) + entry("moments.b.w", floats(3))
    assert optimizer_buffers(read(tmp_path, data)).buffers.keys() == {"b.w"}


def powers(steps: int, beta1: float = 0.9, beta2: float = 0.999) -> dict[str, np.float32]:
    found = {"beta1_power": np.float32(1), "beta2_power": np.float32(1)}
    for _ in range(steps):
        found["beta1_power"] *= np.float32(beta1)
        found["beta2_power"] *= np.float32(beta2)
    return found


ADAM = {"moment1": 1.0, "moment2": 2.0}


@pytest.mark.parametrize(
    ("scalars", "steps"),
    [
        ({"global_step": np.array([7], np.int32)}, 7),
        ({"global_step": np.array([7], np.int32), **powers(9)}, 7),
        ({"global_step": np.array([0], np.int32), **powers(0)}, 0),
        *(({"global_step": np.array([0], np.int32), **powers(n)}, n) for n in (1, 64, 600, 5000)),
        *((powers(n), n) for n in (3, 1000)),
    ],
)
def test_the_steps_of_adam_are_told_by_its_counter_or_its_powers(
    tmp_path: Path, scalars: dict[str, Any], steps: int
) -> None:
    found = optimizer_buffers(read(tmp_path, trained(ADAM, scalars)))
    assert found.algorithm == "adam"
    for name, shape in NAMES.items():
        buffers = found.buffers[name]
        assert buffers.keys() == {"exp_avg", "exp_avg_sq", "step"}
        assert buffers["step"].shape == () and buffers["step"].dtype == torch.float32
        assert buffers["step"] == steps
        assert np.array_equal(buffers["exp_avg"].numpy(), np.abs(floats(*shape)))
        assert np.array_equal(buffers["exp_avg_sq"].numpy(), 3 * np.abs(floats(*shape)))


@pytest.mark.parametrize(
    "scalars",
    [
        {},
        {"global_step": np.array([0], np.int32)},
        {"global_step": np.array([3, 4], np.int32)},
        {"global_step": np.float32("inf")},
        powers(64, beta1=0.95),
        {"beta1_power": np.float32(0), "beta2_power": np.float32(0)},
        {"beta1_power": np.float32("nan"), "beta2_power": np.float32(-1)},
    ],
)
def test_an_adam_that_does_not_tell_its_steps_is_refused(
    tmp_path: Path, scalars: dict[str, Any]
) -> None:
    assert told_by(read(tmp_path, trained(ADAM, scalars))).number == 468


@pytest.mark.parametrize(
    ("prefixes", "name"),
    [
        (("mean_square", "moment"), "mean_square, moment"),
        (("mean_square", "moment", "mean_gradient"), "mean_gradient, mean_square, moment"),
        (("accum",), "accum"),
        (("accum", "accum_update"), "accum, accum_update"),
        (("moments", "linear"), "linear, moments"),
        (("moment1", "moment2", "vhat"), "moment1, moment2, vhat"),
    ],
)
def test_an_optimizer_that_torch_has_not_is_named(
    tmp_path: Path, prefixes: tuple[str, ...], name: str
) -> None:
    content = read(tmp_path, trained(dict.fromkeys(prefixes, 1.0), powers(3)))
    assert content.state.keys() == NAMES.keys()
    reasons = {why for key, why in content.asides.items() if "." in key}
    assert reasons == {f"optimizer state ({name})"}
    told = told_by(content)
    assert told.number == 466 and name in told.what


def test_adamax_is_not_taken_for_adam(tmp_path: Path) -> None:
    scalars = {"beta1_power": np.float32(0.9), "global_step": np.array([1], np.int32)}
    assert "AdaMax" in told_by(read(tmp_path, trained(ADAM, scalars))).what


def test_the_state_of_adafactor_and_asgd_is_no_weight_although_it_has_no_dot(
    tmp_path: Path,
) -> None:
    data = entry("fc.weight", floats(3, 6)) + entry("exp_avg.fc.weight", floats(3, 6))
    for name, shape in (("row", (3,)), ("col", (6,))):
        data += entry(f"exp_avg_sq_{name}_fc.weight", floats(*shape))
    data += entry("exp_avg_sq_fc.weight", floats(1)) + entry("afactor_step", floats(1))
    content = read(tmp_path, data)
    assert list(content.state) == ["fc.weight"] and "exp_avg_sq_row" in told_by(content).what
    data = entry("fc.weight", floats(3, 6)) + entry("ax_.fc.weight", floats(3, 6))
    content = read(tmp_path, data + entry("mu_fc.weight", floats(1)) + entry("eta_x", floats(1)))
    assert list(content.state) == ["fc.weight", "eta_x"]


def test_sgd_that_has_made_no_step_has_no_momentum(tmp_path: Path) -> None:
    data = trained({"accum": 1}, {})
    marks = {name: np.zeros(shape, np.float32) for name, shape in NAMES.items()}
    marks["conv.bias"] += 1
    content = read(tmp_path, data + b"".join(entry(f"stat.{n}", m) for n, m in marks.items()))
    found = optimizer_buffers(content)
    assert found.algorithm == "sgd" and found.buffers.keys() == {"conv.weight", "moments.weight"}
    unused = b"".join(entry(f"stat.{n}", np.ones_like(m)) for n, m in marks.items())
    assert told_by(read(tmp_path, data + unused)).number == 467


def test_state_that_does_not_fit_the_weights_is_refused(tmp_path: Path) -> None:
    content = read(tmp_path, trained({"moments": 1}, {}))
    assert content.optimizer is not None
    shapes: dict[str, Shape] = {**NAMES, "conv.bias": (5,)}
    with pytest.raises(WeightsError, match=r"'conv\.bias' is \[4\], the weight \[5\]"):
        content.optimizer.named(shapes)
    with pytest.raises(WeightsError, match=r"state of 'conv\.weight', but no such weight"):
        content.optimizer.named({})
    broken = trained({"moments": float("nan")}, {})
    assert told_by(read(tmp_path, broken)).number == 469
    assert told_by(read(tmp_path, trained({"moment1": 1, "moment2": -2}, powers(3)))).number == 469
    half = trained(ADAM, powers(3)).rpartition(b"moment2.conv.bias")
    partial = half[0] + b"momentX.conv.bias" + half[2]
    assert told_by(read(tmp_path, partial)).number == 467


def test_adam_weight_decay_goes_on_as_mindspore_would(tmp_path: Path) -> None:
    """MindSpore's AdamWeightDecay by its documented formula: no correction of the bias."""
    lr, decay, eps, beta1, beta2 = 0.1, 0.05, 1e-6, 0.9, 0.999
    gradients = np.random.default_rng(1).normal(size=(8, 6))
    w, m, v = np.linspace(-1, 1, 6), np.zeros(6), np.zeros(6)
    net = torch.nn.Linear(6, 1, bias=False).double()
    for i, g in enumerate(gradients):
        if i == 3:
            data = entry("fc.weight", w[None]) + entry("adam_m.fc.weight", m[None])
            content = read(tmp_path, data + entry("adam_v.fc.weight", v[None]))
            net.weight.data.copy_(content.state["fc.weight"])
            adam = torch.optim.AdamW(net.parameters(), lr, (beta1, beta2), eps, decay)
            adam.state[net.weight] = dict(optimizer_buffers(content).buffers["fc.weight"])
        if i >= 3:
            net.weight.grad = torch.from_numpy(g[None])
            adam.step()
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        w = w - lr * (m / (np.sqrt(v) + eps) + decay * w)
    assert np.abs(net.weight.detach().numpy()[0] - w).max() < 1e-12


# Whatever comes

FUZZ = settings(
    max_examples=int(os.environ.get("XFER_FUZZ", "150")),
    deadline=None,
    database=None,
    derandomize="XFER_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=12)), min_size=1, max_size=6
)


def only_xfer_errors(path: Path) -> None:
    head, size = path.read_bytes()[:300], path.stat().st_size
    is_mindspore_ckpt(head, size)
    mindir_tensors.is_mindir(head, size)
    for reader in READERS.values():
        try:
            content = reader(path)
            if content.optimizer is not None:
                optimizer_buffers(content)
        except XferError as error:
            assert "\n" not in str(error)


@FUZZ
@given(data=st.data(), edits=EDITS, front=st.booleans(), keep=st.floats(0.1, 1))
def test_a_mutated_file_is_read_or_refused(
    real: Path, tmp_path: Path, data: st.DataObject, edits: list[Any], front: bool, keep: float
) -> None:
    names = sorted(f.name for f in real.iterdir() if f.suffix in READERS)
    small = [trained(ADAM, powers(3)), trained({"accum": 1, "stat": 0}, {}), sealed(WEIGHT)]
    small.append(graph(parameter("a.w", floats(3)), parameter("moments.a.w", floats(3))))
    choice = data.draw(st.sampled_from([*names, *range(len(small))]))
    whole = (real / choice).read_bytes() if isinstance(choice, str) else small[choice]
    found = bytearray(whole)
    for place, cut, new in edits:
        # The fields lie between the contents, most of a small file's and all of the front.
        at = int(place * (min(300, len(found)) if front else len(found)))
        found[at : at + cut] = new
    path = tmp_path / "fuzz"
    path.write_bytes(found[: int(keep * len(found))] if keep < 0.9 else found)
    only_xfer_errors(path)


@FUZZ
@given(
    fields=st.recursive(
        st.binary(max_size=30),
        lambda inner: st.lists(
            st.one_of(
                st.builds(number, st.integers(1, 20), st.integers(0, 2**64 - 1)),
                st.builds(block, st.integers(1, 20), inner),
                st.builds(block, st.integers(1, 3), inner, st.integers(0, 2**64 - 1)),
                st.builds(
                    value,
                    st.text(max_size=9),
                    st.sampled_from(KINDS),
                    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(tuple),
                    st.binary(),
                ),
                inner,
            ),
            max_size=6,
        ).map(b"".join),
        max_leaves=20,
    ),
    start=st.sampled_from([b"", b"\x0a", b"\x0a\x051.1.1", WEIGHT, b"\xd8\x5e\x3a"]),
)
def test_random_bytes_are_refused(tmp_path: Path, fields: bytes, start: bytes) -> None:
    path = tmp_path / "fuzz"
    path.write_bytes(start + fields)
    only_xfer_errors(path)
