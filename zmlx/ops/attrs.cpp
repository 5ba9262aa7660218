// zmlx/ops/attrs.cpp: look-up and printing of attributes.
#include "zmlx/ops/attrs.h"

#include <sstream>
#include <stdexcept>

namespace zmlx {

const Attr& Attrs::at(std::string_view name) const {
  auto it = items_.find(name);
  if (it == items_.end()) {
    throw std::out_of_range(
        "[zmlx] no attribute '" + std::string(name) + "' in {" + to_string(*this) + "}.");
  }
  return it->second;
}

int64_t Attrs::integer(std::string_view name) const {
  return std::get<int64_t>(at(name));
}

double Attrs::real(std::string_view name) const {
  const Attr& value = at(name);
  auto* whole = std::get_if<int64_t>(&value);
  return whole ? static_cast<double>(*whole) : std::get<double>(value);
}

const std::string& Attrs::text(std::string_view name) const {
  return std::get<std::string>(at(name));
}

const std::vector<int64_t>& Attrs::list(std::string_view name) const {
  return std::get<std::vector<int64_t>>(at(name));
}

int64_t Attrs::integer(std::string_view name, int64_t otherwise) const {
  return has(name) ? integer(name) : otherwise;
}

double Attrs::real(std::string_view name, double otherwise) const {
  return has(name) ? real(name) : otherwise;
}

bool Attrs::has(std::string_view name) const {
  return items_.find(name) != items_.end();
}

Attrs& Attrs::set(std::string name, Attr value) {
  items_.insert_or_assign(std::move(name), std::move(value));
  return *this;
}

std::string to_string(const Attrs& attrs) {
  std::ostringstream out;
  const char* separator = "";
  for (auto& [name, value] : attrs) {
    out << separator << name << '=';
    if (auto* items = std::get_if<std::vector<int64_t>>(&value)) {
      out << '[';
      for (size_t i = 0; i < items->size(); ++i) {
        out << (i ? " " : "") << (*items)[i];
      }
      out << ']';
    } else if (auto* word = std::get_if<std::string>(&value)) {
      out << *word;
    } else if (auto* whole = std::get_if<int64_t>(&value)) {
      out << *whole;
    } else {
      out << std::get<double>(value);
    }
    separator = ", ";
  }
  return out.str();
}

} // namespace zmlx
