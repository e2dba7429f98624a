"""Files of weights, whole ones and those that must be refused."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

State = dict[str, torch.Tensor]


def state(seed: int = 1) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "bn.running_mean": torch.randn(4, generator=generator),
        "bn.num_batches_tracked": torch.tensor(7),
        "fc.weight": torch.randn(2, 4, generator=generator).to(torch.float16),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0),
    }


def torch_bytes(content: object, legacy: bool = False, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def safetensors_bytes(tensors: State, metadata: dict[str, str] | None = None) -> bytes:
    from safetensors.torch import save

    return save(tensors, metadata)


def npz_bytes(packed: bool = False, **arrays: Any) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(out, **arrays)
    return out.getvalue()


def of_numpy(tensors: State) -> bytes:
    return npz_bytes(**{n: t.numpy() for n, t in tensors.items()})


GOOD: dict[str, Callable[[State], bytes]] = {
    "torch checkpoint": torch_bytes,
    "torch legacy pickle": lambda tensors: torch_bytes(tensors, legacy=True),
    "safetensors": safetensors_bytes,
    "npz": of_numpy,
}


def zip_of(*members: tuple[str, bytes], packed: bool = False) -> bytes:
    out = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def repacked(data: bytes, packed: bool = True) -> bytes:
    """The same archive with its members deflated."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return zip_of(*((n, archive.read(n)) for n in archive.namelist()), packed=packed)


def with_member(data: bytes, end: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with the members whose names end in ``end`` changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(n, archive.read(n)) for n in archive.namelist()]
    return zip_of(*((n, change(b) if n.endswith(end) else b) for n, b in members))


def torch_zip(pickled: bytes, *data: bytes) -> bytes:
    """A torch zip around ``pickled``, with the ``data`` of its storages."""
    parts = [("a/data.pkl", pickled), ("a/byteorder", b"little"), ("a/version", b"3\n")]
    return zip_of(*parts, *((f"a/data/{n}", b) for n, b in enumerate(data)))


def legacy(pickled: bytes, rest: bytes = b"\x80\x02].") -> bytes:
    """A legacy file with ``pickled`` as its object."""
    start = torch_bytes({}, legacy=True)
    place = start.index(pickle.dumps({}, 2))
    return start[:place] + pickled + rest


def npy(shape: str = "(2,)", descr: str = "<f4", data: bytes = b"\0" * 8) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: str = "[2]", offsets: str = "[0,8]") -> bytes:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'.encode()


def overlapping() -> bytes:
    """A zip file whose many members all lie on the same bytes."""
    data = bytearray(zip_of(("a.npy", npy(data=b"\0" * 80_000, shape="(20000,)"))))
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    one = bytes(data[start:end])
    many = b"".join(one.replace(b"a.npy", b"%05d" % i) for i in range(200))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 200, 200, len(many), start, 0)
    return bytes(data[:start]) + many + tail


def fake_tar(first: bytes) -> bytes:
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(first.decode())
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


STRETCHED = {"a": torch.ones(1).expand(1 << 16, 1 << 16)}
ALIASED = dict.fromkeys((f"a{i}" for i in range(3000)), torch.ones(5000))
NESTED_LISTS = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
NESTED_TUPLES = b"\x80\x02)" + b"\x85" * 1_000_000 + b"."
# ((t, t), (t, t)) and so on: 2 ** 50 leaves, all of which a hash visits.
DOUBLED = b"\x80\x02)" + b"q\x00h\x00\x86" * 50
DOUBLED_KEY = b"\x80\x02}" + DOUBLED[2:] + b"Ns."
SAME_HASH = b"\x80\x02}(" + b"".join(
    b"\x8a\x0b" + (1 + i * ((1 << 61) - 1)).to_bytes(11, "little") + b"N" for i in range(9, 999)
) + b"u."  # fmt: skip
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0"
HUGE = (
    b"\x80\x02" + TENSOR + b"0X\x03\0\0\0cpu\x8a\x06\0\0\0\0\0\x01tQK\0\x8a\x06\0\0\0\0\0\x01\x85"
)
HUGE += b"K\x01\x85\x89ccollections\nOrderedDict\n)RtR."


