#!/usr/bin/env bash
# benchmarks/gpu/run.sh: from a bundle (bundle.sh) to results, on a bare GPU machine: builds, tests, measures.
#
#   run.sh BUNDLE RESULTS [tests] [suite] [sanitize] [inference] [memory] [micro]        (by default tests, inference and micro)
#
# tests: a patched model on the GPU, and every op's CUDA kernel. suite: all C++ and Python tests. sanitize: compute-sanitizer
# (memcheck, racecheck, initcheck) over the ops' kernels. inference: stock, patched and, if the bundle has its sources, llama.cpp
# in one run. memory: whether it grows over 10,000 tokens. micro: single ops. Everything is installed under $ZMLX_GPU_ROOT
# (default /tmp/zmlx-gpu) and kept for the next call. RESULTS gets one JSON file a benchmark, and logs. Ends with status 1
# when tests failed, after all steps.
set -euo pipefail
bundle=$(cd "${1:?usage: run.sh BUNDLE RESULTS [tests] [suite] [sanitize] [inference] [memory] [micro]}" && pwd)
mkdir -p "${2:?usage: run.sh BUNDLE RESULTS}"
results=$(cd "$2" && pwd)
shift 2
steps=("$@")
((${#steps[@]})) || steps=(tests inference micro)
root=${ZMLX_GPU_ROOT:-/tmp/zmlx-gpu}
site=$root/site

if [[ ! -e $root/mlx_ready ]]; then
  mkdir -p "$site"
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$bundle"/*.whl
  tar -xJf "$bundle/mlx_cuda.tar.xz" -C "$site"
  mkdir -p "$root/libraries" && tar -xJf "$bundle/libraries.tar.xz" -C "$root/libraries"
  touch "$root/mlx_ready"
fi
export PYTHONPATH=$site
# MLX finds cuDNN, cuBLAS, NVRTC and their like in the nvidia-* wheels.
libraries=$(python3 -c 'import glob, os, sys
print(":".join(sorted({os.path.dirname(f) for p in sys.path for f in glob.glob(p + "/nvidia/**/lib*.so*", recursive=True)})))')
export LD_LIBRARY_PATH=$libraries:$site/mlx/lib:$root/libraries/usr/lib/x86_64-linux-gnu:${LD_LIBRARY_PATH:-}

if [[ ! -e $root/built-$(<"$bundle/commit") ]]; then
  rm -rf "$root/zmlx" && mkdir -p "$root/zmlx"
  tar -xJf "$bundle/zmlx.tar.xz" -C "$root/zmlx"
  cmake -S "$root/zmlx" -B "$root/build" -G Ninja --log-level=WARNING -DPython_EXECUTABLE="$(command -v python3)" \
    -DCMAKE_PREFIX_PATH="$root/libraries/usr" -DMLX_DIR="$site/mlx/share/cmake/MLX"
  cmake --build "$root/build" --target zmlx _ext >"$results/build.log"
  ln -sf "$root"/build/_ext*.so "$root/zmlx/python/zmlx/"
  touch "$root/built-$(<"$bundle/commit")"
fi
export PYTHONPATH=$root/zmlx/python:$PYTHONPATH
export LD_LIBRARY_PATH=$root/build:$LD_LIBRARY_PATH
cd "$root/zmlx"

failed=0
# A failure is remembered; the steps after it still run.
check() {
  local log=$results/$1.log
  shift
  "$@" 2>&1 | tee "$log" || failed=1
}
pytest=(python3 -m pytest -q -p no:cacheprovider)

# build_tests TARGET: C++ tests are built when a step asks for them.
build_tests() {
  cmake -S "$root/zmlx" -B "$root/build" --log-level=WARNING -DZMLX_BUILD_TESTS=ON
  cmake --build "$root/build" --target "$1" >"$results/build_tests.log"
}

# Sets `llama` to inference.py's arguments; nothing when the bundle has no sources.
llama=()
build_llama() {
  compgen -G "$bundle/llama_cpp_python-*.tar.gz" >/dev/null || return 0
  if [[ ! -x $root/llama/bin/llama-bench ]]; then
    tar -xzf "$bundle"/llama_cpp_python-*.tar.gz -C "$root"
    cmake -S "$root"/llama_cpp_python-*/vendor/llama.cpp -B "$root/llama" -G Ninja --log-level=ERROR \
      -DCMAKE_BUILD_TYPE=Release -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90a -DGGML_NATIVE=ON -DGGML_CCACHE=OFF \
      -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_APP=OFF \
      -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF
    cmake --build "$root/llama" --target llama-bench >"$results/llama_build.log"
  fi
  local model=$root/qwen3-30b-a3b.gguf
  [[ -e $model ]] || PYTHONPATH=benchmarks:$PYTHONPATH python3 -c "
import pathlib, cpu_vs_llama
from zmlx import presets
cpu_vs_llama.write_gguf(pathlib.Path('$model'), presets.Settings('qwen3-30b-a3b').config())"
  llama=(--llama-bench "$root/llama/bin/llama-bench" "$model")
}

for step in "${steps[@]}"; do
  case $step in
    tests)
      build_tests cuda_device_test
      check tests_ops "$root/build/tests/cuda_device_test"
      check tests_model "${pytest[@]}" tests/python/test_cuda.py
      ;;
    suite)
      build_tests all
      check suite_cpp ctest --test-dir "$root/build" --output-on-failure -j4
      check suite_python "${pytest[@]}" tests/python
      ;;
    sanitize)
      build_tests cuda_device_test
      sanitizer=$(command -v compute-sanitizer || echo "$site/nvidia/cu13/compute-sanitizer/compute-sanitizer")
      chmod +x "$sanitizer"
      for tool in memcheck racecheck initcheck; do
        check "sanitize_$tool" "$sanitizer" --tool "$tool" --error-exitcode 1 "$root/build/tests/cuda_device_test"
      done
      ;;
    inference)
      build_llama
      python3 benchmarks/gpu/inference.py --json "$results/gpu_inference.json" "${llama[@]}" 2>&1 | tee "$results/inference.log"
      ;;
    memory)
      check memory python3 benchmarks/gpu/memory.py --tokens 10000 --json "$results/gpu_memory.json"
      ;;
    micro)
      python3 benchmarks/microbench.py --device gpu --json "$results/gpu_micro.json" 2>&1 | tee "$results/micro.log"
      ;;
    *)
      echo "run.sh: unknown step '$step'; there are tests, suite, sanitize, inference, memory and micro" >&2
      exit 2
      ;;
  esac
done
exit $failed
