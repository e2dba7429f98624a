#!/usr/bin/env bash
# The tests of configuration, command line and sweeps with the newest Hydra, pre-releases too.
# hydra_next.sh PYTHON [TEST...]: an environment in which xfer is installed. It is not changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-.venv/bin/python}
shift || true
[ $# -gt 0 ] || set -- tests/config/test_config.py tests/config/test_configs.py tests/workflow/test_cli.py \
  tests/sweep/test_sweep.py tests/sweep/test_sweep_runs.py
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
"$python" -m venv --without-pip "$home"
where='import sysconfig; print(sysconfig.get_path("purelib"))'
# Behind the new environment's own packages stand those of the given one.
echo "import site; site.addsitedir('$("$python" -c "$where")')" \
  > "$("$home/bin/python" -c "$where")/behind.pth"
# pip says that xfer asks for an older one, and installs it nevertheless.
"$python" -m pip --python "$home/bin/python" install --quiet --pre --upgrade hydra-core
export PATH=$home/bin:$PATH
python -c 'import hydra, omegaconf; print(f"Hydra {hydra.__version__}, OmegaConf {omegaconf.__version__}")'
tests/twice.sh python "$@"
