// zmlx/runtime/map_reduce.cpp: the primitive behind MapReduce: along rows where the reduced axes
// are innermost in memory, else over columns; what it adds up does not depend on the threads.
#include "zmlx/runtime/map_reduce.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx/transforms_impl.h"
#include "zmlx/graph/capture.h"
#include "zmlx/kernel/lang/reduce.h"
#include "zmlx/runtime/error.h"
#include "zmlx/runtime/gather.h"
#include "zmlx/runtime/jit.h"
#include "zmlx/runtime/team.h"

namespace zmlx {

using Arrays = std::vector<mx::array>;

namespace {

constexpr int64_t block = 1024; // elements that are gathered at a time
constexpr int64_t chunk = 64 * block; // elements that one thread adds up
constexpr int64_t row_group = 64; // rows whose results are written together

struct Functions {
  std::shared_ptr<const jit::Library> library;
  void (*start)(void* acc, int64_t n) = nullptr;
  void (*rows)(const void* const* in, void* acc, int64_t n) = nullptr;
  void (*columns)(const void* const* in, void* acc, int64_t n) = nullptr;
  void (*merge)(void* acc, const void* parts, int64_t n) = nullptr;
  void (*finish)(const void* acc, void* out, int64_t n, int64_t count) = nullptr;
};

/// A kernel for given dtypes.
struct Specialised {
  lang::Program program;
  std::vector<Dtype> in;
  Dtype out;
  const lang::Reduction& reduction;
  std::once_flag once{};
  Functions functions{};

  lang::ReduceText text() const {
    return {program, in, out, reduction};
  }
  void compile() {
    std::call_once(once, [this] {
      auto made = lang::reduce_text(text());
      auto library = jit::compile(made.prelude + made.kernel);
      auto find = [&](auto& function, const char* name) {
        function = reinterpret_cast<std::decay_t<decltype(function)>>(library->symbol(name));
      };
      find(functions.start, "zmlx_start");
      find(functions.rows, "zmlx_rows");
      find(functions.columns, "zmlx_columns");
      find(functions.merge, "zmlx_merge");
      find(functions.finish, "zmlx_finish");
      functions.library = library;
    });
  }
};

} // namespace

struct MapReduce::State {
  State(ElementwiseSpec s, const lang::Reduction& r)
      : spec(std::move(s)), map(spec), reduction(r) {}

  Specialised& specialise(const std::vector<lang::Typed>& types);
  mx::array reduced(
      const mx::array& x,
      const std::vector<int>& axes,
      bool keepdims,
      mx::StreamOrDevice s) const;

  const ElementwiseSpec spec;
  const Elementwise map;
  const lang::Reduction& reduction;

 private:
  std::mutex mutex_;
  std::map<std::vector<std::pair<Dtype, bool>>, std::unique_ptr<Specialised>> specialised_;
};

namespace {

/// One thread's blocks of the inputs.
class Blocks {
 public:
  explicit Blocks(const std::vector<Strided>& in)
      : in_(in), memory_(in.size() * static_cast<size_t>(block)), from_(in.size()) {
    for (size_t k = 0; k < in.size(); ++k) {
      direct_ = direct_ && in[k].contiguous();
    }
  }
  /// Elements that may be had at once.
  int64_t most(int64_t wanted) const {
    return direct_ ? wanted : std::min(wanted, block);
  }
  const void* const* at(int64_t i, int64_t n) {
    for (size_t k = 0; k < in_.size(); ++k) {
      if (in_[k].contiguous()) {
        from_[k] = in_[k].at(i);
        continue;
      }
      auto* to = memory_.data() + k * static_cast<size_t>(block);
      // One value for all elements stays where the first block has put it.
      if (!in_[k].constant() || !filled_) {
        in_[k].gather(i, in_[k].constant() ? block : n, to);
      }
      from_[k] = to;
    }
    filled_ = true;
    return from_.data();
  }

 private:
  const std::vector<Strided>& in_;
  std::vector<uint64_t> memory_;
  std::vector<const void*> from_;
  bool direct_ = true;
  bool filled_ = false;
};

/// In the inputs' order, rows: kept axes, then reduced ones; columns: the other way round.
struct Task {
  Functions f;
  std::vector<Strided> in{};
  char* out = nullptr;
  int64_t out_bytes = 0;
  int64_t acc_bytes = 0;
  int64_t kept = 1;
  int64_t reduced = 1;
  bool columns = false;

