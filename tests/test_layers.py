"""The shape of the code: who may import whom, one list of nouns, and how long things are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from xfer.config.help import GROUPS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xfer"
NOUNS = tuple(g for g in GROUPS if g not in ("experiment", "sweep"))

# From the ground up: a package imports those before it and none behind it.
LEVELS = (
    *("core", "config", "data", "weights", "models", "freeze", "evaluation", "plan"),
    *("training", "export", "report", "sweep"),
)
TOP = ("workflow", "api", "", "__main__")
LEVEL = {room: level for level, room in enumerate((*LEVELS, *TOP))}
# Started by ``python -m``, as the command itself is: they import what the command imports.
STARTED = {"sweep.executors.worker", "training.distributed.rank"}

HEAVY = {
    "lightning", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pytorch_lightning",
    "sklearn", "timm", "torch", "torchmetrics", "torchvision",
}  # fmt: skip
# Subclasses and helpers of torch; everything else gets by without it until it works.
OF_TORCH = {
    "core.device", "core.memory", "data.loader", "data.sampler", "evaluation.evaluate",
    "evaluation.layer_cam", "export.answer_layers",
    "export.mindir.run", "export.pixels",
    "models.head.filled_layers", "models.head.layers", "models.logit_scale",
    "models.mindspore_layers", "models.network", "models.restore",
    "sweep.soup.averaging",
} | {
    f"training.{name}" for name in (
        "backbone_features", "callbacks.timeline", "certificate_fit",
        "distributed.group", "distributed.rank_store", "distributed.rendezvous",
        "distributed.sharding", "distributed.strategy", "ema", "exact",
        "features.cut", "features.extract", "features.feature_loader", "features.feature_switch",
        "features.find_cut", "features.prove_cut", "features.shape_tensor", "fill_head", "fit",
        "guarded_logger", "head_input", "head_start", "image_audit", "inference",
        "multilabel_losses", "lightning", "lr_find", "mirroring",
        "module", "nan_guard", "optimizer_restore", "teacher", "worth",
    )
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """``module`` is imported; ``lazy`` inside a function, ``typing`` for annotations only."""

    module: str
    lazy: bool
    typing: bool


def named(file: Path) -> str:
    """A module's name below the package, as ``core.files``; nothing for ``xfer`` itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {named(file) for file in PACKAGE.rglob("*.py")}
FILES = {f"xfer.{name}" for name in NAMES}


