"""Completion in real shells: groups, options, keys, values, runs and files."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from xfer.__main__ import _main
from xfer.config.completion import script
from xfer.config.help import config_dir

needs_fish = pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
needs_zsh = pytest.mark.skipif(
    not (shutil.which("zsh") and shutil.which("tmux")), reason="zsh or tmux is not installed"
)

ASKED = {
    "xfer opt": {"optim="},
    "xfer tra": {"train", "trainer="},
    "xfer optim=s": {"optim=sgd"},
    "xfer optim.n": {"optim.name=", "optim.nesterov="},
    "xfer optim.nesterov=": {"optim.nesterov=true", "optim.nesterov=false"},
    "xfer data.on_bad=s": {"data.on_bad=skip"},
    "xfer predict outputs/d": {"outputs/digits_sgd/2026_a"},
    "xfer report la": {"last"},
    "xfer data.root=my": {"data.root=my_images/"},
    "xfer stages=[] experiment=digits_s": {"experiment=digits_sgd"},
}
ASKED_ANEW = {"xfer predict ": {"last", "outputs/digits_sgd/2026_a"}}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "outputs" / "digits_sgd" / "2026_a").mkdir(parents=True)
    (tmp_path / "my_images").mkdir()
    for shell in ("bash", "zsh", "fish"):
        (tmp_path / f"xfer.{shell}").write_text(script([shell], [config_dir()]))
    return tmp_path


def answer(here: Path, *command: str) -> str:
    env = {**os.environ, "HOME": str(here)}
    done = subprocess.run(
        command, cwd=here, capture_output=True, text=True, check=True, timeout=600, env=env
    )
    assert not done.stderr
    return done.stdout


def test_bash_completes(here: Path) -> None:
    asked = """source ./xfer.bash
    compopt() { :; }
    while IFS= read -r COMP_LINE; do
        COMP_POINT=${#COMP_LINE}
        _xfer
        echo "$COMP_LINE:${COMPREPLY[*]}"
    done"""
    lines = "\n".join([*ASKED, *ASKED_ANEW])
    done = answer(here, "bash", "-c", f"{asked} <<'END'\n{lines}\nEND")
    said = dict(line.split(":") for line in done.splitlines())
    for line, words in ASKED.items():
        # bash completes what stands behind the last equals sign, and adds the slash itself.
        head = line.rpartition(" ")[2].rpartition("=")[0]
        whole = {f"{head}={word}" if head else word for word in said[line].split()}
        assert whole == {word.rstrip("/") for word in words}, line
    for line, words in ASKED_ANEW.items():
        assert words < set(said[line].split())


@needs_fish
def test_fish_completes(here: Path) -> None:
    for line, words in {**ASKED, **ASKED_ANEW}.items():
        said = answer(here, "fish", "-c", f'source xfer.fish; complete -C "{line}"')
        found = {word.split("\t")[0] for word in said.splitlines()}
        assert words == found or (line in ASKED_ANEW and words < found), line


@needs_zsh
def test_zsh_completes(here: Path) -> None:
    """In a real terminal: zsh completes nowhere else."""
    typed = {
        "xfer opt": "optim=",
        "xfer optim=sg": "optim=sgd",
        "xfer optim.nes": "optim.nesterov=",
        "xfer report la": "last",
        "xfer data.root=my": "data.root=my_images/",
        "xfer predict outputs/d": "outputs/digits_sgd/2026_a",
    }
    terminal = ["tmux", "-L", f"xfer{os.getpid()}", "-f", "/dev/null"]
    setup = "autoload -U compinit; compinit -u -D; source ./xfer.zsh; PS1='> '; clear"
    subprocess.run(
        [*terminal, "new-session", "-d", "-x", "100", "-y", "30", "zsh", "-f"],
        cwd=here,
        env={**os.environ, "HOME": str(here)},
        check=True,
    )

    def shown_until(wanted: Callable[[str], bool]) -> str:
        shown = ""
        for _ in range(6000):
            shown = subprocess.run(
                [*terminal, "capture-pane", "-p"], capture_output=True, text=True, check=True
            ).stdout
            if wanted(shown):
                break
            time.sleep(0.1)
        return shown

    def type_keys(*keys: str) -> None:
        subprocess.run([*terminal, "send-keys", *keys], check=True)

    try:
        type_keys(setup, "Enter")
        for line, word in typed.items():
            shown_until(lambda shown: shown.rstrip().rpartition("\n")[2] == ">")
            type_keys("-l", line)
            type_keys("Tab")
            whole = f"{line.rpartition(' ')[0]} {word}"
            assert whole in shown_until(lambda shown, whole=whole: whole in shown)
            # Not an interrupt, which throws away what is typed ahead of it.
            type_keys("C-u")
    finally:
        subprocess.run([*terminal, "kill-server"], check=False)


def test_another_shell_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["completion", "tcsh"]) == 2
    said = capsys.readouterr().err
    assert "E058: completion: needs one of bash, zsh, fish. Fix: type xfer completion bash" in said
    assert _main(["completion", "bash"]) == 0