  void operator()() const {
    Team& team = Team::instance();
    bool small = kept * reduced < 16 * block;
    auto go = [&](auto&& body) { small ? team.run_alone(body) : team.run(body); };
    int64_t parts = columns ? column_parts() : (reduced + chunk - 1) / chunk;
    if (parts <= 1) {
      go([&](Member& member) { columns ? whole_columns(member) : whole_rows(member); });
      return;
    }
    std::vector<uint64_t> memory(static_cast<size_t>(parts * kept));
    auto* acc = reinterpret_cast<char*>(memory.data());
    f.start(acc, parts * kept);
    go([&](Member& member) {
      columns ? split_columns(member, acc, parts) : split_rows(member, acc, parts);
      member.barrier();
      Range mine = member.split(kept, 16);
      for (int64_t p = 1; p < parts; ++p) {
        f.merge(
            acc + mine.begin * acc_bytes, acc + (p * kept + mine.begin) * acc_bytes, size(mine));
      }
      f.finish(acc + mine.begin * acc_bytes, out + mine.begin * out_bytes, size(mine), reduced);
    });
  }

 private:
  static int64_t size(Range range) {
    return range.end - range.begin;
  }

  void add_row(Blocks& blocks, Range range, void* acc) const {
    for (int64_t i = range.begin; i < range.end;) {
      int64_t n = std::min(blocks.most(chunk), range.end - i);
      f.rows(blocks.at(i, n), acc, n);
      i += n;
    }
  }
  void whole_rows(Member& member) const {
    Blocks blocks(in);
    uint64_t acc[row_group];
    Range mine = member.split(kept);
    for (int64_t row = mine.begin; row < mine.end; row += row_group) {
      int64_t n = std::min(row_group, mine.end - row);
      f.start(acc, n);
      for (int64_t r = 0; r < n; ++r) {
        int64_t begin = (row + r) * reduced;
        add_row(blocks, {begin, begin + reduced}, reinterpret_cast<char*>(acc) + r * acc_bytes);
      }
      f.finish(acc, out + row * out_bytes, n, reduced);
    }
  }
  void split_rows(Member& member, char* acc, int64_t parts) const {
    Blocks blocks(in);
    Range mine = member.split(kept * parts);
    for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
      int64_t row = unit / parts;
      int64_t part = unit % parts;
      int64_t begin = row * reduced;
      Range range{begin + part * chunk, begin + std::min(reduced, (part + 1) * chunk)};
      add_row(blocks, range, acc + (part * kept + row) * acc_bytes);
    }
  }

  /// Parts of the reduced axes: where there are few columns, threads share them.
  int64_t column_parts() const {
    return kept >= 16 * block ? 1 : std::clamp<int64_t>(kept * reduced / chunk, 1, 16);
  }
  void add_columns(Blocks& blocks, Range columns_of, Range rows_of, void* acc) const {
    for (int64_t r = rows_of.begin; r < rows_of.end; ++r) {
      f.columns(blocks.at(r * kept + columns_of.begin, size(columns_of)), acc, size(columns_of));
    }
  }
  void whole_columns(Member& member) const {
    Blocks blocks(in);
    std::vector<uint64_t> acc(static_cast<size_t>(block));
    Range mine = member.split(kept, 16);
    for (int64_t j = mine.begin; j < mine.end; j += block) {
      Range range{j, std::min(mine.end, j + block)};
      f.start(acc.data(), size(range));
      add_columns(blocks, range, {0, reduced}, acc.data());
      f.finish(acc.data(), out + j * out_bytes, size(range), reduced);
    }
  }
  void split_columns(Member& member, char* acc, int64_t parts) const {
    Blocks blocks(in);
    Range mine = member.split(parts);
    for (int64_t part = mine.begin; part < mine.end; ++part) {
      Range rows_of{part * reduced / parts, (part + 1) * reduced / parts};
      for (int64_t j = 0; j < kept; j += block) {
        Range range{j, std::min(kept, j + block)};
        add_columns(blocks, range, rows_of, acc + (part * kept + j) * acc_bytes);
      }
    }
  }
};

mx::Shape common_shape(const Arrays& inputs) {
  mx::Shape shape;
  for (auto& x : inputs) {
    shape = mx::broadcast_shapes(shape, x.shape());
  }
  return shape;
}

class MapReduced : public mx::Primitive {
 public:
  MapReduced(
      mx::Stream s,
      std::shared_ptr<MapReduce::State> state,
      std::vector<bool> weak,
      std::vector<int> axes,
      bool keepdims)
      : Primitive(s),
        state_(std::move(state)),
        weak_(std::move(weak)),
        axes_(std::move(axes)),
        keepdims_(keepdims) {}

