// zmlx/graph/capture.cpp: MLX's lazy arrays to a graph, and back.
#include "zmlx/graph/capture.h"

#include <algorithm>
#include <cmath>
#include <typeinfo>
#include <unordered_map>

#include "mlx/compile_impl.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx/utils.h"
#include "zmlx/graph/canonicalise.h"
#include "zmlx/graph/compiled.h"
#include "zmlx/graph/primitives.h"
#include "zmlx/runtime/error.h"
#include "zmlx/runtime/fused.h"

namespace zmlx {
namespace {

std::optional<double> scalar_of(const mx::array& a) {
  if (a.size() != 1 || a.has_primitive() || a.status() != mx::array::Status::available) {
    return {};
  }
  auto read = [&]<typename T>(T) -> std::optional<double> {
    auto value = static_cast<double>(*a.data<T>());
    // Past 2^53 different integers are the same double.
    return std::abs(value) <= 0x1p53 || !std::is_integral_v<T> ? std::optional(value)
                                                               : std::nullopt;
  };
  switch (a.dtype().val()) {
    case mx::Dtype::Val::bool_:
      return read(bool{});
    case mx::Dtype::Val::uint8:
      return read(uint8_t{});
    case mx::Dtype::Val::uint16:
      return read(uint16_t{});
    case mx::Dtype::Val::uint32:
      return read(uint32_t{});
    case mx::Dtype::Val::uint64:
      return read(uint64_t{});
    case mx::Dtype::Val::int8:
      return read(int8_t{});
    case mx::Dtype::Val::int16:
      return read(int16_t{});
    case mx::Dtype::Val::int32:
      return read(int32_t{});
    case mx::Dtype::Val::int64:
      return read(int64_t{});
    case mx::Dtype::Val::float16:
      return static_cast<double>(static_cast<float>(*a.data<mx::float16_t>()));
    case mx::Dtype::Val::bfloat16:
      return static_cast<double>(static_cast<float>(*a.data<mx::bfloat16_t>()));
    case mx::Dtype::Val::float32:
      return read(float{});
    default:
      return {};
  }
}

/// An evaluated array, or one that waits in a file: its value does not depend on the inputs.
bool is_leaf(const mx::array& a) {
  return !a.has_primitive() || a.status() != mx::array::Status::unscheduled ||
      (a.inputs().empty() && std::string_view(a.primitive().name()) == "Load");
}

/// The bytes of an evaluated array of 2 to 16 elements.
std::string table_of(const mx::array& a) {
  const bool ready = !a.has_primitive() && a.status() == mx::array::Status::available;
  if (!ready || a.size() < 2 || a.size() > 16 || !a.flags().row_contiguous) {
    return {};
  }
  return {a.data<char>(), a.nbytes()};
}

Node constant_node(const mx::array& a) {
  auto data = std::make_shared<Constant>();
  data->id = a.id();
  data->scalar = scalar_of(a);
  data->table = table_of(a);
  data->array = std::make_shared<mx::array>(a);
  Node node;
  node.kind = "constant";
  node.outputs.push_back(type_of(a));
  node.constant = std::move(data);
  return node;
}

class Capture {
 public:
  bool keep_arrays = false;
  std::vector<std::pair<Value, mx::array>> arrays;

  explicit Capture(const Arrays& inputs) {
    values_.reserve(16384);
    for (auto& a : inputs) {
      values_.insert_or_assign(a.id(), graph_.input(type_of(a)));
    }
  }

  Graph run(const Arrays& outputs) {
    for (auto& a : outputs) {
      visit(a);
      graph_.outputs.push_back(values_.at(a.id()));
    }
    return std::move(graph_);
  }

 private:
  struct Frame {
    const mx::array* array;
    size_t next = 0;
  };

