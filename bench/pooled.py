"""Pooled features of all photographs of a job, each decoded and computed once.

    python bench/pooled.py JOB.json

As a process of its own it is the floor of bench/defaults.py: start-up and one forward pass. Pixels
are made by xfer's own ``prepare`` with the recipe of the plan, so that they agree with xfer's.
"""

import networks
import torch

from xfer.core.types import InputSpec
from xfer.data.image import decode
from xfer.data.preprocess import prepare


def features(read, device, split):
    paths, labels = networks.listed(read["root"], split)
    recipe = InputSpec.from_plain(read["recipe"])
    net = networks.build(read, 2).eval().to(device, memory_format=torch.channels_last)
    rows = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, read["bf16"]):
        for i in range(0, len(paths), 32):
            arrays = [torch.from_numpy(prepare(decode(p), recipe)) for p in paths[i : i + 32]]
            images = torch.stack(arrays)
            images = images.to(device, memory_format=torch.channels_last)
            rows.append(networks.pooled(net, images).float().cpu())
    return paths, labels, torch.cat(rows).numpy()


if __name__ == "__main__":
    for half in ("train", "val"):
        features(*networks.job(), half)
