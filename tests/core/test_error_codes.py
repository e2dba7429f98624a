"""Every error number is in the table, is raised, and has an example that is a real message."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from error_codes import entries, kinds, page

from xfer.core.download import DATA, RESUMABLE_WEIGHTS, WEIGHTS

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "xfer").rglob("*.py")), *sorted((ROOT / "hydra_plugins").rglob("*.py"))]
MODULES = {file.relative_to(ROOT).as_posix().removeprefix("xfer/"): file for file in FILES}
KINDS = {kind.__name__: kind for _, kind in kinds()}
TABLE = entries()

# Where a number stands in a tuple beside the texts.
TABLES = (
    *("config/hydra.py", "plan/multilabel_task.py", "weights/formats/detect.py"),
    "weights/hub/huggingface.py",
)
# Where one error passes on the number of another: the module, and what that one is called.
PASSED_ON = {"weights/mindspore/tensors.py": "Unsupported"}
# Where a number is given by other modules, to the function of that name.
GIVEN = {"core/read_back.py": "read_checked"}
# Where the class is not known before it runs: what is fetched says it, and the first number.
FETCHED = ("core/http.py", "core/download.py")

# Numbers of several modules. Compare the messages before you add one here: do they mean the same?
SHARED = {
    45: "sweep/choosing/candidates.py sweep/choosing/session.py",
    61: "evaluation/task.py training/loss.py",
    86: "plan/teacher_plan.py sweep/choosing/run_choice.py",
    96: "core/world.py training/distributed/rank_store.py",
    100: "__main__.py sweep/fold_jobs.py",
    171: "hydra_plugins/xfer_slurm/_launch.py sweep/executors/slots.py",
    201: "config/hydra.py config/schema.py",
    203: "config/contradictions.py config/schema.py",
    205: "config/hydra.py config/schema.py config/specs.py",
    221: (
        "config/custom.py config/schema.py core/custom_parts.py evaluation/metrics.py "
        "training/callbacks/freeze_phase.py training/lightning.py"
    ),
    223: "hydra_plugins/xfer_slurm/_request.py sweep/slurm.py",
    232: "freeze/audit.py freeze/lora.py freeze/policies.py",
    251: "core/card_schema.py weights/source/match_rules.py",
    275: "hydra_plugins/xfer_slurm/_launch.py sweep/slurm.py",
    280: "data/arrow_columns.py hydra_plugins/xfer_slurm/_launch.py training/logger.py",
    290: "data/augment.py data/options.py",
    298: "core/card_schema.py evaluation/onnx_predict.py",
    299: "config/contradictions.py config/specs.py",
    301: "data/options.py data/walk.py",
    305: "data/folder.py data/split.py",
    311: "data/manifest.py data/multilabel_rows.py",
    314: "data/listed_image.py data/manifest.py",
    319: "data/dataset.py data/multilabel_split.py",
    326: "data/arrays.py data/arrow_columns.py data/manifest.py",
    328: "data/arrow_columns.py data/parquet.py",
    329: "data/arrays.py data/arrow_columns.py data/image_table.py",
    334: "data/parquet.py data/parquet_cells.py",
    339: "data/hf.py data/parquet.py",
    343: ("training/features/extract.py training/fit.py training/lr_find.py"),
    350: "data/folds.py data/multilabel_split.py",
    351: "data/folds.py data/multilabel_split.py",
    374: "data/dataset.py data/preprocess.py",
    378: "data/shards.py data/tar_index.py",
    381: "data/shards.py data/tar_index.py",
    384: "data/pack.py data/pack_sources.py",
    383: "data/pack_index.py data/shards.py",
    386: "data/multilabel_rows.py data/multilabel_split.py",
    392: "data/arrays.py data/arrow_columns.py data/image_table.py data/shards.py",
    401: "api.py core/torch_file.py weights/formats/detect.py",
    402: "core/torch_file.py weights/formats/detect.py weights/formats/zip_check.py",
    404: "weights/formats/read.py weights/formats/state_dict.py",
    451: "core/http.py weights/hub/huggingface.py",
    463: "weights/mindspore/ckpt.py weights/mindspore/tensors.py",
    490: "weights/formats/read.py weights/formats/torch_pickle.py",
    492: "weights/formats/read.py weights/formats/torch_pickle.py",
    527: "core/read_back.py training/oom.py",
    620: "core/torch_file.py weights/formats/torch_pickle.py",
    622: "weights/formats/read.py weights/formats/torch_pickle.py",
    623: "weights/formats/torch_pickle.py weights/formats/zip_check.py",
    631: "core/run_folder.py sweep/ledger.py",
    900: "core/download.py core/files.py core/http.py data/pack.py weights/hub/huggingface.py",
    907: "training/distributed/rank.py training/features/feature_parts.py",
    956: "export/answer_parity.py export/parity.py",
}


class Site(NamedTuple):
    """A place that raises ``number``, and a pattern for ``where: what``."""

    number: int
    kind: str
    module: str
    says: str


@cache
def nodes(module: str) -> list[ast.AST]:
    """All of a module's source, a function before those inside it."""
    return list(ast.walk(ast.parse(MODULES[module].read_text("utf-8"))))


