// zmlx/ops/attrs.h: the parameters of a node that are not arrays: numbers, names, lists.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace zmlx {

using Attr = std::variant<int64_t, double, std::string, std::vector<int64_t>>;

/// A small ordered map; booleans are the integers 0 and 1. Equal maps mean equal nodes.
class Attrs {
 public:
  Attrs() = default;
  Attrs(std::initializer_list<std::pair<const std::string, Attr>> items) : items_(items) {}

  /// The value, or std::out_of_range naming the missing attribute.
  int64_t integer(std::string_view name) const;
  double real(std::string_view name) const;
  const std::string& text(std::string_view name) const;
  const std::vector<int64_t>& list(std::string_view name) const;
  /// The value, or `otherwise` when absent.
  int64_t integer(std::string_view name, int64_t otherwise) const;
  double real(std::string_view name, double otherwise) const;

  bool has(std::string_view name) const;
  Attrs& set(std::string name, Attr value);
  bool operator==(const Attrs& other) const = default;
  auto begin() const {
    return items_.begin();
  }
  auto end() const {
    return items_.end();
  }

 private:
  const Attr& at(std::string_view name) const;

  std::map<std::string, Attr, std::less<>> items_;
};

/// "bits=4, group_size=64".
std::string to_string(const Attrs& attrs);

} // namespace zmlx