  const char* name() const override {
    return state_->spec.name.c_str();
  }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto* same = dynamic_cast<const MapReduced*>(&other);
    return same && same->state_ == state_ && same->weak_ == weak_ && same->axes_ == axes_ &&
        same->keepdims_ == keepdims_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    auto shape = common_shape(inputs);
    mx::Shape out;
    for (size_t a = 0; a < shape.size(); ++a) {
      if (!is_reduced(static_cast<int>(a))) {
        out.push_back(shape[a]);
      } else if (keepdims_) {
        out.push_back(1);
      }
    }
    return {out};
  }
  std::vector<lang::Typed> types(const Arrays& inputs) const {
    std::vector<lang::Typed> out;
    for (size_t i = 0; i < inputs.size(); ++i) {
      out.push_back({type_of(inputs[i]).dtype, i < weak_.size() && weak_[i]});
    }
    return out;
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  void eval_gpu(const Arrays&, Arrays&) override {
    fail(name(), "there is no GPU kernel; use MapReduce, which falls back to MLX.");
  }

  Arrays vjp(
      const Arrays& primals,
      const Arrays& cotangents,
      const std::vector<int>& argnums,
      const Arrays&) override {
    return mx::vjp(of(primals, argnums), chosen(primals, argnums), cotangents).second;
  }
  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums)
      override {
    return mx::jvp(of(primals, argnums), chosen(primals, argnums), tangents).second;
  }
  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes)
      override {
    auto [in, out] = mx::detail::vmap_trace([&](auto& x) { return plain(x); }, inputs, axes);
    return {mx::detail::vmap_replace(inputs, in, out, axes, {0}), {0}};
  }

  /// The kernel and then MLX's reduction: what is differentiated.
  Arrays plain(const Arrays& inputs) {
    return {state_->reduced(state_->map(inputs, weak_, stream())[0], axes_, keepdims_, stream())};
  }

 private:
  bool is_reduced(int axis) const {
    return std::find(axes_.begin(), axes_.end(), axis) != axes_.end();
  }
  static Arrays chosen(const Arrays& primals, const std::vector<int>& argnums) {
    Arrays out;
    for (int i : argnums) {
      out.push_back(primals[static_cast<size_t>(i)]);
    }
    return out;
  }
  std::function<Arrays(const Arrays&)> of(const Arrays& primals, const std::vector<int>& argnums) {
    return [this, &primals, &argnums](const Arrays& some) {
      Arrays all = primals;
      for (size_t i = 0; i < argnums.size(); ++i) {
        all[static_cast<size_t>(argnums[i])] = some[i];
      }
      return plain(all);
    };
  }

  std::shared_ptr<MapReduce::State> state_;
  std::vector<bool> weak_;
  std::vector<int> axes_; // from 0, sorted
  bool keepdims_;
};

void MapReduced::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  auto& kernel = state_->specialise(types(inputs));
  kernel.compile();
  auto shape = common_shape(inputs);
  auto rank = static_cast<int>(shape.size());
  // The axis along which an input of the full size runs evenly decides the order.
  int innermost = -1;
  for (auto& x : inputs) {
    for (int a = 0; a < static_cast<int>(x.ndim()) && x.size() > 1 && innermost < 0; ++a) {
      auto stride = x.strides()[static_cast<size_t>(a)];
      if (x.shape(a) > 1 && (stride == 1 || stride == -1)) {
        innermost = a + rank - static_cast<int>(x.ndim());
      }
    }
  }
  Task task{kernel.functions};
  task.columns = innermost >= 0 && !is_reduced(innermost);
  std::vector<int> order;
  for (bool reduced : {task.columns, !task.columns}) {
    for (int a = 0; a < rank; ++a) {
      if (is_reduced(a) == reduced) {
        order.push_back(a);
      }
    }
  }
  Shape as;
  for (int a : order) {
    int64_t extent = shape[static_cast<size_t>(a)];
    as.push_back(extent);
    (is_reduced(a) ? task.reduced : task.kept) *= extent;
  }
  auto& encoder = mx::cpu::get_command_encoder(stream());
  for (auto& x : inputs) {
    encoder.set_input_array(x);
    Shape own;
    std::vector<int64_t> strides;
    for (int a : order) {
      int axis = a - (rank - static_cast<int>(x.ndim()));
      own.push_back(axis < 0 ? 1 : x.shape(axis));
      strides.push_back(axis < 0 ? 0 : x.strides()[static_cast<size_t>(axis)]);
    }
    task.in.emplace_back(x.data<char>(), x.itemsize(), own, strides, as);
  }
  auto& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  encoder.set_output_array(out);
  task.out = out.data<char>();
  task.out_bytes = static_cast<int64_t>(out.itemsize());
  task.acc_bytes = static_cast<int64_t>(lang::accumulator_bytes(kernel.text()));
  if (out.size()) {
    encoder.dispatch(std::move(task));
  }
}

} // namespace

