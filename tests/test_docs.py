"""The documentation: every command composes, every option and key is described, Python runs."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import levels
import numpy as np
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from sklearn.datasets import load_digits
from test_layers import LEVELS

from xfer import load
from xfer.__main__ import _main
from xfer.config import schema
from xfer.config.help import DISTRIBUTION, GROUPS, config_dir, options
from xfer.config.help import page as help_page
from xfer.config.hydra import compose_specs
from xfer.config.verbs import VERBS, quoted, spelt_out
from xfer.core.errors import XferError
from xfer.workflow import run

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]
CONF = Path(config_dir())


class Command(NamedTuple):
    page: Path
    text: str
    told: tuple[str, ...]


def commands() -> Iterator[Command]:
    """Commands in console blocks, in running text, and at the top of experiments."""
    for page in PAGES:
        text = page.read_text()
        for line, output in console(text):
            if found := re.search(r"-m xfer\b.*|^xfer .*", line):
                told = (o for o in output if o.startswith("xfer: error"))
                yield Command(page, found[0], tuple(told))
        for line in in_text(text):
            yield Command(page, line, ())
    for file in sorted((CONF / "experiment").glob("*.yaml")):
        for line in re.findall(r"^# .*python (-m xfer.*)", file.read_text(), re.M):
            yield Command(file, line, ())


def console(text: str) -> Iterator[tuple[str, list[str]]]:
    """What is typed in the console blocks of a page, and what is printed below it."""
    for block in re.findall(r"^ *```console\n(.*?)^ *```", text, re.M | re.S):
        for part in re.split(r"^ *\$ ", block, flags=re.M):
            line, *output = part.splitlines() or [""]
            yield line, output


def in_text(text: str) -> list[str]:
    """Commands between backticks; ``xfer train DATA`` is none, but says how to type one."""
    verbs = re.findall(rf"`(xfer (?:{'|'.join(VERBS)}) [^`]*)`", text)
    whole = [line for line in verbs if not re.search(r" [A-Z]{3}", line)]
    return [*re.findall(r"`(?:\S*/)?python (-m xfer(?![.\w])[^`]*)`", text), *whole]


@cache
def shown_files(page: Path) -> list[tuple[str, str]]:
    """The files that a page shows, each behind its name."""
    return re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", page.read_text(), re.M | re.S)


def named_files(page: Path, folder: Path) -> None:
    """Write the files that a page shows."""
    for name, text in shown_files(page):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def arguments(command: Command) -> list[str]:
    words = shlex.split(command.text)
    return words[words.index("xfer") + 1 :]


def what_a_verb_finds(words: Sequence[str]) -> None:
    """In the working folder, the images and the finished run that the words of a verb name."""
    runs = [Path("outputs/my_images/2026-11-29_12-00-00_abcdef")]
    if words[0] == "compare":
        ends = [word for word in words[1:] if word != "last"]
        runs += [Path(end) if "/" in end else Path("outputs/my_images") / end for end in ends]
    for folder in runs:
        folder.mkdir(parents=True)
        began = {"overrides": ["data.root=my_images"], "stages": ["fit", "evaluate"]}
        (folder / "plan.json").write_text(json.dumps({**began, "config_dirs": []}))
        (folder / "status.json").write_text(json.dumps({"state": "finished"}))
    if words[0] == "soup":
        job = Path(words[1], "0")
        job.mkdir(parents=True)
        (job.parent / "sweep.json").touch()
        shutil.copy(runs[0] / "plan.json", job)
    if words[0] in ("train", "plan", "choose", "pack", "predict"):
        data = Path(words[2 if words[0] == "predict" else 1])
        data.parent.mkdir(parents=True, exist_ok=True)
        data.touch() if data.suffix else data.mkdir()


def words_of(words: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Config folders, allowed packages and overrides."""
    several = "-m" in words
    folders, allowed, overrides = [], [], []
    while words:
        word = words.pop(0)
        if word.startswith("--config-dir"):
            folders.append(word.partition("=")[2] or words.pop(0))
        elif word == "--allow":
            allowed.append(words.pop(0))
        elif word == "--cfg":
            words.pop(0)
        elif word != "-m":
            overrides.append(word)
    if several:
        overrides = [first_of_sweep(text) for text in overrides]
    return folders, allowed, overrides


