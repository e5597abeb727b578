#!/usr/bin/env bash
# What `make gpu` runs: build in place, test and measure with the first Python given whose torch sees a GPU. No network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

chosen=""
for python in "$@"; do
  command -v "$python" >/dev/null || continue
  if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    chosen=$python
    break
  fi
done
if [ -z "$chosen" ]; then
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    echo "make gpu: nvidia-smi lists a GPU, but no Python here has a torch that sees it (tried: $*)" >&2
    exit 1
  fi
  echo "make gpu: no Python here has a torch that sees a GPU (tried: $*), so no GPU test ran"
  exit 0
fi

"$chosen" -c 'import sys, torch, triton; print("make gpu: Python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__, torch.cuda.get_device_name())'
"$chosen" setup.py -q build_ext --inplace
"$chosen" -m minerlib info
failed=0
workers=() # each compiles its own kernels, which takes longer than running them
if "$chosen" -c 'import xdist' 2>/dev/null; then workers=(-n "$(($(nproc) < 8 ? $(nproc) : 8))"); fi
"$chosen" -m pytest -m gpu ${workers[@]+"${workers[@]}"} tests/test_gpu.py tests/test_gpu_triton.py tests/test_gpu_triton_losses.py tests/test_gpu_cuda.py ||
  failed=1
reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
checks=()
sanitize() { # TOOL FILE: beside the others, as most of it is compiling
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 \
    "$chosen" -m pytest -m gpu -k smallest "$2" >"$reports/$1-$(basename "$2")" 2>&1 &
  checks+=($!)
}
if command -v compute-sanitizer >/dev/null; then
  for file in tests/test_gpu_triton.py tests/test_gpu_triton_losses.py; do sanitize memcheck "$file"; done
  for tool in memcheck racecheck initcheck; do sanitize "$tool" tests/test_gpu_cuda.py; done
  for check in "${checks[@]}"; do wait "$check" || failed=1; done
  tail -n 4 "$reports"/*
else
  echo "make gpu: no compute-sanitizer here, so memory accesses were not checked"
fi
if [ "$failed" = 1 ]; then
  echo "make gpu: tests failed, so nothing was timed" >&2
  exit 1
fi
"$chosen" -m bench.gpu
