from __future__ import annotations

import ast
from pathlib import Path

from xfer.core.run_folder import best_checkpoint, checkpoints, run_of

PACKAGE = Path(__file__).parents[2] / "xfer"


def test_the_best_checkpoint_is_that_of_a_folder_or_the_file_itself(tmp_path: Path) -> None:
    best = tmp_path / "checkpoints" / "best.ckpt"
    assert best_checkpoint(tmp_path) == best and best.parent == checkpoints(tmp_path)
    assert best_checkpoint(best) == best
    elsewhere = tmp_path / "there_is_none.ckpt"
    assert best_checkpoint(elsewhere) == elsewhere


def test_the_run_of_a_checkpoint_is_the_folder_around_its_own(tmp_path: Path) -> None:
    assert run_of(best_checkpoint(tmp_path)) == tmp_path
    assert run_of(Path("checkpoints/best.ckpt")) == Path()
    assert run_of(tmp_path / "best.ckpt") is None and run_of(Path("best.ckpt")) is None


def test_no_other_module_writes_out_where_checkpoints_are() -> None:
    names = ("checkpoints", "best.ckpt", "last.ckpt", "checkpoints/best.ckpt")
    writers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    # torch.hub has a folder of that name too.
    assert writers == {"core/run_folder.py", "weights/hub/libraries.py"}
