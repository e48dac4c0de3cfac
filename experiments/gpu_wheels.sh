#!/usr/bin/env bash
# Wheels of what a bare machine with torch lacks, for a Python there: gpu_wheels.sh PYTHON FOLDER [VERSION]. Needs pip and a network.
set -euo pipefail
python=$1 folder=$2 version=${3:-3.12}
mkdir -p "$folder"
rm -f "$folder"/*.whl  # of another Python, or of older versions
platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
"$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    "${platforms[@]}" -d "$folder" hydra-core==1.3.8 omegaconf==2.3.0 'av>=18.1' jaxtyping wadler-lindig webdataset braceexpand einops \
    lightning lightning-utilities 'torchmetrics>=1.9' \
    packaging pyyaml tqdm safetensors rich pygments markdown-it-py mdurl 'diffusers>=0.42' importlib-metadata zipp
# of this one there is no wheel to be had, only its source, which is plain Python
"$python" -m pip --disable-pip-version-check wheel --quiet --no-deps -w "$folder" antlr4-python3-runtime==4.9.3
bytes=$(du -cb "$folder"/*.whl | tail -1 | cut -f1)
echo "$(ls "$folder"/*.whl | wc -l) wheels, $((bytes / 1000000)) MB, in $folder"
test "$bytes" -lt 60000000
