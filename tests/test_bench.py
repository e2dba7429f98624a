"""The scripts of ``bench/``: each can be imported against today's xfer, and says what it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import warm

BENCH = Path(__file__).parents[1] / "bench"
SCRIPTS = [p.name for p in sorted(BENCH.glob("*.py")) if "ArgumentParser" in p.read_text("utf-8")]
# All in one process: what they import takes seconds, and is the same.
ALL = """
import contextlib, io, json, os, runpy, sys
os.chdir(sys.argv[1])
sys.path.insert(0, ".")
said = {}
for name in json.loads(sys.argv[2]):
    sys.argv, printed = [name, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(os.path.abspath(name), run_name="__main__")
        said[name] = "went on after --help"
    except SystemExit as end:
        said[name] = printed.getvalue() if not end.code else f"exit {end.code}"
    except BaseException as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("bench")
    run = warm.start(place, str(BENCH), json.dumps(SCRIPTS), script=ALL)
    told, _ = run.communicate()
    assert run.returncode == 0, told
    return dict(json.loads(told.splitlines()[-1]))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_what_there_is_and_explains_itself(
    said: dict[str, str], name: str
) -> None:
    assert said[name].startswith("usage: "), said[name]