@cache
def calls(module: str) -> list[tuple[str, ast.Call]]:
    found = [node for node in nodes(module) if isinstance(node, ast.Call)]
    return [(getattr(c.func, "id", None) or getattr(c.func, "attr", ""), c) for c in found]


def number_of(call: ast.Call) -> int | None:
    last = call.args[-1] if call.args else None
    return last.value if isinstance(last, ast.Constant) and type(last.value) is int else None


def pattern(text: ast.expr) -> str:
    """What ``text`` says, with anything in place of what is put in."""
    if isinstance(text, ast.Constant):
        return re.escape(str(text.value))
    if isinstance(text, ast.BinOp):
        return pattern(text.left) + pattern(text.right)
    return "".join(map(pattern, text.values)) if isinstance(text, ast.JoinedStr) else ".*"


@cache
def texts(module: str) -> str:
    """A pattern for every text of the module that says more than a word."""
    found = {pattern(n) for n in nodes(module) if isinstance(n, ast.Constant | ast.JoinedStr)}
    said = [text for text in found if len(re.findall(r"[a-z]", text)) >= 7 and "\n" not in text]
    return f".*(?:{'|'.join(said)}).*"


def assigned(function: ast.FunctionDef, name: str) -> Iterator[ast.expr]:
    """What ``name`` is set to in ``function``."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if getattr(target, "id", "") == name:
                yield node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
                yield from (value for part, value in pairs if getattr(part, "id", "") == name)


def what(call: ast.Call, module: str) -> str:
    """A pattern for what is wrong, as far as it stands near the call."""
    text = call.args[1]
    if not isinstance(text, ast.Name):
        return pattern(text)
    # The last that holds the call is the innermost.
    functions = [node for node in nodes(module) if isinstance(node, ast.FunctionDef)]
    around = [function for function in functions if call in ast.walk(function)]
    found = [pattern(value) for value in assigned(around[-1], text.id)] if around else []
    return f"(?:{'|'.join(found)}).*" if found else texts(module)


def given_through(module: str, argument: ast.expr) -> set[int]:
    """The numbers with which the function is called that takes ``argument`` for a number."""
    functions = [
        node.name
        for node in nodes(module)
        if isinstance(node, ast.FunctionDef)
        and getattr(argument, "id", "") in [a.arg for a in node.args.args]
    ]
    found = [number_of(call) for name, call in calls(module) if name in functions]
    return {number for number in found if number is not None}


def in_tuples(module: str) -> set[int]:
    tuples = [node.elts for node in nodes(module) if isinstance(node, ast.Tuple)]
    values = [[getattr(e, "value", None) for e in elements] for elements in tuples]
    with_text = [v for v in values if any(isinstance(x, str) and x for x in v) or len(v) == 4]
    return {x for v in with_text for x in v if type(x) is int}


def indirect(module: str, call: ast.Call) -> set[int]:
    """The numbers of a call that does not write one out."""
    if len(call.args) == 3:
        return {0}
    if module in TABLES:
        return in_tuples(module)
    if module in GIVEN:
        found = {number_of(c) for m in MODULES for n, c in calls(m) if n == GIVEN[module]}
        return {number for number in found if number is not None}
    if module in PASSED_ON:
        name = PASSED_ON[module]
        found = {number_of(c) for m in MODULES for n, c in calls(m) if n == name} - {None}
        default = [
            node.args.defaults[-1].value  # type: ignore[attr-defined]
            for node in nodes(module)
            if isinstance(node, ast.FunctionDef) and node.name == "__init__"
        ]
        return {*found, *default}  # type: ignore[arg-type]
    return given_through(module, call.args[-1])


def sites() -> Iterator[Site]:
    for module in MODULES:
        for name, call in calls(module):
            if name not in KINDS:
                continue
            number = number_of(call) if len(call.args) == 4 else None
            numbers = {number} if number is not None else indirect(module, call)
            assert numbers, f"{module}, line {call.lineno}: no number is seen here"
            for n in numbers:
                says = f"{pattern(call.args[0])}: {what(call, module)}"
                yield Site(KINDS[name].base + n, name, module, says)
    yield from fetched()


def fetched() -> Iterator[Site]:
    for module in FETCHED:
        for node in nodes(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("manner.error"):
                last = node.args[-1]
                step = last.right.value if isinstance(last, ast.BinOp) else 0  # type: ignore[attr-defined]
                for manner in (DATA, WEIGHTS, RESUMABLE_WEIGHTS):
                    number = manner.error.base + manner.number + step
                    yield Site(number, manner.error.__name__, module, f".*: {texts(module)}")


@cache
def all_sites() -> list[Site]:
    """Sought by the tests that ask, so that no other process which collects them does."""
    return sorted(set(sites()))


def raised() -> list[int]:
    return sorted({site.number for site in all_sites()})


def test_the_sites_are_seen() -> None:
    assert len(all_sites()) > 380
    assert {100, 260, 273, 321, 450, 454, 457, 464, 481, 706, 900} <= set(raised())


def test_every_number_that_is_raised_is_in_the_table_and_the_other_way_round() -> None:
    assert sorted(TABLE) == raised()


def test_no_error_has_a_number_of_another_kind() -> None:
    spans = defaultdict(set)
    for numbers, kind in kinds():
        spans[kind.__name__] |= set(numbers)
    assert sorted(n for numbers, _ in kinds() for n in numbers) == list(range(1000))
    assert [site for site in all_sites() if site.number not in spans[site.kind]] == []


def test_no_two_numbers_mean_the_same() -> None:
    meanings = [entry.meaning for entry in TABLE.values()]
    assert sorted({m for m in meanings if meanings.count(m) > 1}) == []


def test_a_number_of_several_modules_has_been_compared() -> None:
    modules = defaultdict(set)
    for site in all_sites():
        modules[site.number].add(site.module)
    several = {number: " ".join(sorted(m)) for number, m in modules.items() if len(m) > 1}
    assert several == SHARED


@pytest.mark.parametrize("number", sorted(TABLE), ids="E{:03d}".format)
def test_the_example_is_what_a_user_sees(number: int) -> None:
    entry = TABLE[number]
    assert entry.meaning and entry.remedy and "\n" not in entry.example
    _, separator, _ = entry.example.partition(": ")
    assert separator and not entry.example.endswith(".")
    patterns = [site.says for site in all_sites() if site.number == number]
    # Where a key was typed, what reports the problem puts that before it.
    shown = (entry.example, entry.example.removeprefix("command line: "))
    assert any(re.fullmatch(p, text) for p in patterns for text in shown), entry.example


def test_the_page_is_made_from_the_table() -> None:
    assert (ROOT / "docs" / "errors.md").read_text("utf-8") == page()
    assert page().count("\n| E") == len(TABLE)


def test_numbers_behind_classes_side_by_side_are_those_of_the_class_around_them() -> None:
    assert [kind.__name__ for numbers, kind in kinds() if 750 in numbers] == ["DivergedError"]
