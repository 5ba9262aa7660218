// zmlx/kernel/cuda/weights.cpp: how kernels' template texts and arguments name dtypes and weights.
#include "zmlx/kernel/cuda/weights.h"

namespace zmlx::cuda {

std::string text_of(Dtype dtype) {
  return dtype == Dtype::bf16 ? "bf16" : dtype == Dtype::f16 ? "f16" : "float";
}

std::string text_of(WeightFormat format) {
  switch (format.mode) {
    case cpu::Quantisation::mxfp4:
      return "Mxfp4";
    case cpu::Quantisation::mxfp8:
      return "Mxfp8";
    case cpu::Quantisation::nvfp4:
      return "Nvfp4";
    default:
      return format.bits
          ? "Affine<" + std::to_string(format.bits) + ", " + std::to_string(format.group_size) + ">"
          : "Dense";
  }
}

void push_weight(std::vector<Argument>& arguments, WeightFormat format, int at) {
  arguments.push_back(in(at));
  arguments.push_back(in(format.bits ? at + 1 : at));
  arguments.push_back(in(format.has_biases() ? at + 2 : at));
}

} // namespace zmlx::cuda
