#!/usr/bin/env bash
# versions.sh newest|oldest [TEST...]: fast tests with the newest versions that can be had, where any is
#   newer than constraints.txt, or with the oldest that pyproject.toml allows, in a new environment.
# versions.sh constraints: writes constraints.txt, the versions of which README says that they were tried.
# PYTHON is the Python to take, python3 by default.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in newest | oldest | constraints) ;; *)
  sed -n '2,5s/^# //p' tests/versions.sh >&2
  exit 2
  ;;
esac
what=$1
shift
# What other versions may change: layers, weights, what is cut and exported, whole runs, and the
# words of pydantic and Hydra, which the processes of test_cli.py only repeat.
[ $# -gt 0 ] || set -- tests/models/test_backbone.py tests/models/test_head.py tests/weights/test_source.py \
  tests/training/test_features_cut.py tests/workflow/test_workflow.py tests/config/test_config.py \
  tests/export/test_export.py tests/export/test_export_image.py tests/data/test_shards.py
# Not tried with newer ones yet: lift these when all tests have passed with them.
newest_tried=('torch<=2.14.1' 'torchvision<=0.29.1')

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
"${PYTHON:-python3}" -m venv "$home"
python=$home/bin/python
# Beside the environment, so that uv links files instead of copying them, and nothing of it stays.
export UV_CACHE_DIR=$home/uv

resolve() {
  "$python" -m pip install --quiet uv
  "$python" -m uv pip compile --quiet --no-header --no-annotate "$@" pyproject.toml > /dev/null
}

case $what in
  constraints)
    printf '%s\n' "${newest_tried[@]}" > "$home/tried.txt"
    # One file for every Python from 3.11 on: what differs has a marker.
    resolve --universal --python-version 3.11 --all-extras --constraints "$home/tried.txt" \
      --output-file "$home/constraints.txt"
    echo "# Versions that were tried together; tests/versions.sh constraints writes this file." \
      | cat - "$home/constraints.txt" > constraints.txt
    exit
    ;;
  newest)
    resolve --extra dev --output-file "$home/versions.txt"
    # The whole suite runs with constraints.txt: where nothing is newer, these tests repeat it.
    if newer=$(cut -d' ' -f1 constraints.txt | grep -vxFf - "$home/versions.txt"); then
      echo "newer than in constraints.txt:" $newer
    else
      echo "nothing is newer than in constraints.txt"
      exit
    fi
    ;;
  oldest)
    resolve --resolution lowest-direct --extra dev --output-file "$home/versions.txt"
    ;;
esac
"$python" -m uv pip install --quiet --python "$python" --requirements "$home/versions.txt" --editable .
export PATH=$home/bin:$PATH
python -c 'import numpy, timm, torch, torchvision as t
print(f"torch {torch.__version__}, torchvision {t.__version__}, timm {timm.__version__}, numpy {numpy.__version__}")'
tests/twice.sh python "$@"