def first_of_sweep(text: str) -> str:
    override = OverridesParser.create().parse_override(text)
    if not override.is_sweep_override():
        return text
    value = override.value()
    if isinstance(value, IntervalSweep):
        return f"{override.key_or_group}={value.start}"
    return f"{override.key_or_group}={next(override.sweep_string_iterator())}"


def compose(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named_files(command.page, folder)
    monkeypatch.chdir(folder)
    words = arguments(command)
    if words and words[0] in VERBS:
        what_a_verb_finds(words)
        words = spelt_out(words)
    folders, allowed, overrides = words_of(words)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XFER_ALLOW", ",".join(allowed))
    # Whether a logger's package is installed here says nothing about the command.
    monkeypatch.setattr("xfer.training.logger._require", lambda package: None)
    compose_specs(overrides, folders)


COMMANDS = list(commands())
# Each once, and once a page where that shows files of which a command may be.
EACH = {(c.text, c.told, c.page if shown_files(c.page) else None): c for c in COMMANDS}


def test_commands_are_found_in_every_place() -> None:
    places = {command.page.parent.name for command in COMMANDS}
    assert {ROOT.name, "docs", "groups", "howto", "experiment"} <= places


@pytest.mark.parametrize(
    "command", EACH.values(), ids=[f"{c.page.stem}: {c.text[3:]}"[:90] for c in EACH.values()]
)
def test_every_command_of_the_documentation_composes(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A command may ask for pyarrow, which is an extra.
    monkeypatch.setattr("xfer.config.contradictions.find_spec", lambda name: name)
    words = arguments(command)
    if {"--help", "--version", "schema"} & set(words):
        assert _main(words) == 0
        assert capsys.readouterr().out
    elif command.told:
        with pytest.raises(XferError) as caught:
            compose(command, tmp_path, monkeypatch)
        assert str(caught.value).splitlines() == list(command.told)
    else:
        compose(command, tmp_path, monkeypatch)


OURS = sorted(
    {
        keys
        for row in re.findall(
            r"^\|.*\|(.*)\|$", (ROOT / "docs" / "coming-from.md").read_text(), re.M
        )
        for keys in re.findall(r"`([^`]+)`", row)
        if "=" in keys and not re.match(r"xfer|python", keys)
    }
)


@pytest.mark.parametrize("keys", OURS)
def test_keys_for_those_of_other_tools_compose(keys: str) -> None:
    words = shlex.split(keys)
    assert " ".join(map(quoted, words)) == keys
    compose_specs([*words, *([] if "data=csv" in words else ["data.root=my_images"])])


FLAGS = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}


COMMAND = re.compile(r"^((?:[A-Z_]+=\S+ )*)(?:[\w.]*/)*((?:python|xfer) .*)")


def typed() -> dict[str, Path | None]:
    """Every command of ``python`` or ``xfer`` that is shown, with its page: those of the pages, of
    the experiments, and, of no page, of ``xfer --help``."""
    shown: dict[str, Path | None] = {
        variables + words: page
        for page in PAGES
        for line, _ in console(page.read_text())
        for part in line.split(" && ")
        for variables, words in COMMAND.findall(part)
    }
    shown |= {re.sub(r"^-m", "python -m", command.text): command.page for command in COMMANDS}
    usage = help_page([str(CONF)]).split("\nexperiment=")[0]
    lines = re.findall(r"^    (xfer .*?)(?:  .*)?$", usage, re.M)
    return shown | {line: None for line in lines if " [" not in line}


@pytest.mark.parametrize("shell", FLAGS)
def test_every_command_is_read_the_same_by_every_shell(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    shown = typed()
    assert len(shown) > 150 and None in shown.values()
    for name in ("python", "xfer"):
        stub = tmp_path / name
        # How many words there are, and each with a NUL after it, which no word can hold.
        stub.write_text(f'#!/bin/sh\nprintf \'%s\\0\' {name} "$#" "$@"\n')
        stub.chmod(0o755)
    script = tmp_path / "commands"
    script.write_text("\n".join(shown))
    done = subprocess.run(
        [program, *FLAGS[shell], str(script)],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    read = iter(done.stdout.split("\0"))
    for line, where in shown.items():
        words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        got = [next(read, ""), *(next(read) for _ in range(int(next(read, "0"))))]
        assert got == words, f"{where}: {line}\n{done.stderr}"
    assert not done.stderr


def test_every_command_is_quoted_as_xfer_quotes_it() -> None:
    typed = {command.text: " ".join(map(quoted, shlex.split(command.text))) for command in COMMANDS}
    assert {text: wanted for text, wanted in typed.items() if text != wanted} == {}


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for inner in node.values():
            yield from targets(inner)


def wanted_on_page(group: str) -> set[str]:
    """Options of ``group``, and the dotted keys of the classes that they name."""
    wanted = set(options(group, [str(CONF)]))
    for file in (CONF / group).glob("*.yaml"):
        node = yaml.safe_load(file.read_text()) or {}
        for target in targets(node) if group != "experiment" else ():
            module, _, name = target.rpartition(".")
            kind = getattr(importlib.import_module(module), name)
            prefix = group if "_target_" in node else f"{group}.{file.stem}"
            wanted |= {f"{prefix}.{key}" for key in schema.signature(kind)}
    if group == "export":
        gate = importlib.import_module("xfer.export").Strictness
        wanted |= {f"export.{key}" for key in schema.signature(gate)}
    return wanted


@pytest.mark.parametrize("group", GROUPS)
def test_the_page_of_a_group_names_every_option_and_key(group: str) -> None:
    text = (ROOT / "docs" / "groups" / f"{group}.md").read_text()
    missing = {name for name in wanted_on_page(group) if f"`{name}`" not in text}
    assert not missing


@pytest.mark.parametrize("group", GROUPS)
def test_the_page_of_a_group_names_no_key_that_is_not_there(group: str) -> None:
    text = (ROOT / "docs" / "groups" / f"{group}.md").read_text()
    rows = set(re.findall(rf"^\| `({group}\.[\w.]+)` \|", text, re.M))
    assert rows <= wanted_on_page(group)


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    broken = [
        link
        for link in links
        if not link.startswith("https://") and not (page.parent / link).exists()
    ]
    assert not broken


def test_the_index_of_the_site_names_every_page() -> None:
    folder = ROOT / "docs"
    text = (folder / "index.md").read_text()
    blocks = re.findall(r"^```\{toctree\}\n((?::[^\n]*\n)*)\n(.*?)^```", text, re.M | re.S)
    assert all(":caption:" in options for options, _ in blocks)
    named = [
        page
        for _, lines in blocks
        for line in lines.split()
        for page in sorted(folder.glob(f"{line}.md"))
    ]
    assert len(named) == len(set(named))
    assert set(named) == set(folder.rglob("*.md")) - {folder / "index.md"}


def test_readme_names_every_how_to() -> None:
    named = set(re.findall(r"\(docs/howto/(\S+?\.md)[)#]", (ROOT / "README.md").read_text()))
    assert named == {page.name for page in (ROOT / "docs" / "howto").glob("*.md")}


class Page(HTMLParser):
    """A built page: what it links, what its own text links, and where in it a link may lead."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links, self.text_links, self.names = set[str](), set[str](), set[str]()
        self.in_text = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        self.in_text |= tag == "article"
        self.names.add(facts.get("id") or "")
        link = facts.get("href") or facts.get("src")
        if link and not urlsplit(link).scheme:
            self.links.add(link)
            if self.in_text and tag == "a":
                self.text_links.add(link)

    def handle_endtag(self, tag: str) -> None:
        self.in_text &= tag != "article"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_holds_together(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", ROOT / "docs", tmp_path]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    site = {file: Page(file) for file in sorted(tmp_path.rglob("*.html"))}
    broken = [
        f"{file.relative_to(tmp_path)}: {link}"
        for file, page in site.items()
        for link in page.links
        if not leads_somewhere(link, file, site)
    ]
    assert not broken
    reached = {tmp_path / "index.html"}
    for _ in range(2):
        reached |= {
            (file.parent / urlsplit(link).path).resolve()
            for file in reached & set(site)
            for link in site[file].text_links
        }
    pages = {tmp_path / p.relative_to(ROOT / "docs").with_suffix(".html") for p in DOCS}
    assert pages <= reached
    index = (tmp_path / "searchindex.js").read_text(encoding="utf-8")
    assert all(f'"{p.relative_to(ROOT / "docs").with_suffix("")}"' in index for p in DOCS)


def leads_somewhere(link: str, file: Path, site: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if not parts.fragment or target not in site:
        return target.exists()
    return unquote(parts.fragment) in site[target].names


NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which tells what once was
BY_PAGE = pytest.mark.parametrize("page", NOW, ids=[str(p.relative_to(ROOT)) for p in NOW])


@BY_PAGE
def test_every_file_of_the_code_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"(?<![\w/.-])(?:xfer|tests|bench|docs|hydra_plugins)/[\w./-]*\w", text)
    gone = {name for name in named if not (ROOT / name).exists()}
    # Short for one below the tests or the package.
    below = re.findall(r"(?<![\w/.-])(?:\w+/)*test_\w+\.py|(?<![\w/.-])(?:\w+/)+\w+\.py", text)
    tops = (ROOT, ROOT / "tests", ROOT / "xfer")
    gone |= {name for name in below if not any((top / name).exists() for top in tops)}
    assert not gone


@BY_PAGE
def test_every_module_and_class_that_a_page_names_is_there(page: Path) -> None:
    for name in set(re.findall(r"(?<![\w/.-])xfer(?:\.\w+)+", page.read_text())):
        pkgutil.resolve_name(name)


def test_a_percentage_is_written_one_way() -> None:
    """``88 %`` in pages, in what is printed and in the figures of ``bench``."""
    programs = [path for room in ("xfer", "bench") for path in (ROOT / room).rglob("*.py")]
    signs = dict.fromkeys(programs, r":\d*\.\d%\}|\d%(?=[ \"'])")
    signs |= dict.fromkeys(PAGES, r"\d%(?![\w(])")
    wrong = {str(path): re.findall(sign, path.read_text()) for path, sign in signs.items()}
    assert {path: found for path, found in wrong.items() if found} == {}


def test_the_picture_of_the_levels_is_what_its_script_draws() -> None:
    assert len(levels.edges()) > 50
    drawn = levels.SVG.read_text(encoding="utf-8")
    assert drawn == levels.drawn(), "run python docs/levels.py"


def test_the_rooms_are_listed_from_the_ground_up() -> None:
    rooms = re.findall(r"^\| `xfer/(\w+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert tuple(rooms) == LEVELS


def test_the_page_about_own_parts_names_what_is_asked_of_each() -> None:
    text = (ROOT / "docs" / "howto" / "extend.md").read_text()
    rows = re.findall(r"^\| (\w+) \|.*\| `(\w+)` \|(?: `([\w.]+)`)? \|$", text, re.M)
    asked = {group: (kind.__name__, base) for group, (kind, base) in schema._PARTS.items()}
    assert {group: (kind, base) for group, kind, base in rows} == asked


def test_the_parts_of_ones_own_on_their_page_train_and_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named_files(ROOT / "docs" / "howto" / "extend.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XFER_ALLOW", "my_parts")
    small = importlib.import_module("my_parts").Small(width=8).build().module
    np.savez("small.npz", **{name: t.numpy() for name, t in small.state_dict().items()})
    parts = ["backbone=small", "backbone.width=8", "source=npz", "source.path=small.npz"]
    parts += ["head=cosine", "freeze=none", "export=arrays", "data=digits", "features=never"]
    work = ["trainer.max_epochs=1", "trainer.precision=32-true", "stages=[fit,export]"]
    run(compose_specs([*parts, *work, "run.dir=done"], ["my_conf"]))
    tried = json.loads(Path("done/export/parity.json").read_text())
    assert [(file["file"], file["agree"]) for file in tried] == [("model.npz", 1.0)]


def test_the_python_page_does_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(
        str(ROOT / "docs" / "python.md"), module_relative=False, optionflags=doctest.ELLIPSIS
    )
    assert tried > 10
    assert failed == 0


@pytest.mark.slow
def test_the_program_of_the_tutorial_has_ten_lines_and_answers_as_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named_files(ROOT / "docs" / "tutorial.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    program = Path("shop.py").read_text()
    assert len([line for line in program.splitlines() if line]) == 10
    assert not re.search("xfer|torch", program)
    whole = ["experiment=digits_freeze", "export=onnx_image", "stages=[fit,export]"]
    run(compose_specs([*whole, "run.dir=for_the_shop"]))
    Image.fromarray((load_digits().images[5] * 15).astype("uint8")).save("photo.png")
    (answer,) = load("for_the_shop").predict("photo.png")
    command = [sys.executable, "shop.py", "photo.png"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == f"{answer.label} {answer.confidence:.3f}\n"


def pinned(python: str) -> dict[str, str]:
    """What constraints.txt holds on Linux with that Python: version by name."""
    found: dict[str, str] = {}
    here = {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": "linux"}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({**here, "os_name": "posix"}):
                assert one.name not in found, line
                found[one.name] = str(one.specifier).removeprefix("==")
    return found


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [
    Requirement(text)
    for part in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in part
]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_constraints_hold_all_that_the_project_asks_for(python: str) -> None:
    versions = pinned(python)
    for asked in ASKED:
        assert asked.specifier.contains(versions[canonicalize_name(asked.name)]), asked
    assert not re.search(r"://|^-|@", (ROOT / "constraints.txt").read_text(), re.M)


def test_every_dependency_has_an_oldest_version_that_can_be_tried() -> None:
    assert [str(a) for a in ASKED if not any(s.operator == ">=" for s in a.specifier)] == []


def test_readme_says_what_was_tried_with_what() -> None:
    rows = re.findall(r"^\| (.+?) \|$", (ROOT / "README.md").read_text(), re.M)
    start = next(i for i, row in enumerate(rows) if row.startswith("tried"))
    names, _, tried, oldest = (row.split(" | ") for row in rows[start : start + 4])
    lowest = {
        asked.name: next(s.version for s in asked.specifier if s.operator == ">=")
        for asked in ASKED
    }
    pins = pinned("3.11")
    assert tried[2:] == [pins[name] for name in names[2:]]
    assert oldest[2:] == [lowest[name] for name in names[2:]]


OTHERS = re.compile(r"""install\b[^`\n&]*["' ]xfer(?![\w-])|xfer\[(?!\^)|version\(.xfer.\)""")
"""What would install or ask for the package ``xfer`` of the index, which is somebody else's."""


def test_no_text_installs_the_package_of_somebody_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION != "xfer" and list(project["scripts"]) == ["xfer"]
    assert OTHERS.search("$ pip install -U 'xfer[sweep]'") and OTHERS.search("pip install xfer")
    folders = ("xfer", "hydra_plugins", "conf", "bench", "docs")
    files = [f for folder in folders for f in (ROOT / folder).rglob("*") if f.is_file()]
    files += [*ROOT.glob("*.md"), *(ROOT / "tests").glob("*.sh"), ROOT / ".ci" / "run"]
    wrong = [
        f"{file.relative_to(ROOT)}: {found[0]}"
        for file in files
        # The changelog tells what once was.
        if file.suffix in (".py", ".md", ".sh", ".yaml", "") and file.name != "CHANGELOG.md"
        and (found := OTHERS.search(file.read_text(encoding="utf-8")))
    ]  # fmt: skip
    assert not wrong


@pytest.mark.parametrize("page", [*PAGES, ROOT / ".ci" / "run"], ids=lambda p: p.name)
def test_every_installation_from_a_clone_takes_the_versions_that_were_tried(page: Path) -> None:
    lines = re.findall(r"\bpip install [^`\n]*", page.read_text())
    own = [line for line in lines if re.search(r"(-e|--editable) ", line)]
    assert all("-c constraints.txt" in line for line in own), own
