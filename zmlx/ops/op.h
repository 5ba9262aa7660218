// zmlx/ops/op.h: what an op is: its reference in MLX, its kernels, its cases. One file an op; the
// registry finds them.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "zmlx/kernel/cuda/launch.h"
#include "zmlx/ops/attrs.h"
#include "zmlx/runtime/team.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx {

namespace mx = mlx::core;
using Arrays = std::vector<mx::array>;

/// One execution of a kernel. Tensors are row-contiguous; nothing may be allocated.
struct Call {
  std::span<const Tensor> in;
  std::span<const Tensor> out;
  std::byte* scratch = nullptr; // Op::cpu's scratch bytes, 64-byte aligned, shared by the members
};

/// A kernel made ready for given types and attributes: every member of the team calls `run` with
/// its own Member. It may use barriers; on return a member's own part is done, and the executor
/// puts a barrier after it.
struct CpuKernel {
  std::function<void(const Call&, Member&)> run;
  size_t scratch = 0; // bytes of shared scratch memory
};

/// One example of an op, from which its tests and benchmarks are made.
struct Case {
  std::string name;
  /// Input arrays with floating-point activations of this dtype.
  std::function<Arrays(mx::Dtype)> inputs;
  Attrs attrs;
};

using Types = std::vector<Type>;

/// An attribute that a function of the op takes, for its Python signature.
struct Parameter {
  std::string name;
  std::string doc;
  std::optional<Attr> otherwise; // when it is left out; none: it must be given
};

/// What an op's own gradient is made of.
struct Gradient {
  const Arrays& inputs;
  const Arrays& outputs;
  const Arrays& cotangents; // one an output
  const Attrs& attrs;
  /// Lazy outputs of the op of that name, on the same stream.
  std::function<Arrays(std::string_view op, const Arrays& inputs, const Attrs& attrs)> apply;
};

struct Op {
  std::string name;
  std::vector<std::string> args; // names of the inputs, in order; "*rest" for a variable number
  std::string doc; // one paragraph: shapes, dtypes, formula and its source
  /// Output types from input types; throws std::invalid_argument in words for inputs that do not
  /// fit.
  std::function<Types(const Types&, const Attrs&)> types;
  /// The op in plain MLX: its oracle, its baseline, its default gradient, and what runs where there
  /// is no kernel.
  std::function<Arrays(const Arrays&, const Attrs&)> reference;
  /// The inputs' cotangents, one an input (any array for one that is not floating), where other
  /// ops give them better than the reference's gradient.
  std::function<Arrays(const Gradient&)> gradient;
  /// The CPU kernel for these input types; an empty `run` when it has none for them.
  std::function<CpuKernel(const Types& in, const Types& out, const Attrs&)> cpu;
  /// The CUDA kernel for these types on that device; empty when it has none for them. A dimension
  /// that varies from run to run (a KV buffer's capacity) must be passed as in_dim() or out_dim().
  std::function<cuda::Kernel(const Types& in, const Types& out, const Attrs&, const cuda::Device&)>
      cuda;
  /// Bytes that one run reads and writes, where that is not all of the inputs and outputs (experts
  /// not chosen).
  std::function<size_t(const Types& in, const Types& out, const Attrs&)> traffic;
  /// Outputs that share the memory of an input: {output, input}, negative inputs counting from the
  /// last. The kernel finds the input's contents there already.
  std::vector<std::pair<int, int>> in_place;
  std::vector<Case> cases;
  /// Whether it multiplies by weights and takes the attribute activations (see product_kind()).
  bool rounds_activations = false;
  /// Whether users call it by name: a function zmlx.ops.<name> in Python, with these parameters.
  bool is_function = false;
  std::vector<Parameter> parameters;
};

/// The position, among `count` inputs, of an input that Op::in_place names.
inline size_t in_place_input(int input, size_t count) {
  return input < 0 ? count - static_cast<size_t>(-input) : static_cast<size_t>(input);
}

/// All ops, sorted by name.
const std::vector<const Op*>& all_ops();
/// The op of that name, or nullptr.
const Op* find_op(std::string_view name);

/// Builds and registers an op; see ZMLX_OP.
class OpBuilder {
 public:
  explicit OpBuilder(std::string name);
  OpBuilder& args(std::vector<std::string> names);
  OpBuilder& doc(std::string text);
  OpBuilder& types(decltype(Op::types) fn);
  OpBuilder& reference(decltype(Op::reference) fn);
  OpBuilder& gradient(decltype(Op::gradient) fn);
  OpBuilder& cpu(decltype(Op::cpu) fn);
  OpBuilder& cuda(decltype(Op::cuda) fn);
  OpBuilder& traffic(decltype(Op::traffic) fn);
  OpBuilder& in_place(int output, int input);
  OpBuilder& cases(std::vector<Case> list);
  OpBuilder& rounds_activations();
  OpBuilder& function(std::vector<Parameter> parameters = {});

 private:
  Op& op_;
};

} // namespace zmlx

/// Registers the op `name` from its own file: ZMLX_OP(swiglu).args({...}).reference(...)...;
#define ZMLX_OP(name) static const ::zmlx::OpBuilder registered_##name = ::zmlx::OpBuilder(#name)
