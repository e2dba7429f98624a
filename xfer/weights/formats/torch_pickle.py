"""Files of torch.save, zip or legacy, that are looked through before torch reads them."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from pathlib import Path

from xfer.core.errors import SafetyError, WeightsError
from xfer.core.torch_file import load_tensors
from xfer.weights.content import Content
from xfer.weights.formats.pickle_scan import QUANTISED, UNUSUAL, Demands, Machine, TooMuch
from xfer.weights.formats.state_dict import content_of
from xfer.weights.formats.zip_check import BROKEN, allowance, damaged, members

PICKLE = 64 * 1024 * 1024
"""The longest pickle that is looked through, in bytes; data of tensors is not in it."""
# Its magic number, its version, facts of the machine, the object, the keys of its data.
_LEGACY_PICKLES = 5
_ODD = (*BROKEN, UnicodeError, AttributeError, TypeError)
_FETCH = "do not use it; fetch it from its publisher"
_YOLO = ("ultralytics.", "models.yolo.")
# Arrays and numbers of numpy's.
_NUMPY = re.compile(
    r"(attributes of an? )?(numpy\._?core\.(multiarray|numeric)\.(_reconstruct|scalar|_frombuffer)"
    r"|numpy\.(ndarray|dtype|dtypes\.\w+)|_codecs\.encode)"
)
_RESAVE = "save the bare state dict: torch.save(model.state_dict(), ...), or use safetensors"


def read_zip(path: Path, key: str | None = None) -> Content:
    """What torch.save wrote since torch 1.6. Tensors come onto the CPU.

    Raises WeightsError when it is damaged or holds no state dict, SafetyError when its pickle
    asks for more than tensors or it would take more memory than its size warrants.
    """
    listed = members(path)
    names = [member.filename for member in listed]
    folders = {name.partition("/")[0] for name in names}
    # torch finds a member whatever the case of its letters.
    if len(folders) > 1 or len({name.lower() for name in names}) < len(names):
        raise SafetyError(path, "has members of several archives", _FETCH, 23)
    sizes = {m.filename.partition("/")[2]: m.file_size for m in listed}
    (name,) = [name for name in names if name.partition("/")[2] == "data.pkl"]
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            data = stream.read(PICKLE)
    except BROKEN as error:
        raise damaged(path, str(error)) from error
    demands = _demands(path, data, 1)
    _refuse_shape(path, demands)
    for name, declared in demands.stored.items():
        if sizes.get(f"data/{name}") != declared:
            raise damaged(path, f"its data '{name}' is not as long as declared")
    return content_of(path, load_tensors(path), "torch checkpoint", key)


def read_legacy(path: Path, key: str | None = None) -> Content:
    """What torch.save wrote before torch 1.6; raises as :func:`read_zip`."""
    with path.open("rb") as stream:
        demands = _demands(path, stream.read(PICKLE), _LEGACY_PICKLES)
    _refuse_shape(path, demands)
    needed, size = sum(demands.stored.values()), path.stat().st_size
    if needed > size:
        raise damaged(path, f"declares {needed} bytes of tensors")
    return content_of(path, load_tensors(path), "torch legacy pickle", key)


def refuse_pickle(path: Path, key: str | None = None) -> Content:
    """A pickle that torch.save did not write is refused: SafetyError when it could run code,
    else WeightsError."""
    with path.open("rb") as stream:
        _demands(path, stream.read(PICKLE), 1)
    raise WeightsError(path, "is a pickle, but not one that torch.save wrote", _RESAVE, 85)


def _demands(path: Path, data: bytes, pickles: int) -> Demands:
    machine, stream, broken = Machine(), io.BytesIO(data), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in malformed texts
            for _ in range(pickles):
                machine.run(stream)
    except TooMuch as error:
        raise SafetyError(path, f"its pickle {error}", _RESAVE, 24) from error
    except _ODD as error:
        broken = error
    _refuse_names(path, machine.demands.names)
    if broken is not None:
        raise damaged(path, f"its pickle is malformed: {broken}") from broken
    return machine.demands


def _refuse_names(path: Path, names: list[str]) -> None:
    if not names:
        return
    if all(name.startswith(QUANTISED) for name in names):
        raise WeightsError(path, "holds quantised tensors", "give the unquantised weights", 90)
    if all(name.startswith(UNUSUAL) for name in names):
        what = f"holds tensors that are not plain ({names[0]})"
        raise WeightsError(path, what, "save plain tensors", 92)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    what = f"its pickle asks for more than tensors: {', '.join(names[:3])}{more}"
    raise SafetyError(path, what, _without(path, names), 20)


def _without(path: Path, names: list[str]) -> str:
    """How to get at the weights of a pickle that asks for ``names``."""
    if any(name.startswith(_YOLO) for name in names):
        what = "it is a YOLO network, which timm and torchvision do not have"
        return f"{what}: type source=hub without source.path"
    if not all(_NUMPY.fullmatch(name) for name in names):
        return _RESAVE
    with path.open("rb") as stream:
        bare = stream.read(4) != b"PK\x03\x04"
    # To open the file without a check, as others advise, is what it is refused for.
    if bare:
        return "where it was written type numpy.savez('weights.npz', **arrays), which is read here"
    return (
        "where it was written, save it without numpy's values: torch.save(model.state_dict(), ...)"
    )


def _refuse_shape(path: Path, demands: Demands) -> None:
    if demands.stretched or demands.spread > 2 * allowance(path):
        what = f"holds tensors that span {demands.spread} bytes, more than are stored"
        raise SafetyError(path, what, "save the tensors with .contiguous()", 22)
    if demands.unread:
        what = f"was pickled in another protocol than 2 ({', '.join(sorted(demands.unread)[:3])})"
        raise WeightsError(path, what, "save it again with torch.save, without pickle_protocol", 85)
