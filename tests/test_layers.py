"""The shape of the code: who may import whom, one list of nouns, and how long things are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from xfer.config.help import GROUPS
from xfer.core import errors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xfer"
NOUNS = tuple(g for g in GROUPS if g not in ("experiment", "sweep"))

LAYERS: tuple[tuple[str, ...], ...] = (
    ("files",),
    (
        *("errors", "types", "log", "randomness", "help", "seal", "looks", "statistics"),
        *("logged",),
    ),
    ("checked", "below_hydra", "own_parts"),
    (
        *("storage", "bit_depth", "weights", "balance", "patterns", "protobuf", "dialects"),
        *("signals", "team"),
    ),
    ("locks",),
    ("transfer", "standardize", "bf16", "bounded_yaml", "cards"),
    (
        "preprocess",
        "images",
        "download",
        "snapshot",
        "resume",
        "compat",
        "words",
        "norms",
        "adapters",
        "undrawn",
        "deferred",
        "session",
    ),
    ("ranks", "cluster"),
    (*NOUNS, "sweep"),
    (
        "network",
        "decoded",
        "loader",
        "metrics",
        "ema",
        "momenta",
        "memory",
        "predict",
        "facts",
        "schema",
        "specs",
    ),
    ("classes", "numbers", "devices", "auto", "training", "training.logistic"),
    ("plan", "places", "evaluate", "standalone", "training.head_input"),
    ("model", "strategy", "builder", "handover", "outlook", "asked", "fit_health"),
    ("history", "halving", "extraction", "record", "room", "lineage"),
    ("joint", "feed", "stop_early"),
    ("phases", "training.fitted"),
    ("training.frozen",),
    ("training.exact",),
    ("training.head_start",),
    ("lr_find",),
    ("fit",),
    ("rank",),
    ("report",),
    ("benchmark", "leaderboard", "pruning"),
    ("workflow", "conduct"),
    ("runners", "queued"),
    ("config",),
    ("api",),
    ("", "__main__"),
    ("keeper",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

# Names used in annotations only: these two describe a value that the layer above hands down.
ANNOTATES_UPWARD = {("facts", "plan"), ("report", "workflow")}

HEAVY = {
    "lightning", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pytorch_lightning",
    "sklearn", "timm", "torch", "torchmetrics", "torchvision",
}  # fmt: skip
# Subclasses and helpers of torch; everything else gets by without it until it works.
OF_TORCH = {"head.layers", "export.pixels"} | {
    "compat", "ema", "evaluate", "extraction", "features.absent", "features.cut", "features.find",
    "features.proof", "feed", "fit", "history", "loader", "lr_find", "memory", "model",
    "momenta", "network", "numbers", "phases", "joint", "strategy", "team", "stop_early", "undrawn",
    "training.exact", "training.frozen", "training.head_input", "training.head_start",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """``module`` is imported; ``lazy`` inside a function, ``typing`` for annotations only."""

    module: str
    lazy: bool
    typing: bool


def modules() -> dict[str, ast.Module]:
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(p for p in parts if p != "__init__")
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports(node: ast.AST, lazy: bool = False, typing: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, lazy, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            base = str(child.module)
            if base in ("xfer", *(f"xfer.{n}" for n in (*NOUNS, "training"))):
                # `from xfer import schema` imports a module, which the base does not name.
                yield from (Import(f"{base}.{alias.name}", lazy, typing) for alias in child.names)
            else:
                yield Import(base, lazy, typing)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(child.body, []), lazy, True)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(child, lazy or inside, typing)


def room(module: str) -> str:
    """The first part of the name; the modules of ``training`` lie on several levels as yet."""
    parts = module.removeprefix("xfer").lstrip(".").split(".")
    return ".".join(parts[:2]) if parts[0] == "training" else parts[0]


MODULES = modules()
EDGES = [(name, found) for name, tree in MODULES.items() for found in imports(tree)]
OWN = [(room(name), room(i.module), i) for name, i in EDGES if i.module.split(".")[0] == "xfer"]


def test_every_module_has_a_layer_and_every_layer_its_modules() -> None:
    assert {room(name) for name in MODULES} == set(LEVEL)


def test_imports_go_downward_only() -> None:
    wrong = {
        (importer, imported)
        for importer, imported, found in OWN
        if importer != imported and LEVEL[imported] >= LEVEL[importer]
        and not (found.typing and (importer, imported) in ANNOTATES_UPWARD)
    }  # fmt: skip
    # The package hands out the api, which is the one thing above everything else.
    assert wrong <= {("__main__", "")}


def test_the_exemptions_for_annotations_are_needed() -> None:
    used = {(a, b) for a, b, found in OWN if found.typing and a != b and LEVEL[b] >= LEVEL[a]}
    assert used == ANNOTATES_UPWARD


def test_groups_never_import_each_other_not_even_for_annotations() -> None:
    assert {(a, b) for a, b, _ in OWN if a in NOUNS and b in NOUNS and a != b} == set()


def test_hydra_stays_at_the_door() -> None:
    users = {name for name, i in EDGES if i.module.split(".")[0] in ("hydra", "omegaconf")}
    assert users == {"config", "__main__"}


def test_the_door_is_not_imported_by_what_is_behind_it() -> None:
    assert {name for name, i in EDGES if i.module == "xfer.config.hydra"} <= {"__main__", "api"}


@pytest.mark.parametrize("name", sorted(set(MODULES) - OF_TORCH))
def test_the_module_costs_no_heavy_import(name: str) -> None:
    eager = {i.module for i in imports(MODULES[name]) if not (i.lazy or i.typing)}
    assert {module for module in eager if module.split(".")[0] in HEAVY} == set()
    ours = {module.removeprefix("xfer.") for module in eager if module.startswith("xfer.")}
    assert ours & OF_TORCH == set(), "what it imports eagerly is of torch"


def test_modules_of_torch_are_not_listed_in_vain() -> None:
    for name in OF_TORCH:
        eager = {i.module.split(".")[0] for i in imports(MODULES[name]) if not i.lazy}
        assert eager & HEAVY, name


# What trains with Lightning; everything else must do without it, as an exact fit does.
LIGHTNING = {"fit", "history", "model", "phases", "stop_early", "strategy"}


def test_lightning_is_imported_by_what_trains_with_it_alone() -> None:
    kinds = ("lightning_fabric", "pytorch_lightning", "torchmetrics")
    users = {
        name for name, i in EDGES if i.module.split(".")[0] in kinds and not (i.lazy or i.typing)
    }
    assert users == LIGHTNING
    takers = {
        name
        for name, i in EDGES
        if i.module.removeprefix("xfer.") in LIGHTNING and not (i.lazy or i.typing)
    }
    assert takers <= LIGHTNING | {"lr_find", "rank"}


def test_one_list_of_nouns() -> None:
    folders = {p.name for p in (ROOT / "conf").iterdir() if p.is_dir()} - {"hydra"}
    assert folders == set(GROUPS)
    rooms = {room(name) for name in MODULES}
    assert set(NOUNS) <= rooms
    assert [n for n in NOUNS if not (ROOT / "tests" / f"test_{n}.py").is_file()] == []


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "helpers", "common", "misc", "base"}
    assert {p for name in MODULES for p in name.split(".")} & drawers == set()


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: f.stem)
def test_no_module_is_over_400_lines_and_no_function_over_60(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    long = [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert long == []


def test_the_rules_above_see_the_whole_package() -> None:
    assert len(MODULES) > 60
    assert len(OWN) > 150


def numbers() -> Iterator[tuple[str, int]]:
    """Class and number of every error that the package makes with a number written out."""
    kinds = {kind.__name__ for kind in vars(errors).values() if isinstance(kind, type)}
    for tree in MODULES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in kinds:
                last = node.args[-1] if node.args else None
                if isinstance(last, ast.Constant) and type(last.value) is int:
                    yield node.func.id, last.value  # type: ignore[attr-defined]


def test_no_error_has_a_number_of_another_kind() -> None:
    bases = sorted(
        kind.base
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.XferError)
    )
    found = set(numbers())
    assert len(found) > 150
    for name, number in found:
        base = getattr(errors, name).base
        following = min((b for b in bases if b > base), default=1000)
        assert base + number < following, f"{name} {number}"
