"""Which architectures can be cut at the head's input when the head alone trains.

    python bench/cuts.py [--families 40] [--limit 30] [--seconds 480] [--library timm]

Goes over every classification model of torchvision and every architecture of timm with at most
LIMIT million parameters, or over one model of each of FAMILIES families (source files of the
library, drawn by ``--seed``); weights are random, so nothing is downloaded. Each model is built
and cut as xfer does it: ``find`` proves a cut bit for bit on two images. Prints one row a model,
then the support table. Models that are not reached in SECONDS are counted, not guessed.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import re
import signal
import time
import warnings
from contextlib import contextmanager

os.environ.setdefault("OMP_NUM_THREADS", "1")
PATIENCE = 90  # seconds a model
SMALL = 64  # pixels; where the architecture does not take them, its own

CACHED, EARLIER, REFUSED = "cached at the head's input", "cached before it", "refused"
UNBUILT, LARGE, LATE = "not built by xfer", "over the limit", f"over {PATIENCE} s"


def families(library):
    """Model names by the library's source file."""
    if library == "timm":
        import timm

        names, module = timm.list_models(), lambda name: timm.models.model_entrypoint(name)
    else:
        from torchvision import models

        names, module = models.list_models(module=models), models.get_model_builder
    found = collections.defaultdict(list)
    for name in names:
        found[module(name).__module__.rsplit(".", 1)[-1]].append(name)
    return found


def chosen(args):
    """(library, family, names): one of the names in turn where families are asked for."""
    draw = random.Random(args.seed)
    every = [
        (library, family, draw.sample(names, len(names)))
        for library in args.library
        for family, names in families(library).items()
    ]
    draw.shuffle(every)
    if args.families:
        return every[: args.families]
    return [(library, family, [name]) for library, family, names in every for name in names]


@contextmanager
def at_most(seconds):
    def stop(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def millions(backbone):
    """Parameters, counted on the meta device; ``None`` where it cannot be built there."""
    import torch

    try:
        with torch.device("meta"):
            return sum(p.numel() for p in backbone.build(5).module.parameters()) / 1e6
    except (NotImplementedError, RuntimeError):
        return None


def head_only(network):
    """Its module with everything but the head frozen, in the mode in which it trains."""
    from xfer.freeze import hold

    heads = tuple(f"{head}." for head in network.heads)
    for name, parameter in network.module.named_parameters():
        parameter.requires_grad_(name.startswith(heads))
    hold(network.module.train())
    return network.module


def cut(backbone, limit):
    """(millions of parameters, outcome, what, seconds of the finder)."""
    import torch

    from xfer.training.features.cut import Cut
    from xfer.training.features.find_cut import find

    network = backbone.build(5)
    net = head_only(network)
    count = sum(p.numel() for p in net.parameters()) / 1e6
    if count > limit:
        return count, LARGE, "", 0.0
    sizes = dict.fromkeys([(SMALL, SMALL), network.input.size])
    for size in sizes:
        began = time.perf_counter()
        found = find(net, torch.randn(2, 3, *size), network.heads)
        seconds = time.perf_counter() - began
        if isinstance(found, Cut) or not found.reason.startswith("the network fails"):
            break
    if not isinstance(found, Cut):
        return count, REFUSED, found.reason, seconds
    behind = [n for n, _ in net.named_parameters() if n.startswith(dotted(found.after))]
    at_head = all(name.startswith(dotted(network.heads)) for name in behind)
    where = f"{', '.join(found.modules)}, {found.size} numbers at {size[0]} px"
    return count, CACHED if at_head else EARLIER, where, seconds


def dotted(paths):
    return tuple(f"{path}." for path in paths)


def judged(library, name, limit):
    """(millions of parameters, outcome, what, seconds)."""
    from xfer.core.errors import XferError
    from xfer.models.backbone import Timm, Torchvision

    size = None
    try:
        with at_most(PATIENCE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backbone = (Timm if library == "timm" else Torchvision)(name)
            size = millions(backbone)
            if size is not None and size > limit:
                return size, LARGE, "", 0.0
            return cut(backbone, limit)
    except TimeoutError:
        return size, LATE, "", PATIENCE
    except XferError as error:
        return size, UNBUILT, error.what, 0.0


def table(rows, left):
    """The support table: libraries across, outcomes down."""
    libraries = sorted({row[0] for row in rows})
    print(f"\n{'':32}" + "".join(f"{library:>13}" for library in libraries))
    counts = collections.Counter((row[0], row[4]) for row in rows)
    for outcome in (CACHED, EARLIER, REFUSED, UNBUILT, LATE, LARGE):
        print(f"{outcome:32}" + "".join(f"{counts[x, outcome]:13}" for x in libraries))
    if left:
        print(f"{left} not reached")
    times = sorted(row[6] for row in rows if row[4] in (CACHED, EARLIER))
    if times:
        print(f"find: median {times[len(times) // 2]:.2f} s, longest {times[-1]:.2f} s")
    reasons = collections.defaultdict(list)
    for row in rows:
        if row[4] in (REFUSED, UNBUILT):
            reasons[re.sub(r"'[^']*'", "'...'", row[5])].append(row[2])
    for reason, names in sorted(reasons.items(), key=lambda pair: -len(pair[1])):
        print(f"{len(names):4} {reason}: {', '.join(names[:6])}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", type=int, help="one model of so many families")
    parser.add_argument("--limit", type=float, default=30, help="millions of parameters")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--library", nargs="+", default=["timm", "torchvision"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began, rows, every = time.perf_counter(), [], chosen(args)
    for n, (library, family, names) in enumerate(every):
        if time.perf_counter() - began > args.seconds:
            table(rows, len(every) - n)
            return
        for name in names:
            size, outcome, what, seconds = judged(library, name, args.limit)
            if outcome != LARGE:
                break
        rows.append((library, family, name, size, outcome, what, seconds))
        count = "    ?" if size is None else f"{size:5.1f}"
        print(f"{library:12}{name:40}{count} M {seconds:6.2f} s  {outcome}: {what}", flush=True)
    table(rows, 0)


if __name__ == "__main__":
    main()
