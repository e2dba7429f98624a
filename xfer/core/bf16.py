"""Whether to compute in bfloat16: what the hardware has, and what it gains here."""

from __future__ import annotations

import time

from pydantic import PositiveFloat

from xfer.core.errors import OutputError
from xfer.core.files import cache_dir, read_json, write_json
from xfer.core.log import log
from xfer.core.read_back import checked

_GAIN = 1.2
_ROUNDS = 3


def verdict(accelerator: str, once: bool) -> tuple[bool, str]:
    """Whether bfloat16 pays on the device of ``accelerator``, and why. Where every image passes
    ``once`` on a processor, full precision is kept: the score then is of the same numbers."""
    import torch

    cuda = accelerator in ("auto", "gpu") and torch.cuda.is_available()
    if cuda:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return True, "the GPU computes in bfloat16"
        return False, "the GPU has no bfloat16"
    if accelerator == "mps":
        return False, "only 32 bits are tried on Apple's GPU"
    if once:
        return False, "each image passes once, and is scored in the same precision"
    if not _has_instructions():
        return False, "the processor has no bfloat16 instructions"
    gain = _measured()
    if gain < _GAIN:
        return False, f"bfloat16 is {gain:.2f} times as fast here, under {_GAIN}"
    return True, f"the processor has bfloat16, {gain:.1f} times as fast when it was tried"


def _has_instructions() -> bool:
    """Of this processor, as torch reads them."""
    import torch

    has = torch.cpu.get_capabilities()
    return any(bool(has.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _measured() -> float:
    """How many times faster one layer's forward and backward pass is in bfloat16. Tried once a
    machine and version of torch, so that a run that is begun again decides as before."""
    import torch

    place = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), torch.__version__
    path, key = cache_dir() / "bf16.json", " ".join(map(str, place))
    try:
        known: dict[str, float] = checked(dict[str, PositiveFloat], read_json(path))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = _compared()
        try:
            write_json(path, known)
        except OutputError as error:  # a run that is begun again may decide otherwise
            what = f"{error.where} {error.what}; XFER_CACHE=DIR sets another folder"
            log.warning(f"whether bfloat16 pays here is not remembered: {what}")
    return known[key]


def _compared() -> float:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)
        images = torch.randn(16, 128, 28, 28).contiguous(memory_format=torch.channels_last)

    def seconds(cast: bool) -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            layer(images).sum().backward()
        return time.perf_counter() - began

    seconds(False), seconds(True)
    rounds = [(seconds(False), seconds(True)) for _ in range(_ROUNDS)]
    return min(full for full, _ in rounds) / min(half for _, half in rounds)
