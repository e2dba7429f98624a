"""The stages that measure and draw what they found: the rate test, and the benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfer.core.errors import printable
from xfer.core.files import write_json
from xfer.core.live_line import working
from xfer.core.log import LINES, log
from xfer.report import charts
from xfer.report.plot import draw

if TYPE_CHECKING:
    from torch import nn

    from xfer.report.inputs import Work


def find_rate(work: Work) -> None:
    """The stage ``lr_find``: ``lr_find.json`` and its figure. Raises as the test does."""
    from xfer.training.lr_find import lr_find

    rates = lr_find(work.plan)
    write_json(work.folder / "lr_find.json", rates)
    path = draw(work.folder / "figures" / "lr_find.png", charts.climb, rates)
    log.info(f"optim.lr={rates['suggested']:.2g} is suggested, see {path}")


def measure_speed(work: Work, net: nn.Module) -> None:
    """The stage ``benchmark``: ``benchmark.json`` and its figure. Raises as the benchmark does."""
    from xfer.export.benchmark import benchmark

    with working("benchmark"):
        rows = benchmark(work.plan, net, work.checkpoint(), work.folder)
    path = draw(work.folder / "figures" / "benchmark.png", charts.speeds, rows)
    log.info(f"drawn in {printable(path)}", extra=LINES)
