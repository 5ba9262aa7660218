// zmlx/graph/primitives.cpp: one row a primitive of MLX that has parameters, and the names of those
// that have none.
#include "zmlx/graph/primitives.h"

#include <string>
#include <typeinfo>
#include <unordered_map>

#include "mlx/fast_primitives.h"
#include "zmlx/runtime/fused.h"

namespace zmlx {
namespace {

using Read = Attrs (*)(const mx::Primitive&);

template <typename List>
std::vector<int64_t> numbers(const List& list) {
  return {list.begin(), list.end()};
}

// MLX's own quantization_mode_to_string is not exported.
std::string name_of(mx::QuantizationMode mode) {
  switch (mode) {
    case mx::QuantizationMode::Affine:
      return "affine";
    case mx::QuantizationMode::Mxfp4:
      return "mxfp4";
    case mx::QuantizationMode::Mxfp8:
      return "mxfp8";
    case mx::QuantizationMode::Nvfp4:
      return "nvfp4";
  }
  return "unknown";
}

/// state() of a primitive known to be a P: its vtable is hidden, so static_cast is the only way in.
template <typename P>
auto state(const mx::Primitive& p) {
  return static_cast<const P&>(p).state();
}

template <typename P>
Attrs axis(const mx::Primitive& p) {
  return {{"axis", int64_t{state<P>(p)}}};
}

template <typename P>
Attrs type_and_axis(const mx::Primitive& p) {
  auto [type, axis] = state<P>(p);
  return {{"type", int64_t{type}}, {"axis", int64_t{axis}}};
}

template <typename P>
Attrs type_and_axes(const mx::Primitive& p) {
  auto [type, axes] = state<P>(p);
  return {{"type", int64_t{type}}, {"axes", numbers(axes)}};
}

template <typename P>
Attrs list(const mx::Primitive& p) {
  return {{"axes", numbers(state<P>(p))}};
}

template <typename P>
Attrs list_and_axis(const mx::Primitive& p) {
  auto [indices, axis] = state<P>(p);
  return {{"indices", numbers(indices)}, {"axis", int64_t{axis}}};
}

template <typename P>
Attrs kth_and_axis(const mx::Primitive& p) {
  auto [kth, axis] = state<P>(p);
  return {{"kth", int64_t{kth}}, {"axis", int64_t{axis}}};
}

Attrs nothing(const mx::Primitive&) {
  return {};
}

Attrs arange(const mx::Primitive& p) {
  auto [start, stop, step] = state<mx::Arange>(p);
  return {{"start", start}, {"stop", stop}, {"step", step}};
}

Attrs addmm(const mx::Primitive& p) {
  auto [alpha, beta] = state<mx::AddMM>(p);
  return {{"alpha", double{alpha}}, {"beta", double{beta}}};
}

Attrs gather(const mx::Primitive& p) {
  auto [axes, sizes] = state<mx::Gather>(p);
  return {{"axes", numbers(axes)}, {"slice_sizes", numbers(sizes)}};
}

Attrs slice(const mx::Primitive& p) {
  auto [start, end, strides] = state<mx::Slice>(p);
  return {{"start", numbers(start)}, {"end", numbers(end)}, {"strides", numbers(strides)}};
}

Attrs slice_update(const mx::Primitive& p) {
  auto [type, start, end, strides] = state<mx::SliceUpdate>(p);
  return {
      {"type", int64_t{type}},
      {"start", numbers(start)},
      {"end", numbers(end)},
      {"strides", numbers(strides)}};
}

Attrs dynamic_slice(const mx::Primitive& p) {
  auto [axes, size] = state<mx::DynamicSlice>(p);
  return {{"axes", numbers(axes)}, {"size", numbers(size)}};
}

Attrs scan(const mx::Primitive& p) {
  auto [type, axis, reverse, inclusive] = state<mx::Scan>(p);
  return {
      {"axis", int64_t{axis}}, {"reverse", int64_t{reverse}}, {"inclusive", int64_t{inclusive}}};
}

Attrs softmax(const mx::Primitive& p) {
  return {{"precise", int64_t{state<mx::Softmax>(p)}}};
}

Attrs quantized_matmul(const mx::Primitive& p) {
  auto [group_size, bits, mode, transpose] = state<mx::QuantizedMatmul>(p);
  return {
      {"group_size", int64_t{group_size}},
      {"bits", int64_t{bits}},
      {"mode", name_of(mode)},
      {"transpose", int64_t{transpose}}};
}

// left_sorted and right_sorted only choose the algorithm, but a pattern that sorts must see them.
Attrs gather_qmm(const mx::Primitive& p) {
  auto [group_size, bits, mode, transpose, left, right] = state<mx::GatherQMM>(p);
  return {
      {"group_size", int64_t{group_size}},
      {"bits", int64_t{bits}},
      {"mode", name_of(mode)},
      {"transpose", int64_t{transpose}},
      {"left_sorted", int64_t{left}},
      {"right_sorted", int64_t{right}}};
}

Attrs gather_mm(const mx::Primitive& p) {
  auto [left, right] = state<mx::GatherMM>(p);
  return {{"left_sorted", int64_t{left}}, {"right_sorted", int64_t{right}}};
}

Attrs rms_norm(const mx::Primitive& p) {
  return {{"eps", double{state<mx::fast::RMSNorm>(p).second}}};
}

Attrs rope(const mx::Primitive& p) {
  auto [fallback, dims, traditional, base, scale, forward] = state<mx::fast::RoPE>(p);
  return {
      {"dims", int64_t{dims}},
      {"traditional", int64_t{traditional}},
      {"base", double{base}},
      {"scale", double{scale}},
      {"forward", int64_t{forward}}};
}

Attrs attention(const mx::Primitive& p) {
  auto [fallback, scale, causal, sinks, lse, force] = state<mx::fast::ScaledDotProductAttention>(p);
  return {
      {"scale", double{scale}},
      {"causal", int64_t{causal}},
      {"sinks", int64_t{sinks}},
      {"output_logsumexp", int64_t{lse}}};
}

const std::unordered_map<std::string_view, Read>& readers() {
  static const std::unordered_map<std::string_view, Read> rows = {
      {"AddMM", addmm},
      {"Arange", arange},
      {"ArgPartition", kth_and_axis<mx::ArgPartition>},
      {"ArgReduce", type_and_axis<mx::ArgReduce>},
      {"ArgSort", axis<mx::ArgSort>},
      {"Concatenate", axis<mx::Concatenate>},
      {"DynamicSlice", dynamic_slice},
      {"DynamicSliceUpdate", list<mx::DynamicSliceUpdate>},
      {"Gather", gather},
      {"GatherAxis", axis<mx::GatherAxis>},
      {"GatherMM", gather_mm},
      {"GatherQMM", gather_qmm},
      {"Partition", kth_and_axis<mx::Partition>},
      {"QuantizedMatmul", quantized_matmul},
      {"Reduce", type_and_axes<mx::Reduce>},
      {"Scan", scan},
      {"Scatter", type_and_axes<mx::Scatter>},
      {"ScatterAxis", type_and_axis<mx::ScatterAxis>},
      {"Slice", slice},
      {"SliceUpdate", slice_update},
      {"Softmax", softmax},
      {"Sort", axis<mx::Sort>},
      {"Split", list_and_axis<mx::Split>},
      {"Transpose", list<mx::Transpose>},
      {"fast::RMSNorm", rms_norm},
      {"fast::RoPE", rope},
      {"fast::ScaledDotProductAttention", attention},
  };
  return rows;
}

/// Primitives whose kind and output types say everything.
constexpr std::string_view without_parameters[] = {
    "Abs",        "Add",           "ArcCos",
    "ArcCosh",    "ArcSin",        "ArcSinh",
    "ArcTan",     "ArcTan2",       "ArcTanh",
    "AsType",     "BitwiseBinary", "BitwiseInvert",
    "Broadcast",  "Ceil",          "Conjugate",
    "Contiguous", "Copy",          "Cos",
    "Cosh",       "Divide",        "DivMod",
    "Equal",      "Erf",           "ErfInv",
    "Exp",        "ExpandDims",    "Expm1",
    "Flatten",    "Floor",         "FloorDivide",
    "Full",       "Greater",       "GreaterEqual",
    "Imag",       "Less",          "LessEqual",
    "Log",        "Log1p",         "LogAddExp",
    "LogSumExp",  "LogicalAnd",    "LogicalNot",
    "LogicalOr",  "Matmul",        "Maximum",
    "Minimum",    "Multiply",      "Negative",
    "NotEqual",   "Power",         "Real",
    "Remainder",  "Reshape",       "Round",
    "Select",     "Sigmoid",       "Sign",
    "Sin",        "Sinh",          "Sqrt",
    "Square",     "Squeeze",       "StopGradient",
    "Subtract",   "Tan",           "Tanh",
    "Unflatten",  "View",          "fast::ConvertFP8"};

/// "Softmax" from "N3mlx4core7SoftmaxE", "fast::RoPE" from "N3mlx4core4fast4RoPEE", "" for a type
/// that is not MLX's.
std::string class_name(std::string_view mangled) {
  constexpr std::string_view prefix = "N3mlx4core";
  if (!mangled.starts_with(prefix)) {
    return {};
  }
  mangled.remove_prefix(prefix.size());
  std::string name;
  while (!mangled.empty() && mangled[0] >= '0' && mangled[0] <= '9') {
    size_t length = 0;
    while (mangled[0] >= '0' && mangled[0] <= '9') {
      length = length * 10 + static_cast<size_t>(mangled[0] - '0');
      mangled.remove_prefix(1);
    }
    name += (name.empty() ? "" : "::");
    name += mangled.substr(0, length);
    mangled.remove_prefix(length);
  }
  return name;
}

/// How to read a type of primitive; `read` is null for one that is not known.
struct Row {
  Read read;
};

Row row_of(const std::type_info& type) {
  auto name = class_name(type.name());
  if (auto it = readers().find(name); it != readers().end()) {
    return {it->second};
  }
  for (auto known : without_parameters) {
    if (known == name) {
      return {nothing};
    }
  }
  return {nullptr};
}

} // namespace

Described describe(const mx::Primitive& primitive) {
  // Keyed by address: one look-up a node, no string work.
  thread_local std::unordered_map<const std::type_info*, Row> rows;
  auto* type = &typeid(primitive);
  auto it = rows.find(type);
  if (it == rows.end()) {
    it = rows.emplace(type, row_of(*type)).first;
  }
  if (it->second.read) {
    return {primitive.name(), it->second.read(primitive)};
  }
  if (auto fused = fused_state(primitive)) {
    return {fused->op->name, *fused->attrs};
  }
  auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(&primitive));
  return {primitive.name(), {{"primitive", address}}};
}

} // namespace zmlx
