"""One more process of a run that trains on several devices.

``python -m xfer.training.distributed.rank FOLDER NUMBER`` is how rank 0 starts it.

It begins from the ``plan.json`` that rank 0 has saved, takes part in the fit, and ends. What
cannot be read there (the images' names, what trains when) rank 0 sends; the weights as well.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

from xfer.config.build import Builder
from xfer.config.provenance import Places
from xfer.core.errors import XferError
from xfer.core.files import read_json
from xfer.core.log import flush, log
from xfer.core.run_status import as_xfer
from xfer.core.signals import Stopped, heeded, stop
from xfer.training.distributed.launch import report_error


def main() -> None:
    """End with rank 0, whatever ends it."""
    gc.set_threshold(100_000, 10, 10)  # as the command line imports: see ``import_at_ease``
    threading.Thread(target=_end_with_rank_zero, daemon=True).start()
    with heeded():
        code = take_part(Path(sys.argv[1]), int(sys.argv[2]))
    for worker in multiprocessing.active_children():
        worker.terminate()
        worker.join()
    flush()
    os._exit(code)  # rank 0 waits, and taking torch down takes longer than what is left to do


def _end_with_rank_zero() -> None:
    os.read(0, 1)
    os._exit(1)


def take_part(folder: Path, number: int) -> int:
    """Train as rank ``number`` of the run in ``folder``; the exit code. Errors go to rank 0."""
    from xfer.training.distributed.rendezvous import is_lost
    from xfer.training.fit import take_part as fit

    log.addHandler(logging.NullHandler())  # rank 0 says it
    log.propagate = False
    stop.waits = True  # for the step after which all ranks stop
    try:
        with suppress(Stopped):
            plan = read_json(folder / "plan.json")
            specs = Builder(plan["config"], Places({}, [], [])).specs(plan["experiment"], [])
            fit(specs, folder, number)
    except Exception as error:
        if is_lost(error):
            return 1  # who is gone has said why, or rank 0 sees it
        failure = as_xfer(error)
        if not isinstance(failure, XferError):
            traceback.print_exc()
            what = f"{type(error).__name__}: {error}"
            failure = XferError(f"rank {number}", what, "this is a bug in xfer: report it", 14)
        report_error(folder, number, failure)
        return failure.exit
    return 0


if __name__ == "__main__":
    main()
