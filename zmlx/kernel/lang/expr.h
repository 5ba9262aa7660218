// zmlx/kernel/lang/expr.h: expressions as trees of shared nodes: what kernels are written in, by
// C++ operators or from text. Untyped until the inputs' dtypes are known (lower.h).
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "zmlx/runtime/tensor.h"

namespace zmlx::lang {

struct Loop;
struct Node;
struct Function;
struct Reduction;

/// A node of an expression. Copies share it; a node used twice is computed once.
class Expr {
 public:
  /// Constants adopt the dtype of what they meet, as Python's numbers do in MLX.
  Expr(double value);
  Expr(int value);
  Expr(bool value);
  explicit Expr(std::shared_ptr<const Node> node) : node_(std::move(node)) {}

  const Node& operator*() const {
    return *node_;
  }
  const Node* operator->() const {
    return node_.get();
  }
  const Node* get() const {
    return node_.get();
  }

 private:
  std::shared_ptr<const Node> node_;
};

enum class Kind : uint8_t { boolean, integer, real, input, call, cast, reduce, fold, row_size };

struct Node {
  Kind kind;
  double value = 0; // of a constant
  std::string name{}; // of an input
  const Function* function = nullptr; // of a call
  const Reduction* reduction = nullptr; // of a reduce
  std::shared_ptr<const Loop> loop{}; // of a fold
  Dtype dtype = Dtype::f32; // of a cast
  std::vector<Expr> args{};
};

/// What a fold does with each element of a row, in order: the first name is the accumulator, the
/// others are the fold's arguments behind the first, which is where it starts.
struct Loop {
  Expr update;
  std::vector<std::string> names;
};

/// The accumulator after a row's elements, one after the other. It has no gradient.
Expr fold(Loop loop, std::vector<Expr> args);
/// An input by name.
Expr input(std::string name);
/// A constant integer.
Expr integer(double value);
/// A call of a function of the tables or of the library in functions.h; throws
/// std::invalid_argument for an unknown name or a wrong number of arguments.
Expr call(std::string_view name, std::vector<Expr> args);
/// The value converted to a dtype; float16 and bfloat16 round.
Expr cast(Expr value, Dtype dtype);
/// The number of elements of a row.
Expr row_size();
/// Whether it reduces rows.
bool has_rows(const std::vector<Expr>& roots);
/// The expression with inputs replaced: names[i] becomes values[i].
Expr substitute(
    const Expr& expr,
    const std::vector<std::string>& names,
    const std::vector<Expr>& values);
/// Names of the inputs in order of first use.
std::vector<std::string> inputs_of(const std::vector<Expr>& roots);
/// Every node once, arguments before their users.
std::vector<const Node*> topological(const std::vector<Expr>& roots);
bool is_constant(const Expr& expr);
bool is_constant(const Expr& expr, double value);

Expr operator-(Expr a);
Expr operator+(Expr a, Expr b);
Expr operator-(Expr a, Expr b);
Expr operator*(Expr a, Expr b);
Expr operator/(Expr a, Expr b);
Expr operator<(Expr a, Expr b);
Expr operator<=(Expr a, Expr b);
Expr operator>(Expr a, Expr b);
Expr operator>=(Expr a, Expr b);

Expr abs(Expr x);
Expr exp(Expr x);
Expr log(Expr x);
Expr sqrt(Expr x);
Expr rsqrt(Expr x);
Expr tanh(Expr x);
Expr sigmoid(Expr x);
Expr min(Expr a, Expr b);
Expr max(Expr a, Expr b);
Expr pow(Expr a, Expr b);
Expr select(Expr condition, Expr yes, Expr no);

/// One value for each row, the elements along the last axis.
Expr row_sum(Expr x);
Expr row_mean(Expr x);
Expr row_prod(Expr x);
Expr row_max(Expr x);
Expr row_min(Expr x);

/// An output's name and value: `out[i] = ...`.
struct Assignment {
  std::string name;
  Expr value;
};

/// Where an elementwise kernel is: every tensor is read and written at the same place, after
/// broadcasting.
struct Index {};

/// One element of a tensor: an input when read, an output when assigned to.
class Element {
 public:
  explicit Element(std::string name) : name_(std::move(name)) {}
  operator Expr() const {
    return input(name_);
  }
  Assignment operator=(const Expr& value) const {
    return {name_, value};
  }

 private:
  std::string name_;
};

class Array {
 public:
  explicit Array(std::string name) : name_(std::move(name)) {}
  Element operator[](Index) const {
    return Element(name_);
  }

 private:
  std::string name_;
};

} // namespace zmlx::lang
