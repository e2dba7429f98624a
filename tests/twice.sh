#!/usr/bin/env bash
# twice.sh PYTHON [ARGUMENT...]: pytest, and what failed a second time, alone and in a new process.
# Of thousands of tests that start processes, terminals and browsers one can wait for the wrong moment on a busy
# machine. Both runs are in the log; a test that fails twice has failed.
set -euo pipefail
python=$1
shift
failed=0
"$python" -m pytest "$@" || failed=$?
# 1: all tests were run, and some failed. Anything else is no matter of a moment.
[ "$failed" = 1 ] || exit "$failed"
echo "What failed is tried once more:"
"$python" -m pytest "$@" -n 0 --last-failed --last-failed-no-failures none
