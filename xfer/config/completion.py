"""``xfer completion SHELL``: a script that completes groups, options, keys, values and runs.

The words are in the script, so that no process of Python starts where a key is pressed; only run
folders and files are looked up then. Loaded by::

    eval "$(xfer completion bash)"          # in ~/.bashrc
    source <(xfer completion zsh)           # in ~/.zshrc, after compinit
    xfer completion fish | source           # in ~/.config/fish/config.fish
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from xfer.config.catalog import keys, options, words_of
from xfer.config.help import GROUPS
from xfer.config.verbs import VERBS
from xfer.core.errors import CommandError

_FLAGS = ("--help", "--version", "--multirun", "--cfg", "--config-dir", "--allow")


def script(shells: Sequence[str], folders: Sequence[str]) -> str:
    """The script for the one shell that is named. Raises CommandError for none, several or
    another."""
    if len(shells) != 1 or shells[0] not in SHELLS:
        fix = f"type xfer completion {SHELLS[0]}"
        raise CommandError("completion", f"needs one of {', '.join(SHELLS)}", fix, 8)
    # No name that is completed needs a quote of its own.
    words = [word for word in _words(folders) if re.fullmatch(r"[\w=.+-]+", word)]
    text = _TEMPLATES[shells[0]].replace("@WORDS@", "\n".join(words))
    return text.replace("@FILTER@", _FILTER)


def _words(folders: Sequence[str]) -> Iterator[str]:
    """What may be typed: ``key=`` and, where they have names, its values."""
    yield from (*VERBS, *_FLAGS)
    for group in GROUPS:
        found = options(group, tuple(folders))
        yield from (f"{group}={option.name}" for option in found)
    for name, rows in keys(folders).items():
        yield f"{name}="
        values = dict.fromkeys(value for row in rows for value in words_of(row.hint))
        yield from (f"{name}={value}" for value in values)


# One filter for all three: a word without an equals sign is completed to a key, below a group only
# where its dot has been typed, or else a hundred keys would hide the groups.
_FILTER = r"""
index($0, ENVIRON["XFER_AT"]) != 1 { next }
ENVIRON["XFER_AT"] ~ /=$/ && $0 == ENVIRON["XFER_AT"] { next }
ENVIRON["XFER_AT"] !~ /=/ {
    sub(/=.*/, "=")
    if (ENVIRON["XFER_AT"] !~ /[.]/ && $0 ~ /[.]/) next
}
!seen[$0]++
"""
_HEAD = r"""
_xfer_words='@WORDS@'
_xfer_filter='@FILTER@'
_xfer_candidates() {  # the line so far, and the word before the cursor
    case "$1" in
        *"xfer predict "*|*"xfer export "*|*"xfer report "*|*"xfer resume "*|*"xfer compare "*)
            { echo last; ls -1td outputs/*/*/ outputs/multirun/*/*/*/ 2>/dev/null | sed 's,/$,,'
            } | XFER_AT="$2" awk 'index($0, ENVIRON["XFER_AT"]) == 1' ;;
    esac
    echo "$_xfer_words" | XFER_AT="$2" awk "$_xfer_filter"
}
"""
_BASH = (
    _HEAD
    + r"""
_xfer() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n' current head
    current="${line##* }"
    head="${current%"${current##*=}"}"  # bash begins a new word behind an equals sign
    COMPREPLY=($(_xfer_candidates "$line" "$current"))
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
    if [ ${#COMPREPLY[@]} = 0 ]; then
        compopt -o filenames
        COMPREPLY=($(compgen -f -- "${current#"$head"}"))
    elif [ ${#COMPREPLY[@]} = 1 ] && [ "${COMPREPLY[0]%=}" != "${COMPREPLY[0]}" ]; then
        compopt -o nospace
    fi
}
complete -F _xfer xfer
"""
)
_ZSH = (
    _HEAD
    + r"""
_xfer() {
    local current="$PREFIX" found
    found=("${(@f)$(setopt no_nomatch null_glob; _xfer_candidates "$LBUFFER" "$current")}")
    if [[ -n "$found" ]]; then
        compadd -S '' -- ${found:#^*=}
        compadd -- ${found:#*=}
    else
        compset -P '*='
        _files
    fi
}
compdef _xfer xfer
"""
)
_FISH = r"""
set -g _xfer_words '@WORDS@'
set -g _xfer_filter '@FILTER@'
function _xfer
    set -l current (commandline -ct)
    set -l found
    if string match -qr 'xfer (predict|export|report|resume|compare) ' -- (commandline -cp)
        set -l runs outputs/*/*/ outputs/multirun/*/*/*/
        test (count $runs) -gt 0; and set runs (ls -1td $runs | string replace -r '/$' '')
        set found (printf '%s\n' last $runs | string match -- "$current*")
    end
    set -a found (echo $_xfer_words | XFER_AT=$current awk $_xfer_filter)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        set -l head (string match -r '.*=' -- $current)
        set -l path (string replace -r '.*=' '' -- $current)
        __fish_complete_path $path | string replace -r '^' -- "$head"
    end
end
complete -c xfer -f -a '(_xfer)'
"""
_TEMPLATES = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
SHELLS = tuple(_TEMPLATES)
