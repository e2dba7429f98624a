"""The run folder that a plan is written into: made, or refused where it is taken."""

from __future__ import annotations

import secrets
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from xfer.config.specs import Specs
from xfer.core.errors import OutputError
from xfer.core.files import output_errors, write_json, write_text, yaml_text
from xfer.core.run_folder import BESIDE
from xfer.plan.plan import Plan


def refuse_taken(specs: Specs) -> None:
    """Raise OutputError, before any cost, for a ``run.dir`` that cannot be this run's own."""
    if specs.run_dir is None:
        return
    folder = Path(specs.run_dir).expanduser()
    with output_errors(folder):
        if folder.exists() and any(path.name not in BESIDE for path in folder.iterdir()):
            fix = f"choose another run.dir, or checkpoint.resume={folder}"
            raise OutputError(folder, "already holds files", fix, 2)


def make_folder(specs: Specs) -> Path:
    """A folder of this run's own: made, never shared."""
    if specs.run_dir is not None:
        folder = Path(specs.run_dir).expanduser()
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder
    root = Path("outputs") / specs.experiment
    while True:
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        folder = root / f"{stamp}_{secrets.token_hex(3)}"
        with output_errors(folder), suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def write_plan(plan: Plan, folder: Path) -> None:
    """Write ``plan.json`` and, where weights were loaded, what became of each tensor."""
    write_json(folder / "plan.json", plan.facts)
    if plan.load:
        write_json(folder / "load_report.json", plan.load)
    write_text(folder / "config.yaml", yaml_text(plan.asked.config))
