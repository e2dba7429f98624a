"""Reading weights into torch tensors: xfer's readers of MindSpore's files beside torch.load.

    python bench/readers.py [--runs 9]

The same random tensors, with the shapes of a ResNet-50 (102 MB), in each format. A run reads a
file and sums every tensor, so that each byte is touched; formats take turns, on one thread, with
the file in the page cache. Memory is the peak of a fresh process above what it used before the
read, as a share of the file.
"""

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from xfer.weights.mindspore import ckpt as mindspore_ckpt
from xfer.weights.mindspore import mindir_tensors
from xfer.weights.mindspore.ckpt import read_safetensors

FILES = ("a.pt", "a.ckpt", "a_crc.ckpt", "a.safetensors", "a.mindir")
MEMORY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from readers import read, total, torch
def kilobytes(key):
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(key))
    return int(line.split()[1])
folder, name = Path(sys.argv[2]), sys.argv[3]
total(read(folder / f"small{name[1:]}"))
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
total(read(folder / name))
print((kilobytes("VmHWM") - before) * 1024)
"""


def varint(value):
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def block(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def of_dims(tensor):
    return b"".join(b"\x08" + varint(n) for n in tensor.shape)


def raw(tensor):
    return tensor.contiguous().numpy().tobytes()


def ckpt(tensors):
    for name, tensor in tensors.items():
        content = of_dims(tensor) + block(2, b"Float32") + block(3, raw(tensor))
        yield block(1, block(1, name.encode()) + block(2, content))


def graph(tensors):
    for name, tensor in tensors.items():
        head = of_dims(tensor) + b"\x10\x01" + block(7, f"net:{name}".encode())
        yield block(3, head + block(9, raw(tensor)) + block(13, name.encode()))


def write(folder, stem, tensors):
    whole = b"".join(ckpt(tensors))
    crc = b"crc_num" + zlib.crc32(whole).to_bytes(10, "big")
    model = block(1, b"0.1.1") + block(2, b"MindSpore") + block(7, b"".join(graph(tensors)))
    torch.save(tensors, folder / f"{stem}.pt")
    (folder / f"{stem}.ckpt").write_bytes(whole)
    (folder / f"{stem}_crc.ckpt").write_bytes(whole + crc)
    (folder / f"{stem}.mindir").write_bytes(model)
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "ms"})


def read(path):
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True, mmap=False)
    if path.suffix == ".safetensors":
        return read_safetensors(path).state
    return (mindir_tensors if path.suffix == ".mindir" else mindspore_ckpt).read(path).state


def total(tensors):
    return sum(float(tensor.sum()) for tensor in tensors.values())


def sha256(path):
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def timed(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def added(folder, name):
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", MEMORY, here, str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) / (folder / name).stat().st_size


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shapes = {n: p.shape for n, p in resnet50().state_dict().items() if p.is_floating_point()}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder, "a", tensors)
        write(folder, "small", {"w": torch.ones(3, 2)})
        wanted = total(tensors)
        seconds = {name: [] for name in (*FILES, "sha256")}
        for _ in range(runs):
            for name in FILES:
                seconds[name].append(timed(lambda name=name: total(read(folder / name))))
            seconds["sha256"].append(timed(lambda: sha256(folder / "a.ckpt")))
        base, size = statistics.median(seconds["a.pt"]), (folder / "a.ckpt").stat().st_size
        print(f"{'':<22} {'min':>7} {'median':>7} {'GB/s':>6} {'of torch':>9} {'memory':>7}")
        for name, found in seconds.items():
            mid = statistics.median(found)
            row = f"{name:<22} {min(found):6.3f}s {mid:6.3f}s {size / mid / 1e9:6.2f}"
            if name in FILES:
                assert total(read(folder / name)) == wanted
                row += f" {mid / base:8.2f}x {added(folder, name):6.2f}x"
            print(row, flush=True)


if __name__ == "__main__":
    main()