mx::array MapReduce::State::reduced(
    const mx::array& x,
    const std::vector<int>& axes,
    bool keepdims,
    mx::StreamOrDevice s) const {
  using Call = mx::array (*)(const mx::array&, const std::vector<int>&, bool, mx::StreamOrDevice);
  static const std::map<std::string, Call> calls = {
      {"sum", mx::sum}, {"mean", mx::mean}, {"prod", mx::prod}, {"max", mx::max}, {"min", mx::min}};
  return calls.at(reduction.name)(x, axes, keepdims, s);
}

Specialised& MapReduce::State::specialise(const std::vector<lang::Typed>& types) {
  std::vector<std::pair<Dtype, bool>> key;
  for (auto& type : types) {
    key.emplace_back(type.dtype, type.weak);
  }
  std::lock_guard lock(mutex_);
  auto& made = specialised_[key];
  if (!made) {
    auto program = lang::lower(spec.outputs, spec.inputs, types);
    auto mapped = program.steps[static_cast<size_t>(program.results[0])].type.dtype;
    std::vector<Dtype> in;
    for (auto& type : types) {
      in.push_back(type.dtype);
    }
    // MLX says what dtype a reduction has.
    auto like = reduced(mx::zeros({2}, mlx_dtype(mapped)), {0}, false, mx::Device::cpu);
    made.reset(new Specialised{std::move(program), in, dtype_of(like.dtype()), reduction});
  }
  return *made;
}

MapReduce::MapReduce(ElementwiseSpec map, const std::string& op)
    : state_(std::make_shared<State>(std::move(map), lang::reduction_named(op))) {}

mx::array MapReduce::operator()(
    const Arrays& inputs,
    const std::optional<std::vector<int>>& axes,
    bool keepdims,
    const std::vector<bool>& weak,
    mx::StreamOrDevice s) const {
  auto& name = state_->spec.name;
  auto shape = state_->map(inputs, weak, s)[0].shape(); // checks the inputs
  auto rank = static_cast<int>(shape.size());
  std::vector<int> over;
  int64_t count = 1;
  for (int a = 0; a < rank && !axes; ++a) {
    over.push_back(a);
  }
  for (int axis : axes.value_or(std::vector<int>{})) {
    if (axis < -rank || axis >= rank) {
      fail(
          name.c_str(),
          "axis must be from ",
          -rank,
          " to ",
          rank - 1,
          " for shapes that broadcast to ",
          rank,
          rank == 1 ? " axis but got " : " axes but got ",
          axis,
          ".");
    }
    over.push_back(axis < 0 ? axis + rank : axis);
  }
  std::sort(over.begin(), over.end());
  if (std::adjacent_find(over.begin(), over.end()) != over.end()) {
    fail(name.c_str(), "axes must differ but one is there twice.");
  }
  for (int a : over) {
    count *= shape[static_cast<size_t>(a)];
  }
  if (count == 0 && !state_->reduction.empty) {
    fail(name.c_str(), state_->reduction.name, " takes at least 1 element but got 0.");
  }
  auto stream = mx::to_stream(s);
  auto primitive = std::make_shared<MapReduced>(stream, state_, weak, over, keepdims);
  if (stream.device != mx::Device::cpu || !jit::available()) {
    return primitive->plain(inputs)[0];
  }
  auto& kernel = state_->specialise(primitive->types(inputs));
  return mx::array(primitive->output_shapes(inputs)[0], mlx_dtype(kernel.out), primitive, inputs);
}

std::string MapReduce::source(const std::vector<Dtype>& dtypes) const {
  std::vector<lang::Typed> types;
  for (auto dtype : dtypes) {
    types.push_back({dtype, false});
  }
  auto made = lang::reduce_text(state_->specialise(types).text());
  return made.prelude + made.kernel;
}

} // namespace zmlx
