"""The stages beside the straight line: each measures something, draws it and says what it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfer.core.errors import printable
from xfer.core.files import write_json
from xfer.core.live_line import working
from xfer.core.log import LINES, log
from xfer.core.protocols import HasTeacher
from xfer.export import refuse_early
from xfer.report.plot import draw
from xfer.training.fit_health import warn

if TYPE_CHECKING:
    from torch import nn

    from xfer.plan.plan import Plan
    from xfer.report.inputs import Work


def find_rate(work: Work) -> None:
    """``lr_find``: a range test of the learning rate."""
    from xfer.report.charts import climb
    from xfer.training.lr_find import lr_find

    rates = lr_find(work.plan)
    write_json(work.folder / "lr_find.json", rates)
    path = draw(work.folder / "figures" / "lr_find.png", climb, rates)
    log.info(f"optim.lr={rates['suggested']:.2g} is suggested, see {path}")


def benchmark(work: Work, net: nn.Module) -> None:
    """``benchmark``: how fast the network and its exported files answer."""
    from xfer.export import benchmark as speed
    from xfer.report.charts import speeds

    with working("benchmark"):
        rows, remarks = speed.benchmark(work.plan, net, work.checkpoint(), work.folder)
    warn(work.warnings, remarks)
    path = draw(work.folder / "figures" / "benchmark.png", speeds, rows)
    log.info(f"drawn in {printable(path)}", extra=LINES)


def refuse_late(plan: Plan) -> None:
    """Raise XferError for what the last stages would refuse, before anything is paid for."""
    if "export" in plan.specs.stages:
        refuse_early(plan.specs.export.writers, plan.card)
    if "worth" in plan.specs.stages:
        from xfer.training.worth import refuse_few

        refuse_few(plan)


def worth(work: Work) -> None:
    """``worth``: what more images would bring, read off learning curves on cached features."""
    from xfer.report.card import data_name
    from xfer.report.worth_page import summary, write_worth
    from xfer.training.worth import measure

    with working("worth"):
        facts = measure(work.plan)
    plan = work.plan
    title = data_name({"experiment": plan.specs.experiment}, plan.facts)
    said = write_worth(work.folder, facts, title, plan.specs.command)
    work.worth = summary(facts, said)
    loss, data = plan.specs.loss, plan.specs.data
    smooths = bool(getattr(loss, "label_smoothing", 0))
    weighs = smooths or loss.weights(plan.train_counts) is not None
    weighs = weighs or not getattr(loss, "solvable", False)
    weighs = weighs or isinstance(loss, HasTeacher)
    if weighs or (data and data.sampler == "balanced"):
        plain = "worth solves heads with plain cross-entropy: loss and data.sampler play no part"
        work.warnings.append(plain)
    if not facts["check"]["inside"]:
        work.warnings.append(said[-1])


def embed(work: Work, net: nn.Module) -> None:
    """``embed``: the features of images as a file, and what is nearest to one of them."""
    from xfer.core.device import device_name, device_of
    from xfer.training import embed as written

    device = device_of(work.plan.specs.trainer.accelerator)
    work.device = work.device if work.fitted else device_name(device)
    with working("embed"):
        work.embedded = written.embed(work.plan, net, work.folder, device)
    for line in written.lines(work.embedded, work.folder):
        log.info(printable(line), extra=LINES)
