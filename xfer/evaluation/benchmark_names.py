"""The names of what the stage ``benchmark`` measures, for whoever must know them without torch."""

from __future__ import annotations

from collections.abc import Sequence

RUN = (".onnx", ".pt2", ".torchscript")
"""The kinds of exported files that the stage ``benchmark`` runs."""
FOLDERS = {"openvino": "model.xml"}
"""The exported folders that it runs, and the file in each that says it is one."""
EAGER = "torch"
"""Its name for the network that is not exported."""
SPEEDS = ("ms", "images_per_s", "bytes")


def speeds(files: Sequence[str]) -> list[str]:
    """What the stage ``benchmark`` measures of exported ``files`` and of torch itself, as
    ``benchmark.<file>.<measure>``."""
    known = [EAGER, *(name for name in files if name.endswith(RUN) or name in FOLDERS)]
    return [f"benchmark.{name}.{measure}" for name in known for measure in SPEEDS]
