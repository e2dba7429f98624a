#!/usr/bin/env bash
# Everything that is to be done where a GPU can be had, in at most 9 minutes; installs nothing.
#
#   bench/gpu.sh             the tests marked gpu, then the benches, each with its own time limit
#   bench/gpu.sh --dry-run   only prints the commands
#   DEVICE=cpu bench/gpu.sh  the same commands with tiny settings on the processor
#
# PYTHON (default python), XFER_ASSETS (default ../shared/assets) and OUT (default outputs/gpu, where
# each part leaves its log) are read from the environment, FASTAI_PYTHON too where there is one.
# What a limit cut off is said, and what came before it is kept: docs/gpu.md takes over the lines
# between the two marks at the end.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
device=${DEVICE:-gpu} python=${PYTHON:-python} out=${OUT:-outputs/gpu}
export XFER_ASSETS=${XFER_ASSETS:-../shared/assets} PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
dry=no
[ "${1:-}" = --dry-run ] && dry=yes

tests=(-m pytest -n 0 -m gpu -q -p no:cacheprovider tests)
throughput=(bench/throughput.py --device "$device")
freeze=(bench/freeze.py --device "$device")
defaults=(bench/defaults.py --device "$device" --out "$out/defaults.jsonl" --timeout 120)
methods=(plain again sklearn lp_ft lora floor import lightning)
if [ "$device" = gpu ]; then
    throughput+=(--model resnet50 --images 2400 --batch 128 --epochs 3 --workers 8)
    freeze+=(--models resnet50 --precision bf16-mixed)
    [ -n "${FASTAI_PYTHON:-}" ] && methods+=(fastai) defaults+=(--fastai-python "$FASTAI_PYTHON")
    defaults+=(--data hymenoptera canidae)
else
    tests=(-m pytest -n 0 -m gpu -q -p no:cacheprovider tests/test_gpu.py)
    throughput+=(--model resnet18 --images 64 --batch 8 --epochs 2 --precision 32-true)
    freeze+=(--models resnet18 --epochs 2)
    methods=(import floor)
    defaults+=(--data digits --networks squeezenet1_0)
fi
defaults+=(--methods "${methods[@]}")

# part NAME SECONDS ARGUMENTS: one part of the script, its output in a log of its own. An interrupt
# comes first, so that pytest prints what it has.
part() {
    local name=$1 limit=$2 began=$SECONDS rc
    shift 2
    if [ $dry = yes ]; then
        printf 'timeout %s %s %s\n' "$limit" "$python" "$*"
        return
    fi
    timeout -s INT -k 5 "$limit" "$python" "$@" >"$out/$name.log" 2>&1
    rc=$?
    verdict="$name: exit $rc, $((SECONDS - began)) s of at most $limit s"
    [ $rc = 124 ] || [ $rc = 137 ] && verdict+=", CUT: what is missing was not measured"
    verdicts+=("$verdict")
    [ $rc = 0 ] || failed=1
    echo "$verdict"
}

# 80 + 80 + 70 + 270 s, and 5 s for each that does not end when it is asked to: 520 s in all.
if [ $dry = no ] && [ "$device" = gpu ]; then
    # Tests that are all skipped would pass.
    "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || {
        echo "gpu.sh: $python sees no CUDA device; DEVICE=cpu tries the script without one" >&2
        exit 2
    }
fi
verdicts=() failed=0
[ $dry = yes ] || mkdir -p "$out"
part tests 80 "${tests[@]}"
part throughput 80 "${throughput[@]}"
part freeze 70 "${freeze[@]}"
part defaults 270 "${defaults[@]}"
[ $dry = yes ] && exit 0

shown() { "$python" "$@" 2>/dev/null; }
echo
echo "<!-- docs/gpu.md takes over from here -->"
shown -c 'import torch, xfer
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}")'
echo "$(date +%F), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
printf -- '- %s\n' "${verdicts[@]}"
for name in tests throughput freeze; do
    printf '\n```\n'
    if [ $name = tests ]; then
        grep -E '^(FAILED|ERROR|SKIPPED)|(passed|failed|skipped|error|no tests ran).* in ' "$out/tests.log" | tail -40
    else
        grep -vE 'Warning|warn\(' "$out/$name.log" | tail -25
    fi
    printf '```\n'
done
echo
# Asked for anew, so that the turns that were over when the time was up are shown as well.
shown bench/defaults.py --report --out "$out/defaults.jsonl"
echo "<!-- to here -->"
exit $failed
