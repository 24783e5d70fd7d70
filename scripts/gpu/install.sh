#!/bin/sh
# usage: sh install.sh FOLDER_WITH_ARCHIVES TARGET
# Checks and unpacks bundle-*.tar, installs the wheels into TARGET/site, the checkout into TARGET/project, patches
# SGLang there, and writes TARGET/env.sh. Needs python3 with pip and lzma, nothing else; safe to run again.
set -eu

fail() { echo "install: $1" >&2; exit 1; }

[ $# -eq 2 ] || fail "usage: sh install.sh FOLDER_WITH_ARCHIVES TARGET"
[ -f "$1/SHA256SUMS" ] || fail "$1 has no SHA256SUMS; give the folder that make_bundle wrote"
from=$(cd "$1" && pwd)
mkdir -p "$2"
target=$(cd "$2" && pwd)
python=${PYTHON:-python3}
"$python" -c 'import lzma, pip' || fail "$python lacks pip or lzma; set PYTHON to another one"
(cd "$from" && sha256sum -c --quiet SHA256SUMS) || fail "an archive is damaged or missing; copy it again"

rm -rf "$target/unpacked" "$target/site"
mkdir -p "$target/unpacked" "$target/site" "$target/cache" "$target/lib"
for archive in "$from"/bundle-*.tar; do
    tar -xf "$archive" -C "$target/unpacked"
done
"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --disable-pip-version-check --no-warn-script-location --target "$target/site" "$target"/unpacked/wheels/*.whl
cp -r "$target/unpacked/stubs/." "$target/site/"
for tree in "$target"/unpacked/trees/*.tar.xz; do
    "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' \
        "$tree" "$target"
done
rm -rf "$target/unpacked"

# Where the CUDA compiler, its headers and the driver's library are.
cuda=${CUDA_HOME:-}
for folder in /usr/local/cuda /usr/local/cuda-13 /usr/local/cuda-13.0; do
    if [ -z "$cuda" ] && [ -x "$folder/bin/nvcc" ]; then cuda=$folder; fi
done
if [ -z "$cuda" ] && command -v nvcc > /dev/null; then
    cuda=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
fi
[ -n "$cuda" ] || echo "install: no nvcc found; kernels that are compiled on first use will fail (R4)" >&2
driver=$(ldconfig -p 2> /dev/null | sed -n 's/.*libcuda\.so\.1 .*=> //p' | head -n 1)
if [ -z "$driver" ] && [ -e /usr/local/nvidia/lib64/libcuda.so.1 ]; then
    driver=/usr/local/nvidia/lib64/libcuda.so.1
fi
if [ -n "$driver" ]; then ln -sf "$driver" "$target/lib/libcuda.so"; fi
headers=$("$python" -c '
import importlib.util, os
spec = importlib.util.find_spec("nvidia")
places = [os.path.join(each, "cu13", "include") for each in spec.submodule_search_locations] if spec else []
print(":".join(place for place in places if os.path.isdir(place)))')

cat > "$target/env.sh" <<EOF
export PYTHONPATH="$target/site\${PYTHONPATH:+:\$PYTHONPATH}"
export PATH="$target/site/bin:\$PATH"
export PYTHONDONTWRITEBYTECODE=1
# compiled code: FlashInfer, tvm-ffi (SGLang's own JIT kernels), Triton, torch
export FLASHINFER_WORKSPACE_BASE="$target/cache"
export TVM_FFI_CACHE_DIR="$target/cache/tvm-ffi"
export TRITON_CACHE_DIR="$target/cache/triton"
export TORCHINDUCTOR_CACHE_DIR="$target/cache/inductor"
export SGLANG_CACHE_DIR="$target/cache/sglang"
export FLASHINFER_CUDA_ARCH_LIST=9.0a
export TORCH_CUDA_ARCH_LIST=9.0a
export FLASHINFER_USE_CUDA_NORM=1
# nothing outside is reachable: never try
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
export TOKENIZERS_PARALLELISM=false
${cuda:+export CUDA_HOME="$cuda"}
# last resorts: headers that CUDA_HOME lacks, the driver's library for -lcuda
export CPLUS_INCLUDE_PATH="\${CPLUS_INCLUDE_PATH:+\$CPLUS_INCLUDE_PATH:}$headers"
export LIBRARY_PATH="\${LIBRARY_PATH:+\$LIBRARY_PATH:}$target/lib"
EOF

PYTHONPATH="$target/site" "$python" -m sglang_layered patch apply --site "$target/site"
PYTHONPATH="$target/site" "$python" -m sglang_layered patch verify --site "$target/site"
echo "installed; now run:  . $target/env.sh && cd $target/project"