  void visit(const mx::array& root) {
    std::vector<Frame> stack;
    auto enter = [&](const mx::array& a) {
      if (values_.contains(a.id())) {
        return;
      }
      if (is_leaf(a)) {
        values_.emplace(a.id(), constant(a));
      } else {
        stack.push_back({&a});
      }
    };
    enter(root);
    while (!stack.empty()) {
      auto& frame = stack.back();
      auto& in = frame.array->inputs();
      if (frame.next < in.size()) {
        enter(in[frame.next++]);
        continue;
      }
      if (!values_.contains(frame.array->id())) {
        add(*frame.array);
      }
      stack.pop_back();
    }
  }

  /// The steps of a Compiled node as nodes of their own. False when its name does not tell them.
  bool expand(const mx::array& a) {
    auto& primitive = a.primitive();
    if (!a.siblings().empty() || !std::string_view(primitive.name()).starts_with("Compiled") ||
        typeid(primitive) != typeid(mx::Compiled)) {
      return false;
    }
    auto& in = a.inputs();
    auto library = static_cast<const mx::Compiled&>(primitive).lib_name();
    auto steps = steps_of(library, static_cast<int>(in.size()));
    if (!steps || steps->back().kind == "Broadcast") {
      return false;
    }
    std::vector<Value> values;
    for (auto& input : in) {
      values.push_back(values_.at(input.id()));
    }
    for (auto& step : *steps) {
      // A broadcast is implied by the step that reads it.
      if (step.kind == "Broadcast") {
        values.push_back(values[static_cast<size_t>(step.inputs[0])]);
        continue;
      }
      Node node;
      node.kind = step.kind;
      mx::Shape shape;
      for (int i : step.inputs) {
        node.inputs.push_back(values[static_cast<size_t>(i)]);
        shape = mx::broadcast_shapes(shape, mlx_shape(graph_.type(node.inputs.back()).shape));
      }
      bool last = &step == &steps->back();
      node.outputs.push_back({step.dtype, Shape(shape.begin(), shape.end())});
      if (last) {
        node.outputs[0] = type_of(a);
      }
      values.push_back({graph_.add(std::move(node)), 0});
    }
    values_.emplace(a.id(), values.back());
    if (keep_arrays) {
      arrays.emplace_back(values.back(), a);
    }
    return true;
  }

  void add(const mx::array& a) {
    if (expand(a)) {
      return;
    }
    auto [kind, attrs] = describe(a.primitive());
    Node node;
    node.kind = std::move(kind);
    node.attrs = std::move(attrs);
    node.origin = a.primitive_ptr();
    node.inputs.reserve(a.inputs().size());
    for (auto& in : a.inputs()) {
      node.inputs.push_back(values_.at(in.id()));
    }
    if (a.siblings().empty()) {
      node.outputs.push_back(type_of(a));
      Value v{graph_.add(std::move(node)), 0};
      values_.emplace(a.id(), v);
      if (keep_arrays) {
        arrays.emplace_back(v, a);
      }
      return;
    }
    auto outputs = a.outputs();
    for (auto& out : outputs) {
      node.outputs.push_back(type_of(out));
    }
    int id = graph_.add(std::move(node));
    for (size_t i = 0; i < outputs.size(); ++i) {
      Value v{id, static_cast<int>(i)};
      values_.emplace(outputs[i].id(), v);
      if (keep_arrays) {
        arrays.emplace_back(v, outputs[i]);
      }
    }
  }

  Value constant(const mx::array& a) {
    Value v{graph_.add(constant_node(a)), 0};
    if (keep_arrays) {
      arrays.emplace_back(v, a);
    }
    return v;
  }

