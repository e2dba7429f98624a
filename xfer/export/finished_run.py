"""Files exported beside the checkpoint of a run that has ended; what is there is never replaced."""

from __future__ import annotations

import filecmp
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.errors import CombinationError, XferError, printable
from xfer.core.files import output_errors, read_json, remove, tree_sha256, write_json
from xfer.core.live_line import working
from xfer.core.log import log
from xfer.core.protocols import Writer, WritesFolder
from xfer.core.run_status import amended
from xfer.core.types import Exported, Plain
from xfer.export.hub_folder import PUSH, HubFolder
from xfer.export.stage import hand_over
from xfer.plan.plan import Plan
from xfer.plan.preflight import check_folder

if TYPE_CHECKING:
    from torch import nn

_PARITY = "parity.json"
_SHARED = ("labels.json", "preprocess.json")


def _missing(plan: Plan, folder: Path) -> tuple[Writer, ...]:
    """The writers whose files are not in ``folder``. Raises CombinationError for a file there that
    is not as an export left it, and where options are typed, with which it would be another."""
    rows = {row["file"]: row for row in _rows(folder / _PARITY)}
    typed = [key for key in plan.specs.explicit if key.startswith("export.") and key != PUSH]
    missing = []
    for writer in plan.specs.export.writers:
        path = folder / writer.file
        if not os.path.lexists(path):
            missing.append(writer)
            continue
        row = rows.get(writer.file) or {}
        odd = not (path.is_dir() if isinstance(writer, WritesFolder) else path.is_file())
        if typed or odd or tree_sha256(path) != row.get("sha256"):
            what = f"{printable(path)} is there already"
            fix = "use it, or type run.dir=DIR for a folder of its own"
            raise CombinationError("export", what, fix, 37)
        log.info(f"{printable(path)} is there already, compared with the network: it stays")
        if isinstance(writer, HubFolder):
            writer.upload(path)
    return tuple(missing)


def export_beside(
    plan: Plan, network: Callable[[], nn.Module], run: Path, checkpoint: Path
) -> list[Exported]:
    """Write the ``network`` of ``checkpoint`` in every format asked for into ``export/`` of the
    folder ``run``, which holds it; ``parity.json`` lists those files after the ones it has.

    They are written in a folder of their own and moved when they have passed, also where another
    one was refused. A file that an earlier export left there stays, and a line says so. Raises as
    :func:`xfer.export.stage.hand_over`, CombinationError for another file of that name, for
    options that would make it another one, and for labels or a recipe there that are not the
    checkpoint's, and OutputError where another process works in ``run``.
    """
    folder = run / "export"
    check_folder(run)
    with output_errors(folder), working("export"), amended(run) as changed:
        writers = _missing(plan, folder)
        if not writers:
            return []
        asked = replace(plan.specs, export=replace(plan.specs.export, writers=writers))
        plan, net = replace(plan, specs=asked), network()
        for left in run.glob(".export-*"):  # by an export that was killed
            remove(left)
        with tempfile.TemporaryDirectory(".part", ".export-", run) as place:
            made = Path(place)
            try:
                return hand_over(plan, net, made, checkpoint)
            except XferError as error:
                for one in getattr(error, "errors", [error]):
                    one.where = one.where.replace(printable(made), printable(folder))
                raise
            finally:
                changed += _moved(made, folder)
                if changed:
                    log.info(f"exported into {printable(folder)}")


def _moved(made: Path, folder: Path) -> Sequence[Path]:
    """Move what passed into ``folder``; the paths that are new or changed there."""
    if not (made / _PARITY).exists():
        return ()
    rows: list[Plain] = read_json(made / _PARITY)
    folder.mkdir(exist_ok=True)
    for name in _SHARED:
        there = folder / name
        if there.exists() and not filecmp.cmp(made / name, there, shallow=False):
            what = f"{printable(there)} is not what the checkpoint says"
            raise CombinationError("export", what, "remove it, or type run.dir=DIR", 38)
    moved = [folder / name for name in _SHARED if not (folder / name).exists()]
    moved += [folder / row["file"] for row in rows]
    for path in moved:
        (made / path.name).replace(path)
    before = _rows(folder / _PARITY)
    names = [row["file"] for row in rows]
    write_json(folder / _PARITY, [*(row for row in before if row["file"] not in names), *rows])
    return [*moved, folder / _PARITY]


def _rows(path: Path) -> list[Plain]:
    """The rows of an earlier ``parity.json``; none where there is none."""
    try:
        rows = read_json(path)
        return [{**row, "file": str(row["file"])} for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = f"{printable(path)} is not what an export writes"
        fix = "put it back, or type run.dir=DIR"
        raise CombinationError("export", what, fix, 38) from error
