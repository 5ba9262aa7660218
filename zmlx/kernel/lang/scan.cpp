// zmlx/kernel/lang/scan.cpp: tables of names, and the scanner's loops.
#include "zmlx/kernel/lang/scan.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "zmlx/runtime/error.h"

namespace zmlx::lang {
namespace {

constexpr double pi = 3.14159265358979323846;

struct NamedConstant {
  std::string_view name;
  double value;
};
const NamedConstant named_constants[] = {
    {"inf", INFINITY},
    {"INFINITY", INFINITY},
    {"nan", NAN},
    {"NAN", NAN},
    {"pi", pi},
    {"M_PI", pi},
    {"M_PI_F", pi},
    {"FLT_MAX", std::numeric_limits<float>::max()},
    {"FLT_EPSILON", std::numeric_limits<float>::epsilon()},
};

struct NamedType {
  std::string_view name;
  Dtype dtype;
};
constexpr NamedType named_types[] = {
    {"bool", Dtype::boolean},  {"float", Dtype::f32},       {"float32", Dtype::f32},
    {"half", Dtype::f16},      {"float16", Dtype::f16},     {"bfloat", Dtype::bf16},
    {"bfloat16", Dtype::bf16}, {"bfloat16_t", Dtype::bf16}, {"int", Dtype::i32},
    {"int8_t", Dtype::i8},     {"int8", Dtype::i8},         {"int16_t", Dtype::i16},
    {"int16", Dtype::i16},     {"int32_t", Dtype::i32},     {"int32", Dtype::i32},
    {"int64_t", Dtype::i64},   {"int64", Dtype::i64},       {"long", Dtype::i64},
    {"uint", Dtype::u32},      {"uint8_t", Dtype::u8},      {"uint8", Dtype::u8},
    {"uint16_t", Dtype::u16},  {"uint16", Dtype::u16},      {"uint32_t", Dtype::u32},
    {"uint32", Dtype::u32},    {"uint64_t", Dtype::u64},    {"uint64", Dtype::u64},
};

template <typename Rows>
auto* row_named(const Rows& rows, std::string_view name) {
  auto* end = std::end(rows);
  auto* it = std::find_if(std::begin(rows), end, [&](auto& row) { return row.name == name; });
  return it == end ? nullptr : it;
}

} // namespace

std::optional<Dtype> find_type(std::string_view name) {
  auto* row = row_named(named_types, name);
  return row ? std::optional(row->dtype) : std::nullopt;
}

std::optional<double> named_constant(std::string_view name) {
  auto* row = row_named(named_constants, name);
  return row ? std::optional(row->value) : std::nullopt;
}

bool is_computing_type(std::string_view name) {
  return name == "T" || name == "O" || name == "auto";
}

void Scanner::error(const std::string& what, size_t at) const {
  // Of a text of many lines only the one in question is shown.
  size_t begin = at ? text_.rfind('\n', at - 1) + 1 : 0;
  size_t end = std::min(text_.find('\n', at), text_.size());
  auto line = text_.substr(begin, end - begin);
  fail(where_.c_str(), what, "\n  ", std::string(line), "\n  ", std::string(at - begin, ' '), "^");
}

void Scanner::skip() {
  while (at_ < text_.size()) {
    if (std::isspace(static_cast<unsigned char>(text_[at_]))) {
      ++at_;
    } else if (text_.substr(at_).starts_with("/*")) {
      at_ = std::min(text_.find("*/", at_), text_.size() - 2) + 2;
    } else {
      break;
    }
  }
}

bool Scanner::done() {
  skip();
  return at_ == text_.size();
}

bool Scanner::accept(std::string_view token) {
  skip();
  if (!text_.substr(at_).starts_with(token)) {
    return false;
  }
  at_ += token.size();
  return true;
}

void Scanner::expect(std::string_view token) {
  if (!accept(token)) {
    error("expected '" + std::string(token) + "' but got " + here() + ":", at_);
  }
}

std::string Scanner::here() {
  skip();
  return at_ < text_.size() ? "'" + std::string(1, text_[at_]) + "'" : "the end";
}

std::string_view Scanner::name() {
  skip();
  size_t begin = at_;
  auto letter = [&](size_t i) {
    return i < text_.size() &&
        (std::isalnum(static_cast<unsigned char>(text_[i])) || text_[i] == '_');
  };
  if (at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_]))) {
    return {};
  }
  while (letter(at_) || (text_.substr(at_).starts_with("::") && letter(at_ + 2))) {
    at_ += letter(at_) ? 1 : 2;
  }
  return text_.substr(begin, at_ - begin);
}

Expr Scanner::number() {
  skip();
  size_t begin = at_;
  if (text_.substr(at_).starts_with("0x")) {
    uint64_t value = 0;
    auto [end, code] =
        std::from_chars(text_.data() + at_ + 2, text_.data() + text_.size(), value, 16);
    at_ = static_cast<size_t>(end - text_.data());
    accept_suffix();
    return integer(static_cast<double>(value));
  }
  double value = 0;
  auto [end, code] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), value);
  if (end == text_.data() + at_) {
    error("expected a value but got " + here() + ":", begin);
  }
  at_ = static_cast<size_t>(end - text_.data());
  auto spelled = text_.substr(begin, at_ - begin);
  bool real = spelled.find_first_of(".eE") != std::string_view::npos;
  real = accept_suffix() || real;
  return real ? Expr(value) : integer(value);
}

bool Scanner::accept_suffix() {
  bool real = false;
  while (at_ < text_.size() && std::string_view("fFhHuUlL").find(text_[at_]) < 8) {
    real = real || std::string_view("fFhH").find(text_[at_]) < 4;
    ++at_;
  }
  return real;
}

} // namespace zmlx::lang
