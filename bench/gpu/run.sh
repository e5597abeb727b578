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
"$chosen" -m pytest -m gpu tests/test_gpu.py tests/test_gpu_triton.py tests/test_gpu_triton_losses.py tests/test_gpu_cuda.py ||
  failed=1
sanitize() { # TOOL FILE
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 \
    "$chosen" -m pytest -m gpu -k smallest "$2" || failed=1
}
if command -v compute-sanitizer >/dev/null; then
  for file in tests/test_gpu_triton.py tests/test_gpu_triton_losses.py; do sanitize memcheck "$file"; done
  for tool in memcheck racecheck initcheck; do sanitize "$tool" tests/test_gpu_cuda.py; done
else
  echo "make gpu: no compute-sanitizer here, so memory accesses were not checked"
fi
if [ "$failed" = 1 ]; then
  echo "make gpu: tests failed, so nothing was timed" >&2
  exit 1
fi
"$chosen" -m bench.gpu
