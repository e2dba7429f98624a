"""``python -m xfer`` and the console script ``xfer``."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, cast

from xfer.config.help import GROUPS, config_dir, page
from xfer.config.verbs import shell, spelt_out
from xfer.core.control_groups import compute_on_busy_cores
from xfer.core.errors import ConfigError, JobFailed, OutputError, XferError, closest, limit_reached
from xfer.core.live_line import working
from xfer.core.log import flush, open_standard, say

if TYPE_CHECKING:
    from omegaconf import DictConfig


_NOBODY_READS = 141
"""What a shell makes of SIGPIPE."""


def main() -> None:
    """Run the command line and exit with the contract's codes."""
    open_standard()
    read_names_as_utf8()
    import_at_ease()
    compute_on_busy_cores()
    codes: list[int] = []
    atexit.register(_leave, codes)  # the first to be registered, so the last to be called
    try:
        codes.append(_main(sys.argv[1:]))
    except SystemExit as end:  # a run that failed or was stopped, or a parser's
        codes.append(end.code if isinstance(end.code, int) else int(end.code is not None))
    sys.exit(codes[0])


def read_names_as_utf8() -> None:
    """Begin again in Python's UTF-8 mode where names are read as ASCII (``PYTHONUTF8=0`` in the
    locale C): a file of any other name could not be opened. Processes that are started inherit it.
    """
    asked = os.environ.get("PYTHONUTF8") == "1"  # and not heeded: once is enough
    if sys.getfilesystemencoding() == "ascii" and sys.executable and not asked:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def import_at_ease() -> None:
    """Look for garbage less often: nearly all that is allocated while libraries are imported
    stays, and to look through it again and again takes as long as the imports."""
    gc.set_threshold(100_000, 10, 10)


def _leave(codes: list[int]) -> None:
    """End the process: all files are closed, and to take the libraries apart, object by object,
    takes as long as to import them. An exit that is not ours goes the usual way."""
    if codes:
        flush()
        os._exit(codes[0])


