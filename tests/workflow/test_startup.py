"""What the stages import: a library that a stage does not need would cost it seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from PIL import Image
from shipped import SHIPPED

FIT_ALONE = {"pytorch_lightning", "lightning_fabric", "torchmetrics"}
COMPILER = {"torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "sympy", "triton"}


PARTS = (
    *("data.decode_cache", "evaluation.evaluate", "export", "export.onnx"),
    *(
        "training.features.extract",
        "training.features.find_cut",
        "training.features.feature_switch",
    ),
    *("training.oom", "export.stage", "models.head.layers"),
    *("training.distributed.rendezvous", "data.loader", "evaluation.metrics"),
    *("models.network", "training.nan_guard", "plan.make", "evaluation.predict"),
    *("core.run_status", "report.write", "weights.formats.checkpoint_format"),
    *("training.distributed.group", "workflow"),
)
BACKBONES = [
    ["backbone=squeezenet1_0"],
    ["backbone=timm", "backbone.name=tf_efficientnet_lite0"],
    ["backbone=torchvision", "backbone.name=efficientnet_b0"],
    ["backbone=timm", "backbone.name=deit_tiny_patch16_224"],
]
PLANS = [[*backbone, "data=digits", "source=none", "stages=[]"] for backbone in BACKBONES]
EVALUATED = [
    *("data=digits_0_4", f"checkpoint.path={SHIPPED}", "run.dir=evaluated", "report.maps=1"),
    *("stages=[evaluate,predict,export,report]", "export=safetensors"),
    "predict.input=picture.png",
]
SOLVED = ["experiment=digits_freeze", "data.digits=[5,6]", "stages=[fit,evaluate]"]
# What needs less comes first, since what one has imported the next ones have as well.
DONE = {
    "plans of several networks": f"for plan in {PLANS}: xfer.run(overrides=plan)",
    "all that a fit on kept features is made of": f"import {', '.join(f'xfer.{p}' for p in PARTS)}",
    "a head that is solved": f"xfer.run(overrides={[*SOLVED, 'run.dir=solved']})",
    "a checkpoint that is evaluated and exported": f"xfer.run(overrides={EVALUATED})",
}
TOLD = """
import json, sys, xfer
for name, code in json.load(sys.stdin).items():
    exec(compile(code, name, "exec"))
    print(json.dumps([name, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("done")


@pytest.fixture(scope="module")
def behind(place: Path) -> dict[str, set[str]]:
    """The modules that a process has in memory behind each of ``DONE``."""
    Image.new("L", (8, 8), 90).save(place / "picture.png")
    done = subprocess.run(
        [sys.executable, "-c", TOLD],
        cwd=place,
        input=json.dumps(DONE),
        env={**os.environ, "XFER_CACHE": str(place / "cache")},
        **{"capture_output": True, "text": True, "timeout": 600},
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    return {name: set(modules) for name, modules in lines}


@pytest.mark.parametrize("what", DONE)
def test_lightning_is_for_a_fit_step_by_step_alone(
    what: str, behind: dict[str, set[str]], place: Path
) -> None:
    assert behind[what] & FIT_ALONE == set()
    assert "torch" in behind[what]
    for run in ("solved", "evaluated"):
        assert json.loads((place / run / "result.json").read_text())["scores"]


def test_plans_import_no_compiler_and_nothing_that_draws_or_exports(
    behind: dict[str, set[str]],
) -> None:
    found = behind["plans of several networks"]
    assert "torchvision" in found
    assert found & (COMPILER | {"matplotlib", "onnx", "onnxruntime"}) == set()


@pytest.fixture(scope="module")
def torch_alone() -> Iterator[warm.Server]:
    """Torch, and what imports nothing of it."""
    server = warm.Server("xfer.core.deferred_compiler")
    yield server
    server.close()


def imported(code: str, folder: Path, of: warm.Server) -> set[str]:
    """The modules that a process has in memory behind ``code``."""
    told = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    run = warm.start(folder, script=f"{code}\n{told}", of=of)
    said, _ = run.communicate()
    assert run.returncode == 0, said
    return set(json.loads(said.splitlines()[-1]))


AHEAD = "import sys, torch\nfrom xfer.core.deferred_compiler import compiler_deferred\n"


def test_a_compiler_that_was_put_off_is_the_real_one_when_it_is_used(
    tmp_path: Path, torch_alone: warm.Server
) -> None:
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
    assert "torch._dynamo.utils" in imported(code, tmp_path, torch_alone)


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
    asked: str, tmp_path: Path, torch_alone: warm.Server
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
    assert "sympy" in imported(code, tmp_path, torch_alone)


def test_shapes_behind_a_cut_need_no_compiler_and_leave_it_whole(
    tmp_path: Path, torch_alone: warm.Server
) -> None:
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
    assert "torch._dynamo.convert_frame" in imported(code, tmp_path, torch_alone)
