#!/usr/bin/env bash
# benchmarks/gpu/bundle.sh: packs what a Linux GPU machine without a package index needs to run benchmarks/gpu/run.sh.
#
#   benchmarks/gpu/bundle.sh OUT [--llama] [--sanitizer]
#
# OUT gets MLX's CUDA wheel for Python 3.12 with the GPU code of one architecture (SM, default 90: H100, H200), mlx-lm, this
# checkout's committed files, and the headers and libraries of Highway and GoogleTest: about 30 MB; with --llama llama.cpp's
# sources too (8 MB), with --sanitizer NVIDIA's compute-sanitizer (18 MB). The GPU machine needs Python 3.12 with pytest, nanobind,
# cmake, ninja, numpy, scipy, click, rich, tokenizers and transformers, NVIDIA's CUDA 13 libraries (cuDNN, cuBLAS, NVRTC, ... as
# PyTorch's wheels bring them), and a C++20 compiler.
set -euo pipefail
out=${1:?usage: bundle.sh OUT [--llama] [--sanitizer]}
sm=${SM:-90}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
mlx=$(sed -n 's/^set(ZMLX_MLX_VERSION \(.*\))/\1/p' "$root/CMakeLists.txt")
mlx_lm=$(sed -n 's/.*"mlx-lm==\([0-9.]*\)".*/\1/p' "$root/pyproject.toml")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

mkdir -p "$out"
out=$(cd "$out" && pwd)
download=("$python" -m pip download -q --no-deps -d "$scratch")
"${download[@]}" --only-binary=:all: --python-version 3.12 --platform manylinux_2_35_x86_64 \
  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 "mlx-cuda-13==$mlx" "mlx==$mlx" "mlx-lm==$mlx_lm"
cp "$scratch"/mlx-"$mlx"-*.whl "$scratch"/mlx_lm-*.whl "$out"/
mkdir "$scratch/cuda"
"$python" -m zipfile -e "$scratch"/mlx_cuda_13-*.whl "$scratch/cuda"
"$python" "$here/keep_architecture.py" "$scratch/cuda/mlx/lib/libmlx.so" "$sm"
tar -C "$scratch/cuda" -c . | xz -6 -T0 >"$out/mlx_cuda.tar.xz"

mkdir "$scratch/wheels"
"$python" -m pip download -q --no-deps -d "$scratch/wheels" --only-binary=:all: --python-version 3.12 \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  hypothesis sortedcontainers jsonschema jsonschema-specifications referencing rpds-py attrs
cp "$scratch"/wheels/*.whl "$out"/

(cd "$scratch" && apt-get download -q libhwy-dev libhwy1 libgtest-dev >/dev/null)
for package in "$scratch"/*.deb; do
  dpkg-deb -x "$package" "$scratch/libraries"
done
tar -C "$scratch/libraries" -cJf "$out/libraries.tar.xz" .

git -C "$root" archive --format=tar HEAD | xz -6 >"$out/zmlx.tar.xz"
git -C "$root" rev-parse HEAD >"$out/commit"
if [[ " $* " == *" --llama "* ]]; then
  "${download[@]}" --no-binary llama-cpp-python llama-cpp-python==0.3.36
  "${download[@]}" gguf
  cp "$scratch"/gguf-*.whl "$out"/
  # Without what a CUDA build of llama-bench does not read: 8 MB instead of 77.
  sources=$scratch/sources
  mkdir "$sources"
  tar -xzf "$scratch"/llama_cpp_python-*.tar.gz -C "$sources"
  (cd "$sources"/llama_cpp_python-*/vendor/llama.cpp &&
    rm -rf docs media models tests benches conversion pocs examples gguf-py ggml/src/ggml-{vulkan,sycl,opencl,hexagon,webgpu,openvino,cann})
  tar -C "$sources" -czf "$out/llama_cpp_python-0.3.36.tar.gz" llama_cpp_python-0.3.36
fi
if [[ " $* " == *" --sanitizer "* ]]; then
  "${download[@]}" nvidia-cuda-sanitizer-api
  cp "$scratch"/nvidia_cuda_sanitizer_api-*.whl "$out"/
fi
cp "$here/run.sh" "$out/"
du -sh "$out"
