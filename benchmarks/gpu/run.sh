#!/usr/bin/env bash
# benchmarks/gpu/run.sh: from a bundle (bundle.sh) to results, on a bare GPU machine: builds, tests, measures.
#
#   run.sh BUNDLE RESULTS [tests] [inference] [micro] [llama]        (all of them by default)
#
# Everything is installed under $ZMLX_GPU_ROOT (default /tmp/zmlx-gpu) and kept for the next call. RESULTS gets one JSON file a
# benchmark, and logs.
set -euo pipefail
bundle=$(cd "${1:?usage: run.sh BUNDLE RESULTS [tests] [inference] [micro] [llama]}" && pwd)
mkdir -p "${2:?usage: run.sh BUNDLE RESULTS}"
results=$(cd "$2" && pwd)
shift 2
steps=("$@")
((${#steps[@]})) || steps=(tests inference micro llama)
root=${ZMLX_GPU_ROOT:-/tmp/zmlx-gpu}
site=$root/site

if [[ ! -e $root/mlx_ready ]]; then
  mkdir -p "$site"
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$bundle"/*.whl
  tar -xJf "$bundle/mlx_cuda.tar.xz" -C "$site"
  mkdir -p "$root/highway" && tar -xJf "$bundle/highway.tar.xz" -C "$root/highway"
  touch "$root/mlx_ready"
fi
export PYTHONPATH=$site
# MLX finds cuDNN, cuBLAS, NVRTC and their like in the nvidia-* wheels.
libraries=$(python3 -c 'import glob, os, sys
print(":".join(sorted({os.path.dirname(f) for p in sys.path for f in glob.glob(p + "/nvidia/**/lib*.so*", recursive=True)})))')
export LD_LIBRARY_PATH=$libraries:$site/mlx/lib:$root/highway/usr/lib/x86_64-linux-gnu:${LD_LIBRARY_PATH:-}

if [[ ! -e $root/built-$(<"$bundle/commit") ]]; then
  rm -rf "$root/zmlx" && mkdir -p "$root/zmlx"
  tar -xJf "$bundle/zmlx.tar.xz" -C "$root/zmlx"
  cmake -S "$root/zmlx" -B "$root/build" -G Ninja --log-level=WARNING -DPython_EXECUTABLE="$(command -v python3)" \
    -DCMAKE_PREFIX_PATH="$root/highway/usr" -DMLX_DIR="$site/mlx/share/cmake/MLX"
  cmake --build "$root/build" --target zmlx _ext >"$results/build.log"
  ln -sf "$root"/build/_ext*.so "$root/zmlx/python/zmlx/"
  touch "$root/built-$(<"$bundle/commit")"
fi
export PYTHONPATH=$root/zmlx/python:$PYTHONPATH
export LD_LIBRARY_PATH=$root/build:$LD_LIBRARY_PATH
cd "$root/zmlx"

for step in "${steps[@]}"; do
  case $step in
    tests)
      python3 -m pytest -q -p no:cacheprovider tests/python/test_cuda.py 2>&1 | tee "$results/tests.log" || true
      ;;
    inference)
      python3 benchmarks/gpu/inference.py --json "$results/gpu_inference.json" 2>&1 | tee "$results/inference.log"
      ;;
    micro)
      python3 benchmarks/microbench.py --device gpu --json "$results/gpu_micro.json" 2>&1 | tee "$results/micro.log"
      ;;
    llama)
      if [[ ! -x $root/llama/bin/llama-bench ]]; then
        tar -xzf "$bundle"/llama_cpp_python-*.tar.gz -C "$root"
        cmake -S "$root"/llama_cpp_python-*/vendor/llama.cpp -B "$root/llama" -G Ninja --log-level=ERROR \
          -DCMAKE_BUILD_TYPE=Release -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90a -DGGML_NATIVE=ON -DGGML_CCACHE=OFF \
          -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_APP=OFF \
          -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF
        cmake --build "$root/llama" --target llama-bench >"$results/llama_build.log"
      fi
      ;;
    *)
      echo "run.sh: unknown step '$step'; there are tests, inference, micro and llama" >&2
      exit 2
      ;;
  esac
done
