#!/usr/bin/env bash
# Collects in one folder what benchmarks/gpu.py needs beside torch on a machine that reaches no package index:
#     benchmarks/gpu_wheels.sh [FOLDER] [PYTHON_VERSION]        (.whl, 3.12; x86_64; about 26 MB)
# Versions are those of constraints.txt. numpy, pillow, tokenizers and the like are expected there; README.md lists them.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.whl} python=${2:-3.12}
packages="diffusers pydantic pydantic_core annotated-types typing-inspection typing_extensions omegaconf
    importlib_metadata lazy-importer transformers peft"
pinned=()
for name in $packages; do
    pinned+=("$(grep -i "^$name==" constraints.txt)")
done
platforms=()
for tag in 2_28 2_27 2_17; do
    platforms+=(--platform "manylinux_${tag}_x86_64")
done
rm -rf "$folder"
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 --dest "$folder" "${pinned[@]}"
python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder" . plugins/asg_bagel plugins/asg_blip3o plugins/asg_vargpt
du -sh "$folder"
