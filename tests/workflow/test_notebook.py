"""A run in a notebook: cells executed by a real kernel, and what stands below them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

MISSING = [name for name in ("nbclient", "nbformat", "ipykernel") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
RUN = ("experiment=digits_sgd", "trainer.max_epochs=2", "data.batch_size=2", "stages=[fit]")
CELLS = (
    # As ``!xfer`` runs it: IPython gives the command a pseudo-terminal.
    f"!{sys.executable} -m xfer {' '.join(RUN)} run.dir=typed",
    f"import xfer\nresult = xfer.run(None, {[*RUN, 'run.dir=called']})",
    "result",
    "xfer.load(result.folder)",
)


def test_a_notebook_shows_each_finished_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, resources=resources, kernel_name="python3").execute()
    *runs, result, model = (cell.outputs for cell in notebook.cells)
    for folder, outputs in zip(("typed", "called"), runs, strict=True):
        assert {output.name for output in outputs} == {"stdout"}
        lines = "".join(output.text for output in outputs).replace("\r\n", "\n").splitlines()
        assert not [line for line in lines if "\x1b" in line or "\r" in line or "..." in line]
        assert [line[:9] for line in lines if line.startswith("epoch")] == [
            *("epoch 1/2", "epoch 2/2"),
        ]
        assert lines[0].startswith("run  ") and lines[-1] == f"everything is in {folder}"
    assert result[0].data["text/plain"] == f"Result(folder={Path('called')!r})"
    shown = model[0].data["text/plain"]
    assert shown.startswith("Model(card=Card(") and "Conv2d" not in shown