  Graph graph_;
  std::unordered_map<uintptr_t, Value> values_;
};

/// Thrown out of MLX's tracing once the graph is known: compile() would go on to fuse and cache it.
struct Traced {};

/// The parts of the graph that depend on no input, where they end: used by what does, or an output.
std::vector<Value> constant_results(const Graph& graph) {
  constexpr size_t limit = 1 << 20;
  std::vector<bool> fixed(static_cast<size_t>(graph.size()));
  std::vector<bool> listed(fixed.size());
  std::vector<Value> results;
  auto list = [&](Value v) {
    auto i = static_cast<size_t>(v.node);
    auto& node = graph[v.node];
    if (fixed[i] && !listed[i] && !node.constant && node.outputs[0].bytes() <= limit) {
      listed[i] = true;
      results.push_back(v);
    }
  };
  for (int id : graph.order()) {
    auto& node = graph[id];
    bool all = node.kind != "input" && node.outputs.size() == 1;
    for (auto v : node.inputs) {
      all = all && fixed[static_cast<size_t>(v.node)];
    }
    fixed[static_cast<size_t>(id)] = all;
    if (!all) {
      std::for_each(node.inputs.begin(), node.inputs.end(), list);
    }
  }
  std::for_each(graph.outputs.begin(), graph.outputs.end(), list);
  return results;
}

} // namespace

Arrays emit_node(const Node& node, const Arrays& inputs) {
  auto in = inputs;
  if (auto* op = find_op(node.kind)) {
    return apply(*op, in, node.attrs);
  }
  auto shape = mlx_shape(node.outputs[0].shape);
  // Views and broadcasts are what canonicalise() changes; everything else runs as it was.
  if (node.kind == "Reshape") {
    return {mx::reshape(in[0], shape)};
  }
  if (node.kind == "Broadcast") {
    return {mx::broadcast_to(in[0], shape)};
  }
  if (node.kind == "Transpose") {
    auto& axes = node.attrs.list("axes");
    return {mx::transpose(in[0], std::vector<int>(axes.begin(), axes.end()))};
  }
  if (!node.origin) {
    return {mx::broadcast_to(elementwise(node.kind, in, mlx_dtype(node.outputs[0].dtype)), shape)};
  }
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (auto& type : node.outputs) {
    shapes.push_back(mlx_shape(type.shape));
    dtypes.push_back(mlx_dtype(type.dtype));
  }
  auto primitive = std::static_pointer_cast<mx::Primitive>(node.origin);
  if (is_elementwise(node.kind)) {
    for (auto& a : in) {
      a = mx::broadcast_to(a, shape);
    }
  }
  return mx::array::make_arrays(std::move(shapes), dtypes, primitive, in);
}

Graph capture(const Arrays& inputs, const Arrays& outputs) {
  return Capture(inputs).run(outputs);
}

Captured capture_with_arrays(const Arrays& outputs) {
  Capture capture({});
  capture.keep_arrays = true;
  auto graph = capture.run(outputs);
  return {std::move(graph), std::move(capture.arrays)};
}

void fold_constants(Graph& graph) {
  auto results = constant_results(graph);
  if (results.empty()) {
    return;
  }
  Graph part = graph;
  part.inputs.clear();
  part.outputs = results;
  auto arrays = emit(part, {});
  mx::eval(arrays);
  std::vector<std::pair<Value, Value>> pairs;
  for (size_t i = 0; i < results.size(); ++i) {
    pairs.emplace_back(results[i], Value{graph.add(constant_node(arrays[i])), 0});
  }
  graph.replace(pairs);
  graph.prune();
}

Graph trace(const std::function<Arrays(const Arrays&)>& fn, const Arrays& examples) {
  Arrays inputs;
  Arrays outputs;
  auto body = [&](const Arrays& placeholders) -> Arrays {
    inputs = placeholders;
    outputs = fn(placeholders);
    throw Traced{};
  };
  // MLX's cache wants an id that nobody else uses while this runs: the address of a local is one.
  auto id = reinterpret_cast<uintptr_t>(&inputs);
  struct Forget {
    uintptr_t id;
    ~Forget() {
      mx::detail::compile_erase(mx::detail::compile_cache(), id);
    }
  } forget{id};
  try {
    mx::detail::compile(std::function<Arrays(const Arrays&)>(body), id, false, {})(examples);
  } catch (Traced&) {
  }
  return capture(inputs, outputs);
}

Arrays emit(const Graph& graph, const Arrays& inputs) {
  if (inputs.size() != graph.inputs.size()) {
    fail("emit", "expected ", graph.inputs.size(), " inputs but got ", inputs.size(), ".");
  }
  std::vector<Arrays> values(static_cast<size_t>(graph.size()));
  for (size_t i = 0; i < inputs.size(); ++i) {
    auto v = graph.inputs[i];
    if (!(type_of(inputs[i]) == graph.type(v))) {
      fail(
          "emit",
          "input ",
          i,
          " must be ",
          to_string(graph.type(v)),
          " but got ",
          to_string(type_of(inputs[i])),
          ".");
    }
    values[static_cast<size_t>(v.node)] = {inputs[i]};
  }
  for (int id : graph.order()) {
    auto& node = graph[id];
    auto& out = values[static_cast<size_t>(id)];
    if (node.constant) {
      out = {array_of(*node.constant)};
    }
    if (!out.empty()) {
      continue;
    }
    Arrays in;
    for (auto& v : node.inputs) {
      in.push_back(values[static_cast<size_t>(v.node)][static_cast<size_t>(v.output)]);
    }
    out = emit_node(node, in);
  }
  Arrays results;
  for (auto& v : graph.outputs) {
    results.push_back(values[static_cast<size_t>(v.node)][static_cast<size_t>(v.output)]);
  }
  return results;
}

const mx::array& array_of(const Constant& constant) {
  return *static_cast<const mx::array*>(constant.array.get());
}

Dtype dtype_of(mx::Dtype dtype) {
  switch (dtype.val()) {
    case mx::Dtype::Val::bool_:
      return Dtype::boolean;
    case mx::Dtype::Val::uint8:
      return Dtype::u8;
    case mx::Dtype::Val::uint16:
      return Dtype::u16;
    case mx::Dtype::Val::uint32:
      return Dtype::u32;
    case mx::Dtype::Val::uint64:
      return Dtype::u64;
    case mx::Dtype::Val::int8:
      return Dtype::i8;
    case mx::Dtype::Val::int16:
      return Dtype::i16;
    case mx::Dtype::Val::int32:
      return Dtype::i32;
    case mx::Dtype::Val::int64:
      return Dtype::i64;
    case mx::Dtype::Val::float16:
      return Dtype::f16;
    case mx::Dtype::Val::bfloat16:
      return Dtype::bf16;
    case mx::Dtype::Val::float32:
      return Dtype::f32;
    case mx::Dtype::Val::float64:
      fail("zmlx", "float64 arrays are not supported.");
    case mx::Dtype::Val::complex64:
      fail("zmlx", "complex64 arrays are not supported.");
  }
  fail("zmlx", "unknown dtype.");
}

mx::Dtype mlx_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::boolean:
      return mx::bool_;
    case Dtype::u8:
      return mx::uint8;
    case Dtype::u16:
      return mx::uint16;
    case Dtype::u32:
      return mx::uint32;
    case Dtype::u64:
      return mx::uint64;
    case Dtype::i8:
      return mx::int8;
    case Dtype::i16:
      return mx::int16;
    case Dtype::i32:
      return mx::int32;
    case Dtype::i64:
      return mx::int64;
    case Dtype::f16:
      return mx::float16;
    case Dtype::bf16:
      return mx::bfloat16;
    case Dtype::f32:
      return mx::float32;
  }
  fail("zmlx", "unknown dtype.");
}

Type type_of(const mx::array& array) {
  return {dtype_of(array.dtype()), Shape(array.shape().begin(), array.shape().end())};
}

mx::Shape mlx_shape(const Shape& shape) {
  mx::Shape out;
  for (int64_t d : shape) {
    out.push_back(static_cast<int>(d));
  }
  return out;
}

} // namespace zmlx
