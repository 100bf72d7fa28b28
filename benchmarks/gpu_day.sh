#!/usr/bin/env bash
# Installs the wheels of gpu_wheels.sh beside the torch that is there, runs a short test, then the whole benchmark:
#     benchmarks/gpu_day.sh OUT [WORDS FOR gpu.py ...]          e.g. benchmarks/gpu_day.sh results all --minutes 8
# Everything that it writes is in the folder OUT: gpu.json after every row, and the logs. Needs no package index.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "${WHEELS:-.whl}"/*.whl
export PYTHONPATH=$site PYTHONUNBUFFERED=1
smoke=(vargpt --tiny --minutes 0.5 --only precision,replay,decode,"understanding step","decode captured")
python3 benchmarks/gpu.py "${smoke[@]}" --device "${DEVICE:-cuda}" >"$out/smoke.log" 2>&1 || tail -20 "$out/smoke.log"
python3 benchmarks/gpu.py "${@:-all}" --device "${DEVICE:-cuda}" --json "$out/gpu.json" 2>&1 | tee "$out/gpu.log"
