"""What the stages import: a library that a stage does not need would cost it seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from shipped import SHIPPED

FIT_ALONE = {"pytorch_lightning", "lightning_fabric", "torchmetrics"}
COMPILER = {"torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "sympy", "triton"}


def imported(code: str, folder: Path) -> set[str]:
    """The modules that a process has in memory behind ``code``."""
    told = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", f"{code}\n{told}"]
    env = {**os.environ, "XFER_CACHE": str(folder / "cache")}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=True, timeout=600
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_what_a_fit_on_kept_features_is_made_of_needs_no_lightning(tmp_path: Path) -> None:
    parts = (
        *("data.decode_cache", "evaluation.evaluate", "export", "export.onnx"),
        *("training.features.extract", "training.features.find_cut", "training.features.feed"),
        *("training.oom", "export.stage", "models.head.layers"),
        *("training.distributed.rendezvous", "data.loader", "evaluation.metrics"),
        *("models.network", "training.nan_guard", "plan.make", "evaluation.predict"),
        *("core.run_status", "report.write", "weights.formats.checkpoint_format"),
        *("training.distributed.group", "workflow"),
    )
    found = imported("import " + ", ".join(f"xfer.{part}" for part in parts), tmp_path)
    assert found & FIT_ALONE == set()
    assert "torch" in found


def test_a_checkpoint_is_evaluated_and_exported_without_lightning(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("L", (8, 8), 90).save(picture)
    overrides = [
        *("data=digits_0_4", f"checkpoint.path={SHIPPED}", "run.dir=out"),
        *("stages=[evaluate,predict,export,report]", "export=safetensors"),
        f"predict.input={picture}",
    ]
    code = f"import xfer; xfer.run(overrides={overrides})"
    assert imported(code, tmp_path) & FIT_ALONE == set()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["scores"]


def test_plans_import_neither_lightning_nor_a_compiler(tmp_path: Path) -> None:
    backbones = [
        ["backbone=squeezenet1_0"],
        ["backbone=timm", "backbone.name=tf_efficientnet_lite0"],
        ["backbone=torchvision", "backbone.name=efficientnet_b0"],
        ["backbone=timm", "backbone.name=deit_tiny_patch16_224"],
    ]
    plans = [[*backbone, "data=digits", "source=none", "stages=[]"] for backbone in backbones]
    code = f"import xfer\nfor plan in {plans}:\n    xfer.run(overrides=plan)"
    found = imported(code, tmp_path)
    assert "torchvision" in found
    assert found & (FIT_ALONE | COMPILER | {"matplotlib", "onnx", "onnxruntime"}) == set()


AHEAD = "import sys, torch\nfrom xfer.models.deferred_compiler import compiler_deferred\n"


def test_a_compiler_that_was_put_off_is_the_real_one_when_it_is_used(tmp_path: Path) -> None:
    code = (
        AHEAD
        + """
before = [*sys.meta_path], torch.compiler.disable
try:  # an import that fails leaves nothing
    with compiler_deferred():
        import there_is_no_such_library
except ImportError:
    pass
assert before == (sys.meta_path, torch.compiler.disable)
real = torch.compiler.disable
with compiler_deferred():
    import torchvision

    @torch.compiler.disable
    def alone(x):
        seen.append(torch.compiler.is_compiling())
        return x + 1

assert torch.compiler.disable is real
assert not {"torch._dynamo", "torch._dynamo.utils"} & set(sys.modules)
from torchvision.ops import roi_align
from torchvision.ops.roi_align import is_compile_supported
box = torch.tensor([[0, 0, 0, 3.0, 3.0]])
assert roi_align(torch.ones(1, 1, 4, 4), box, 2).shape == (1, 1, 2, 2)
assert is_compile_supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
seen = []
assert torch.equal(alone(torch.ones(2)), torch.full((2,), 2.0))
compiled = torch.compile(lambda x: alone(x) * 2, backend="eager")
assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 4.0))
assert seen == [False, False]
"""
    )
    assert "torch._dynamo.utils" in imported(code, tmp_path)


@pytest.mark.parametrize(
    "asked",
    [
        "from torch._dynamo.utils import counters, is_compile_supported",
        "torch.compiler.disable(torch.nn.Linear(2, 2))(torch.ones(1, 2))",
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in (
                "import torch._dynamo; assert torch._dynamo.utils.counters is not None",
                "from torch._dynamo import config, utils; utils.counters",
            )
        ),
    ],
)
def test_whatever_else_is_asked_of_the_compiler_is_answered_at_once(
    asked: str, tmp_path: Path
) -> None:
    code = (
        AHEAD
        + f"""
with compiler_deferred():
    {asked}
import torch._dynamo.utils
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
assert torch._dynamo.utils.__file__
with compiler_deferred():
    from torch._dynamo.utils import counters
"""
    )
    assert "sympy" in imported(code, tmp_path)


def test_shapes_behind_a_cut_need_no_compiler_and_leave_it_whole(tmp_path: Path) -> None:
    shapes = """
import sys, torch
from torch.nn import functional as F
from xfer.training.features.shape_tensor import Absent
absent = Absent(torch.empty(2, 3, 8, 8, device="meta"), torch.device("cpu"))
for f in (torch.add, torch.mul):
    assert f(absent, absent).shape == absent.shape
for f in (F.silu, F.gelu, F.hardtanh, lambda x: x.mean((2, 3)), lambda x: F.batch_norm(
    x, torch.zeros(3), torch.ones(3))):
    assert isinstance(f(absent), Absent)
"""
    none = f"assert not {COMPILER - {'sympy'}} & set(sys.modules)"
    later = "import torch._dynamo; assert torch._dynamo.disable.__module__.startswith('torch._dyn')"
    asked = "assert torch.empty(2, device='meta').add(1).shape == (2,)"
    code = f"{shapes}{none}\n{later}\n{asked}"
    assert "torch._dynamo.convert_frame" in imported(code, tmp_path)
