"""Lightning's checkpoints, written atomically and with a checksum."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.plugins.io import TorchCheckpointIO

from xfer.core.run_folder import LAST, PREVIOUS
from xfer.core.torch_file import load_tensors, save_tensors

if TYPE_CHECKING:
    pass


class AtomicIO(TorchCheckpointIO):
    """Lightning's checkpoints through :mod:`xfer.core.torch_file`: never torn, never code.

    The last resume file stays as ``previous.ckpt`` when a new one takes its place.
    """

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """Write to the target's own folder, sync, read back, rename."""
        path = Path(path)
        save_tensors(path, checkpoint, partial(_keep_previous, path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = True) -> Any:
        """Read tensors and plain types only."""
        return load_tensors(Path(path))


def _keep_previous(path: Path) -> None:
    # A kill after this leaves a run without last.ckpt, which goes on from the previous one.
    if path.name == LAST and path.is_file():
        path.replace(path.with_name(PREVIOUS))
