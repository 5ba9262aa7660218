// zmlx/kernel/msl/explain.cpp: a compiler's complaints as mistakes in the author's own lines.
#include <regex>
#include <sstream>

#include "zmlx/kernel/msl/program.h"
#include "zmlx/kernel/msl/tokens.h"

namespace zmlx::msl {
namespace {

constexpr size_t most_mistakes = 3;

size_t start_of_line(const std::string& text, int line) {
  size_t at = 0;
  for (; line > 1 && at < text.size(); --line) {
    at = std::min(text.find('\n', at), text.size() - 1) + 1;
  }
  return at;
}

/// The first word that the message quotes, where the line has it; else the line's first character.
size_t place_of(const std::string& text, int line, const std::string& message) {
  size_t start = start_of_line(text, line);
  size_t end = std::min(text.find('\n', start), text.size());
  static const std::regex quoted("['\"]([A-Za-z_][A-Za-z_0-9]*)");
  for (std::sregex_iterator it(message.begin(), message.end(), quoted), last; it != last; ++it) {
    size_t at = text.find((*it)[1].str(), start);
    if (at < end) {
      return at;
    }
  }
  size_t first = text.find_first_not_of(" \t", start);
  return first < end ? first : start;
}

/// Without the names of ours that stand before the author's, and in plain quotes.
std::string plain(std::string message) {
  for (const char* quote : {"‘", "’"}) {
    for (size_t at; (at = message.find(quote)) != std::string::npos;) {
      message.replace(at, std::char_traits<char>::length(quote), "'");
    }
  }
  for (const char* prefix :
       {"{anonymous}::", "(anonymous namespace)::", "zmlx_user::", "metal::"}) {
    for (size_t at; (at = message.find(prefix)) != std::string::npos;) {
      message.erase(at, std::char_traits<char>::length(prefix));
    }
  }
  return message;
}

} // namespace

std::string explained(const Source& source, const std::string& log) {
  static const std::regex place("zmlx_(source|header)[:(]([0-9]+)");
  std::istringstream lines(log);
  std::string out;
  std::smatch known; // the last place in the author's text
  std::string holder;
  size_t found = 0;
  for (std::string line; std::getline(lines, line) && found < most_mistakes;) {
    std::smatch here;
    if (std::regex_search(line, here, place)) {
      holder = line;
      std::regex_search(holder, known, place);
    }
    auto at = line.find("error:");
    if (at == std::string::npos || known.empty()) {
      continue;
    }
    bool in_body = known[1] == "source";
    auto& text = in_body ? source.body : source.header;
    auto message = plain(line.substr(at + 7));
    int number = std::stoi(known[2]);
    out += (out.empty() ? "" : "\n") +
        shown(text, in_body ? "source" : "header", place_of(text, number, message), message);
    known = {};
    ++found;
  }
  return out;
}

} // namespace zmlx::msl