# Each worker collects this file: what the tests read waits until one of them runs.
@cache
def modules() -> dict[str, ast.Module]:
    files = sorted(PACKAGE.rglob("*.py"))
    return {named(file): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def imports(node: ast.AST, lazy: bool = False, typing: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, lazy, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            base = str(child.module)
            # `from xfer.config import schema` imports a module, which the base does not name.
            names = {f"{base}.{alias.name}" for alias in child.names} & FILES
            yield from (Import(name, lazy, typing) for name in names or {base})
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(child.body, []), lazy, True)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(child, lazy or inside, typing)


def room(module: str) -> str:
    """The package that a module lies in, or the name of a module beside the packages."""
    return module.removeprefix("xfer").lstrip(".").split(".")[0]


@cache
def edges() -> list[tuple[str, Import]]:
    return [(name, found) for name, tree in modules().items() for found in imports(tree)]


def ours() -> list[tuple[str, Import]]:
    return [(name, i) for name, i in edges() if i.module.split(".")[0] == "xfer"]


def test_the_packages_are_the_levels() -> None:
    assert {room(name) for name in NAMES} == set(LEVEL)
    assert len(list(PACKAGE.iterdir())) <= 16 + (PACKAGE / "__pycache__").is_dir()


def test_imports_go_downward_only() -> None:
    wrong = {
        (name, found.module)
        for name, found in ours()
        if LEVEL[room(found.module)] > LEVEL[room(name)] and name not in STARTED
    }
    # The package hands out the api, which is the one thing above everything else.
    assert wrong <= {("", "xfer.api")}


def test_no_two_modules_import_each_other() -> None:
    """Not even for annotations: where two do, one of them holds what belongs in a third."""
    arrows = {(name, i.module.removeprefix("xfer.")) for name, i in ours()}
    pairs = {(a, b) for a, b in arrows if (b, a) in arrows and a < b}
    assert pairs == set()


def test_groups_never_import_each_other_not_even_for_annotations() -> None:
    def group(module: str) -> str:
        parts = module.removeprefix("xfer.").split(".")
        return next((part for part in parts[:2] if part in NOUNS), "")

    pairs = {(group(name), group(i.module)) for name, i in edges() if i.module.startswith("xfer.")}
    inside = {"data", "freeze", "export", "augment"}  # packages whose other modules all may import
    assert {(a, b) for a, b in pairs if a and b and a != b and b not in inside} == set()


def test_hydra_stays_at_the_door() -> None:
    users = {name for name, i in edges() if i.module.split(".")[0] in ("hydra", "omegaconf")}
    assert users == {"config.hydra", "__main__"}


def test_the_door_is_not_imported_by_what_is_behind_it() -> None:
    users = {name for name, i in edges() if i.module == "xfer.config.hydra"}
    assert users <= {"__main__", "api"}


def test_no_module_costs_a_heavy_import() -> None:
    """Neither its own nor that of a module of ours which it imports eagerly."""
    eager = {(name, i.module) for name, i in edges() if not (i.lazy or i.typing)}
    heavy = {(name, found) for name, found in eager if found.split(".")[0] in HEAVY}
    heavy |= {(name, found) for name, found in eager if found.removeprefix("xfer.") in OF_TORCH}
    assert {(name, found) for name, found in heavy if name not in OF_TORCH} == set()


def test_modules_of_torch_are_not_listed_in_vain() -> None:
    for name in OF_TORCH:
        eager = {i.module.removeprefix("xfer.") for i in imports(modules()[name]) if not i.lazy}
        assert {module.split(".")[0] for module in eager} & HEAVY or eager & OF_TORCH, name


# What trains with Lightning; everything else must do without it, as an exact fit does.
LIGHTNING = {
    *("training.callbacks.timeline", "training.distributed.sharding"),
    "training.distributed.strategy",
    *("training.guarded_logger", "training.lightning", "training.module"),
}


def test_lightning_is_imported_by_what_trains_with_it_alone() -> None:
    kinds = ("lightning_fabric", "pytorch_lightning", "torchmetrics")
    users = {
        name for name, i in edges() if i.module.split(".")[0] in kinds and not (i.lazy or i.typing)
    }
    assert users == LIGHTNING
    takers = {
        name
        for name, i in edges()
        if i.module.removeprefix("xfer.") in LIGHTNING and not (i.lazy or i.typing)
    }
    assert takers <= LIGHTNING | {"training.fit", "training.lr_find", "training.distributed.rank"}


def test_one_list_of_nouns() -> None:
    folders = {p.name for p in (ROOT / "conf").iterdir() if p.is_dir()} - {"hydra"}
    assert folders == set(GROUPS)
    last = [name.rpartition(".")[2] for name in NAMES]
    assert {noun: last.count(noun) for noun in NOUNS} == dict.fromkeys(NOUNS, 1)
    tests = {file.name for file in (ROOT / "tests").rglob("test_*.py")}
    assert [noun for noun in NOUNS if f"test_{noun}.py" not in tests] == []


def test_no_two_modules_have_one_name() -> None:
    last = [file.stem for file in PACKAGE.rglob("*.py") if file.stem != "__init__"]
    assert {name for name in last if last.count(name) > 1} == set()


def test_no_two_classes_have_one_name() -> None:
    """A protocol and the class that fills it, and classes of one module's own, among them."""
    nodes = [node for tree in modules().values() for node in ast.walk(tree)]
    names = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    assert {name for name in names if names.count(name) > 1} == set()


def test_no_module_hides_a_name_of_its_package() -> None:
    """Python binds a module in its package when it is imported, over whatever has that name."""
    for file in PACKAGE.rglob("__init__.py"):
        modules_here = {path.stem for path in file.parent.iterdir()}
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module != f"xfer.{named(file)}":
                handed = {a.asname or a.name for a in node.names}
                beside = {str(node.module).rpartition(".")[2]}  # it is bound first, then the name
                assert handed & modules_here <= beside, file


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "helpers", "common", "misc", "base"}
    assert {p for name in NAMES for p in name.split(".")} & drawers == set()


def test_no_module_is_over_400_lines_and_no_function_over_60() -> None:
    files = {file: len(file.read_text("utf-8").splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {str(file): lines for file, lines in files.items() if lines > 400} == {}
    long = [
        (name, node.name)
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert long == []


def test_the_rules_above_see_the_whole_package() -> None:
    assert len(modules()) > 60
    assert len(ours()) > 150
