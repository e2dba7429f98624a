"""Many runs that want one run folder at once.

``python tests/proofs/crowd.py 16`` prints their exit codes.

With ``--late`` the last one finds the folder free, plans while another run works in it and
finishes, and only then comes to its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from survival import end
from warm import warm

OPTIONS = ["trainer.max_epochs=1", "stages=[fit]"]


def begin(folder: Path, waits_for: Path | None) -> int:
    """Fork a run in ``folder / "run"`` that plans until ``waits_for`` is there; its process id."""
    child = os.fork()
    if child:
        return child
    import xfer
    from xfer import workflow
    from xfer.core.errors import XferError

    plan, code = workflow.make_plan, 1

    def slow(specs):
        while waits_for is not None and not waits_for.exists():
            time.sleep(0.05)
        return plan(specs)

    try:
        os.dup2(os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        workflow.make_plan = slow
        xfer.run("digits_sgd", [f"run.dir={folder / 'run'}", *OPTIONS])
        code = 0
    except XferError as error:
        print(error)
        code = error.exit
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    """Print the exit codes, and the state that the folder is left in."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=int)
    parser.add_argument("--late", action="store_true")
    asked = parser.parse_args()
    warm()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        result = folder / "run" / "result.json"
        finished = folder / "finished"
        late = [begin(folder, finished)] if asked.late else []
        time.sleep(1 if late else 0)
        codes = [end(child) for child in [begin(folder, None) for _ in range(asked.runs)]]
        before = result.stat().st_mtime_ns
        finished.touch()
        codes += [end(child) for child in late]
        status = json.loads((folder / "run" / "status.json").read_text())
        untouched = result.stat().st_mtime_ns == before
        said = (folder / "output").read_text()
    print(json.dumps({"codes": codes, "state": status["state"], "untouched": untouched}))
    print(said, file=sys.stderr)


if __name__ == "__main__":
    main()