def called(module: str, name: str, *numbers: int) -> bytes:
    """A pickle that calls a function with numbers."""
    values = b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in numbers)
    return b"\x80\x02c" + f"{module}\n{name}\n(".encode() + values + b"tR."


BOMBS: dict[str, Callable[[], bytes]] = {
    "deflated torch": lambda: repacked(torch_bytes({"a": torch.zeros(1 << 24)})),
    "deflated npz": lambda: npz_bytes(packed=True, a=np.zeros(1 << 25, np.float32)),
    "overlapping members": overlapping,
    "sixty thousand members": lambda: zip_of(*((f"{i}.npy", b"") for i in range(60_000))),
    "stretched zip": lambda: torch_bytes(STRETCHED),
    "stretched legacy": lambda: torch_bytes(STRETCHED, legacy=True),
    "aliased zip": lambda: torch_bytes(ALIASED),
    "nested lists": lambda: torch_zip(NESTED_LISTS),
    "nested tuples": lambda: torch_zip(NESTED_TUPLES),
    "nested tuples legacy": lambda: legacy(NESTED_TUPLES),
    "doubled tuples as a key": lambda: torch_zip(DOUBLED_KEY),
    "doubled tuples as a key, legacy": lambda: legacy(DOUBLED_KEY),
    "keys of one hash": lambda: torch_zip(SAME_HASH),
    "a million opcodes": lambda: torch_zip(b"\x80\x02]" + b"Na" * 500_000 + b"."),
    "a million lists": lambda: torch_zip(b"\x80\x02](" + b"]" * 1_000_000 + b"e."),
    "a huge storage zip": lambda: torch_zip(HUGE),
    "a huge storage legacy": lambda: legacy(HUGE, b"\x80\x02]X\x01\0\0\x000a."),
    "a memo at four billion": lambda: torch_zip(b"\x80\x02]r\xff\xff\xff\xffj\xff\xff\xff\xff."),
    "a text of four gigabytes": lambda: torch_zip(b"\x80\x02X\xff\xff\xff\xffabc."),
    "bytearray of a terabyte": lambda: torch_zip(called("__builtin__", "bytearray", 1 << 40)),
    "tensor of a terabyte": lambda: torch_zip(called("torch", "FloatTensor", 1 << 38)),
    "storage of a terabyte": lambda: legacy(called("torch.storage", "UntypedStorage", 1 << 40)),
    "a slow codec": lambda: torch_zip(
        b"\x80\x02c_codecs\nencode\nX\x03\0\0\0abcX\x04\0\0\0idna\x86R."
    ),
    "npz of a terabyte": lambda: zip_of(("a.npy", npy("(1099511627776,)"))),
    "npz of overflowing shape": lambda: zip_of(("a.npy", npy("(4294967296, 4294967296)"))),
    "npz of negative shape": lambda: zip_of(("a.npy", npy("(-1, -2)"))),
    "npz header of brackets": lambda: zip_of(("a.npy", npy("(" * 5000))),
    "safetensors of a terabyte": lambda: header(
        b'{"a":' + entry(shape="[1099511627776]", offsets="[0,4398046511104]") + b"}"
    ),
    "safetensors overflow": lambda: header(
        b'{"a":' + entry(shape="[4294967296,4294967296,4294967296]") + b"}", b"\0" * 8
    ),
    "safetensors of brackets": lambda: header(b'{"a":' + b"[" * 1_000_000),
    "onnx-like varints": lambda: b"\x08\x07\x12\xff\xff\xff\xff\x0f" + b"\xff" * 1000,
}


def encrypted(cipher: int) -> bytes:
    """A checkpoint as MindSpore encrypts it: two blocks, each the magic of its ``cipher``, a tag
    where that is AES-GCM, and a length that counts the vector, the text and the lengths of both."""
    dice = np.random.default_rng(cipher)

    def part(size: int) -> bytes:
        return struct.pack("<I", size) + dice.bytes(size)

    def block(size: int) -> bytes:
        inside = part(16) + part(size)
        tag = dice.bytes(16) if cipher == 0xD8 else b""
        return bytes([cipher, 0x5E, 0x3A, 0x7F]) + tag + struct.pack("<I", len(inside)) + inside

    return block(4096) + block(1008)


FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "zeros": (b"\0" * 5000, "zero bytes"),
    "one byte": (b"\x07", "not a file of weights"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 49985\n",
        r"git-LFS pointer.*run git lfs pull",
    ),
    "page": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page.*web page.*address"),
    "late page": (b"\xef\xbb\xbf\r\n\n <html lang=en>", "HTML page"),
    "head": (b"<head><title>Sign in</title></head>", "HTML page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "server's error"),
    "json": (b'{"error": "Repository not found"}', "JSON"),
    "list": (b"[1, 2]", "JSON"),
    "index": (
        b'{"metadata": {}, "weight_map": {"a": "m-00001-of-00002.safetensors", '
        b'"b": "m-00002-of-00002.safetensors"}}',
        r"index of weights.*\(m-00001-of-00002.safetensors, m-00002-of-00002.safetensors\)",
    ),
    "text": (b"Entry not found", "text file.*Entry not found"),
    "yaml": (b"model:\n  name: resnet\n", "text file"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:", "ONNX"),
    "onnx without producer": (b"\x08\x07:\x10" + b"\n" * 30 + b"\xff", "ONNX"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "HDF5.*Keras"),
    "keras": (zip_of(("config.json", b"{}"), ("model.weights.h5", b"\x89HDF")), "Keras"),
    "frozen graph": (b"\n\x1e\n\x01a\x12\x0bPlaceholder*\x0c" + b"\xff" * 12, "TensorFlow"),
    "saved model": (b"\x08\x01\x12\xa7\x10\n\x05\x1a\xff" + b"\x00\xff" * 20, "TensorFlow"),
    "tf index": (b"\x00\xff" * 40 + bytes.fromhex("57fb808b247547db"), "TensorFlow"),
    "tflite": (b"\x1c\0\0\0TFL3\x14\0", "TensorFlow"),
    "gguf": (b"GGUF\x03\0\0\0", "GGUF"),
    "mxnet": (b"\x12\x01\0\0\0\0\0\0\0\0", "MXNet"),
    "gzip": (b"\x1f\x8b\x08\x00abc", "gzip.*gunzip"),
    "bzip2": (b"BZh91AY", "bunzip2"),
    "xz": (b"\xfd7zXZ\x00\x00", "unxz"),
    "zstd": (b"\x28\xb5\x2f\xfd\x00", "unzstd"),
    "7z": (b"7z\xbc\xaf\x27\x1c", "7z"),
    "rar": (b"Rar!\x1a\x07\x01", "rar"),
    "tar": (fake_tar(b"model.pt"), "tar archive"),
    "torch tar": (fake_tar(b"sys_info"), r"\.tar of torch 0\.1"),
    "zip": (zip_of(("model.pt", b"abc")), "zip archive that holds no weights"),
    "empty zip": (zip_of(), "zip archive"),
    "png": (b"\x89PNG\r\n\x1a\n000", "image"),
    "jpeg": (b"\xff\xd8\xff\xe0", "image"),
    "webp": (b"RIFF\0\0\0\0WEBP", "image"),
    "pdf": (b"%PDF-1.7", "PDF"),
    "npy": (npy(), r"single numpy array.*numpy\.savez"),
    "pt2": (zip_of(("a/archive_format", b"pt2"), ("a/models/m.json", b"{}")), r"torch\.export"),
    "torchscript": (
        zip_of(("a/data.pkl", b"\x80\x02N."), ("a/constants.pkl", b"\x80\x02)."), ("a/code", b"")),
        "TorchScript",
    ),
    "plain pickle": (pickle.dumps({"a": [1.0]}), r"not one that torch\.save wrote"),
    "protocol 0": (pickle.dumps({"a": [1.0]}, 0), r"not one that torch\.save wrote"),
    "bytes": (bytes(range(1, 256)), "not a file of weights that xfer knows"),
    "mindspore, AES-GCM": (encrypted(0xD8), "E484: .*encrypted MindSpore checkpoint.*enc_key"),
    "mindspore, AES-CBC": (encrypted(0xD9), "E484: .*encrypted MindSpore checkpoint"),
    "mindspore, SM4-CBC": (encrypted(0xDA), "E484: .*encrypted MindSpore checkpoint"),
    "mindspore, AES-CBC, cut": (encrypted(0xD9)[:4], "E484: .*encrypted MindSpore checkpoint"),
    "encrypted zip": (
        zip_of(("a/data.pkl", b"\x80\x02N.")).replace(
            b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"
        ),
        "encrypted zip",
    ),
    "object arrays": (npz_bytes(a=np.array([{}], dtype=object)), "Python objects"),
    "structured arrays": (npz_bytes(a=np.zeros(2, [("x", "f4")])), "dtype|array 'a'"),
    "dates": (npz_bytes(a=np.zeros(2, "M8[s]")), "dtype datetime64"),
    "long doubles": (npz_bytes(a=np.zeros(2, np.longdouble)), "dtype (float128|longdouble)"),
    "two of one name": (
        zip_of(("a.npy", npy()), ("b.npy", npy())).replace(b"b.npy", b"a.npy"), "one name"
    ),
    "archives in one": (zip_of(("a/data.pkl", b"\x80\x02}."), ("b/version", b"3")), "several"),
    "member upwards": (zip_of(("../data.pkl", b"\x80\x02}.")), "leads out"),
    "absolute member": (zip_of(("/a.npy", npy())), "leads out"),
    "member with a newline": (zip_of(("a\n.npy", npy())), "leads out"),
    "no shape": (header(b'{"a":{"dtype":"F32","data_offsets":[0,8]}}', b"\0" * 8), "damaged"),
    "hole": (header(b'{"a":' + entry(offsets="[8,16]") + b"}", b"\0" * 16), "damaged"),
    "overlap": (header(b'{"a":' + entry() + b',"b":' + entry() + b"}", b"\0" * 8), "damaged"),
    "unknown dtype": (header(b'{"a":' + entry("X9") + b"}", b"\0" * 8), "damaged"),
    "more bytes": (header(b'{"a":' + entry() + b"}", b"\0" * 9), "damaged"),
    "fewer bytes": (header(b'{"a":' + entry() + b"}", b"\0" * 7), "damaged"),
    "no tensors": (header(b'{"__metadata__":{}}'), "."),
    "no json": (header(b'{"a":nonsense}', b"\0" * 8), "damaged"),
}  # fmt: skip


def flipped(data: bytes, place: int) -> bytes:
    place %= len(data)
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


PLACES: dict[str, list[bytes | int]] = {
    "torch checkpoint": [
        b"data.pkl",
        b"\x80\x02}",
        b"storage",
        b"PK\x01\x02",
        b"PK\x06\x06",
        b"PK\x05\x06",
        0,
    ],
    "torch legacy pickle": [3, 20, b"storage", b"_rebuild"],
    "safetensors": [0, 3, 8, 12, 30],
    "npz": [b"NUMPY", b"descr", b"PK\x01\x02", -10, 0],
}


def damages(kind: str) -> dict[str, bytes]:
    data = GOOD[kind](state())
    found = {f"cut at {n}": data[:n] for n in (2, 9, 40, len(data) // 3, 2 * len(data) // 3)}
    found |= {f"{n} bytes short": data[:-n] for n in (1, 20)}
    found["no start"] = b"\0" * 64 + data[64:]
    found["other start"] = b"weights:" + data
    for place in PLACES[kind]:
        at = data.index(place) if isinstance(place, bytes) else place
        found[f"flipped at {place!r}"] = flipped(data, at)
    return found


DAMAGED = {f"{kind}: {name}": data for kind in GOOD for name, data in damages(kind).items()}


class Malice:
    """Touches a file when a pickle of it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return Path.touch, (self.mark,)


NO_TORCH_FILES = {
    "empty": b"",
    "page": b"<!DOCTYPE html><html><body>404</body></html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 4998592\n",
    "json": b'{"a": 1}',
    "gzip": b"\x1f\x8b\x08\x00abc",
    "picture": b"\x89PNG\r\n\x1a\n000",
    "bytes": bytes(range(256)),
}
