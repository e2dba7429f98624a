#!/usr/bin/env bash
# The tests of configuration, command line and sweeps with the newest Hydra, pre-releases too.
# hydra_next.sh [PYTHON]: an environment in which xfer is installed; it is looked through, not changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-.venv/bin/python}
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
"$python" -m venv --without-pip "$home"
# Behind the new environment's own packages stand those of the given one.
site=$("$home/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
  > "$site/behind.pth"
# xfer's own upper bound of hydra-core would refuse it; pip says so, and installs nevertheless.
"$python" -m pip --python "$home/bin/python" install --quiet --pre --upgrade hydra-core
"$home/bin/python" -c 'import hydra, omegaconf; print("hydra", hydra.__version__, "omegaconf", omegaconf.__version__)'
PATH=$home/bin:$PATH "$home/bin/python" -m pytest -q \
  tests/test_config.py tests/test_configs.py tests/test_cli.py tests/test_sweep.py tests/test_sweep_runs.py