def _main(arguments: list[str]) -> int:
    try:
        arguments = _without_allow(arguments)
        folders = _config_dirs(arguments)
        if {"-h", "--help"} & set(arguments):
            with _must_arrive():
                print(_help(arguments, [config_dir(), *folders]))
            return 0
        if "--version" in arguments:
            import xfer

            with _must_arrive():
                print(f"xfer {xfer.__version__}")
            return 0
        if (text := _texts(arguments, folders)) is not None:
            with _must_arrive():
                print(text)
            return 0
        if (spelt := spelt_out(arguments)) != arguments:
            say(f"$ {shell(spelt)}")
            arguments = spelt
            _config_dirs(arguments)
        _check_working_folder()
        _hydra(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS
    except Exception as error:
        return _reported(error)
    finally:
        _starting.close()
    return 0


_starting = ExitStack()
"""Holds the live line until the configuration has been read."""


def _help(arguments: list[str], folders: list[str]) -> str:
    """The whole help, or what it has about the word after the flag, or about the verb before."""
    at = next(i for i, word in enumerate(arguments) if word in ("-h", "--help"))
    word = next(iter(arguments[at + 1 :] or arguments[:at]), "").partition("=")[0]
    if not word or word.startswith("-"):
        return page(folders)
    from xfer.config.help_topic import topic

    return topic(word, folders)


def _texts(arguments: list[str], folders: list[str]) -> str | None:
    """What ``xfer completion SHELL`` and ``xfer schema`` print; ``None`` for any other command."""
    words = [word for word in arguments if not word.startswith("-") and word not in folders]
    where = [config_dir(), *folders]
    if words[:1] == ["completion"]:
        from xfer.config.completion import script

        return script(words[1:], where)
    if words == ["schema"]:
        from xfer.config.json_schema import text

        return text(where)
    return None


def _check_working_folder() -> None:
    """Raise OutputError where it has been deleted: no path could be made absolute."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        what = "has been deleted since this shell went there"
        fix = "type cd DIR, a folder that exists"
        raise OutputError("working folder", what, fix, 30) from error


@contextmanager
def _must_arrive() -> Iterator[None]:
    """Within, what is printed is all that was asked for. Raises OutputError where it is lost."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        fix = "free space, or send it elsewhere"
        raise OutputError("standard output", what, fix, 31) from error


def _reported(error: Exception) -> int:
    """Print what went wrong, unless a job of a sweep has done so; the exit code for it."""
    if isinstance(error, JobFailed):
        return int(error.args[0])
    mistake = _mistake(error)
    if mistake is not error:
        mistake.__cause__ = error
    if os.environ.get("XFER_FULL_ERROR") == "1":
        import traceback

        say("".join(traceback.format_exception(mistake)).rstrip(), error=True)
    say(mistake, error=True)
    return mistake.exit


def _mistake(error: Exception) -> XferError:
    """``error`` as one that says where it is and what to do."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from xfer.config.hydra import as_config_error
    from xfer.core.custom_parts import custom_part_error

    if isinstance(error, XferError):
        return error
    if isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        return as_config_error(error)
    if mistake := custom_part_error(error) or limit_reached(error):
        return mistake
    fix = "this is a bug in xfer: run again with XFER_FULL_ERROR=1 and report what it prints"
    return XferError("xfer", f"{type(error).__name__}: {error}", fix, 0)


def _without_allow(arguments: list[str]) -> list[str]:
    """Move ``--allow PACKAGE`` into the environment, where jobs of a sweep see it too."""
    rest = []
    items = iter(arguments)
    for item in items:
        if item == "--allow" or item.startswith("--allow="):
            package = item.partition("=")[2] or next(items, "")
            if not package:
                raise ConfigError("--allow", "needs a package name", "type --allow PACKAGE", 17)
            before = os.environ.get("XFER_ALLOW")
            os.environ["XFER_ALLOW"] = f"{before},{package}" if before else package
        else:
            rest.append(item)
    return rest


def _config_dirs(arguments: list[str]) -> list[str]:
    """The folders of the user's own options. Raises ConfigError for one that is not there."""
    folders = []
    for item, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if item.startswith("--config-dir="):
            folders.append(item.partition("=")[2])
        elif item in ("--config-dir", "-cd"):
            folders.append(following)
    for folder in folders:
        if not Path(folder).is_dir():
            what = f"there is no folder '{folder}'"
            raise ConfigError("--config-dir", what, "give an existing folder", 18)
    return folders


def _hydra(arguments: list[str]) -> None:
    flags, overrides = _split(arguments)
    _check_flags(flags, overrides)
    # What Hydra itself prints of several runs would stand on the line. They are asked for by a flag
    # or, as ``xfer.config.hydra`` has it, by hydra.mode.
    keys = {text.partition("=")[0].lstrip("+") for text in (*flags, *overrides)}
    if not keys & {*_COMMANDS, "hydra", "hydra.mode"}:
        _starting.enter_context(working("reading the configuration"))
    import hydra

    from xfer.config.hydra import BASE, prepare_overrides, with_places

    # Lets Hydra hand its errors over instead of printing them in its own words.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    commands = {_COMMANDS.get(flag.partition("=")[0]) for flag in flags}
    composes = not commands & {"completion", "help"}
    sys.argv = [sys.argv[0], *flags, *(prepare_overrides(overrides) if composes else overrides)]
    shows = commands & {"config", "info", "completion", "help"}
    try:
        with _must_arrive() if shows else nullcontext():
            run = hydra.main(config_path=config_dir(), config_name="config", **BASE)(_job)
            if _shows_whole(flags):
                with redirect_stdout(io.StringIO()) as shown:
                    run()
                print(with_places(shown.getvalue(), overrides, _config_dirs(arguments)))
            else:
                run()
    except SystemExit as end:
        # Hydra's own end of --cfg for a package that is not there; a run ends with its own code.
        if end.code == 1 and "config" in commands:
            fix = "name a part of it, such as -p data"
            raise ConfigError("--package", "is not a part of the configuration", fix, 16) from end
        raise


def _shows_whole(flags: list[str]) -> bool:
    """Whether ``--cfg job`` is asked for, and not for a part of it, of which keys are unknown."""
    words = [part for flag in flags for part in flag.split("=", 1)]
    return (
        bool({"-c", "--cfg"} & set(words))
        and "job" in words
        and not {"-p", "--package"} & set(words)
    )


def _job(_: DictConfig) -> float | None:
    """One run; returns the best value of the monitored metric, for sweepers."""
    with _starting:
        from hydra.core.hydra_config import HydraConfig

        from xfer.config.choose import refuse_choice
        from xfer.config.hydra import build
        from xfer.sweep.objective import trial_value
        from xfer.sweep.requirements import refuse_one_run
        from xfer.sweep.soup.soup_stage import refuse_soup_in_a_sweep
        from xfer.workflow import run

        # What Hydra hands over lacks its own part, which hangs below the whole.
        cfg = cast("DictConfig", cast("DictConfig", HydraConfig.get())._get_root())
        alone = cfg.hydra.mode.name == "RUN"
    try:
        specs = build(cfg)
        if not alone:
            refuse_one_run(specs.checkpoint.resume)
            refuse_choice(specs.choose.chooses)
            refuse_soup_in_a_sweep(specs.stages)
        result = run(specs)
    except Exception as error:
        code = _reported(error)
        if alone:
            # Hydra would print its own lines about an exception, not about an exit.
            raise SystemExit(code) from None
        raise JobFailed(code, str(error)) from error
    finally:
        if not alone:
            gc.collect()  # a run is one large cycle, and others in this process follow it
    return trial_value(result.facts or {}, specs.checkpoint.monitor)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    flags: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for item, after in zip_longest(arguments, arguments[1:], fillvalue=""):
        if item.startswith("-") and item.partition("=")[0] not in (*_WITH_VALUE, *_ALONE):
            fix = _in_place_of_flag(item, after)
            raise ConfigError("command line", f"there is no flag '{item}'", fix, 15)
        (flags if item.startswith("-") or takes_value else overrides).append(item)
        takes_value = item in _WITH_VALUE
    if takes_value:
        raise ConfigError(arguments[-1], "needs a value", f"type {arguments[-1]} VALUE", 16)
    return flags, overrides


def _in_place_of_flag(flag: str, after: str) -> str:
    """What to type: a key with its value, where other tools have a flag, else the nearest flag."""
    from xfer.config.catalog import key_called
    from xfer.config.other_tools import for_key

    word, _, value = flag.lstrip("-").replace("-", "_").partition("=")
    value = value or (after if after[:1] != "-" and "=" not in after else "")
    key = key_called(word, [str(config_dir())]) if flag.startswith("--") else ""
    # Another tool's word is before a key that is only called so in some group.
    if key != word and (typed := for_key(word, GROUPS, value)):
        stands = typed.rpartition("=")[2]
        return f"{typed.removesuffix(stands)}{value}" if value and stands.isupper() else typed
    if key:
        return f"type {key}={value or 'VALUE'}"
    return closest(flag, ("--help", "--version", "--allow", *_WITH_VALUE, *_ALONE))


def _check_flags(flags: list[str], overrides: list[str]) -> None:
    """What Hydra would answer with an exception of its own. Raises ConfigError."""
    names = [flag.partition("=")[0] for flag in flags]
    asked = [name for name in names if name in _COMMANDS]
    if len({_COMMANDS[name] for name in asked}) > 1:
        what = f"{' and '.join(asked[:2])} are two commands"
        raise ConfigError("command line", what, f"drop {asked[1]}", 15)
    if "--resolve" in names and "config" not in [_COMMANDS.get(name) for name in names]:
        raise ConfigError("--resolve", "is about what --cfg prints", "add --cfg job", 15)
    for i, name in enumerate(names):
        value = flags[i].partition("=")[2] or "".join(flags[i + 1 : i + 2])
        allowed = {"config": _OF_CONFIG, "info": _OF_INFO}.get(_COMMANDS.get(name, ""), (value,))
        if value not in allowed:
            raise ConfigError(name, f"cannot show '{value}'", closest(value, allowed), 16)
    if "completion" in [_COMMANDS[name] for name in asked]:
        verb, _, shell = "".join(overrides).partition("=")
        if len(overrides) != 1 or verb not in _VERBS or shell not in _SHELLS:
            what = f"needs one of {', '.join(_VERBS)} and a shell of {', '.join(_SHELLS)}"
            raise ConfigError(asked[0], what, f"type {asked[0]} install=bash", 16)


_COMMANDS = {
    **dict.fromkeys(("-m", "--multirun"), "several runs"),
    **dict.fromkeys(("-c", "--cfg"), "config"),
    **dict.fromkeys(("-i", "--info"), "info"),
    **dict.fromkeys(("-sc", "--shell-completion"), "completion"),
    "--hydra-help": "help",
}
_OF_CONFIG = ("job", "hydra", "all")
_OF_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_VERBS, _SHELLS = ("install", "uninstall", "query"), ("bash", "fish", "zsh")
_ALONE = ("-m", "--multirun", "--resolve", "--hydra-help", "-sc", "--shell-completion")
_WITH_VALUE = ("--config-dir", "-cd", "--cfg", "-c", "--info", "-i", "--package", "-p")


if __name__ == "__main__":
    main()
