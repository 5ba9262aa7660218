// zmlx/kernel/msl/tokens.cpp: the lexer, and which brackets pair.
#include "zmlx/kernel/msl/tokens.h"

#include <algorithm>
#include <cctype>

namespace zmlx::msl {
namespace {

// Longest first. No `>>`.
constexpr std::string_view symbols[] = {"<<=", ">>=", "->*", "...", "::", "->", "++", "--", "<<",
                                        "<=",  ">=",  "==",  "!=",  "&&", "||", "+=", "-=", "*=",
                                        "/=",  "%=",  "&=",  "|=",  "^=", "[[", "##"};

bool begins_word(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) || c == '_';
}
bool in_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_';
}
bool is_digit(char c) {
  return std::isdigit(static_cast<unsigned char>(c));
}

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  Tokens run() {
    Tokens out;
    for (;;) {
      size_t start = at_;
      skip_space();
      auto space = text_.substr(start, at_ - start);
      if (at_ == text_.size()) {
        out.tail = space;
        return out;
      }
      bool first = space.find('\n') != std::string_view::npos || out.list.empty();
      start = at_;
      auto kind = next(first);
      out.list.push_back({kind, text_.substr(start, at_ - start), space, start});
    }
  }

 private:
  char peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  void skip_space() {
    for (;;) {
      if (std::isspace(static_cast<unsigned char>(peek()))) {
        ++at_;
      } else if (peek() == '\\' && (peek(1) == '\n' || peek(1) == '\r')) {
        at_ += 2;
      } else if (peek() == '/' && peek(1) == '/') {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (peek() == '/' && peek(1) == '*') {
        auto end = text_.find("*/", at_ + 2);
        if (end == std::string_view::npos) {
          throw Mistake{at_, "this comment has no end"};
        }
        at_ = end + 2;
      } else {
        return;
      }
    }
  }
  TokenKind next(bool first_of_line) {
    char c = peek();
    if (c == '#' && first_of_line) {
      // To the end of the line that does not go on.
      do {
        at_ = std::min(text_.find('\n', at_ + 1), text_.size());
      } while (at_ < text_.size() && text_[at_ - 1] == '\\');
      return TokenKind::directive;
    }
    if (begins_word(c)) {
      while (in_word(peek())) {
        ++at_;
      }
      return TokenKind::word;
    }
    if (is_digit(c) || (c == '.' && is_digit(peek(1)))) {
      while (in_word(peek()) || peek() == '.' || (peek() == '\'' && in_word(peek(1))) ||
             ((peek() == '+' || peek() == '-') && exponent())) {
        ++at_;
      }
      return TokenKind::number;
    }
    if (c == '"' || c == '\'') {
      size_t start = at_++;
      while (peek() != c) {
        at_ += peek() == '\\' ? 2 : 1;
        if (at_ >= text_.size()) {
          throw Mistake{start, "this string has no end"};
        }
      }
      ++at_;
      return TokenKind::quoted;
    }
    for (auto symbol : symbols) {
      if (text_.substr(at_).starts_with(symbol)) {
        at_ += symbol.size();
        return TokenKind::symbol;
      }
    }
    ++at_;
    return TokenKind::symbol;
  }
  /// Whether the sign here belongs to a number: 1e-5, 0x1p-3.
  bool exponent() const {
    char before = text_[at_ - 1];
    size_t start = at_;
    while (start > 0 && (in_word(text_[start - 1]) || text_[start - 1] == '.')) {
      --start;
    }
    bool hex = text_.substr(start, 2) == "0x" || text_.substr(start, 2) == "0X";
    return hex ? before == 'p' || before == 'P' : before == 'e' || before == 'E';
  }

  std::string_view text_;
  size_t at_ = 0;
};

/// The `>` that ends the template arguments which `<` at `open` begins, else `open`.
size_t template_end(const std::vector<Token>& list, size_t open) {
  if (open == 0 || list[open - 1].kind != TokenKind::word) {
    return open;
  }
  int depth = 0;
  for (size_t i = open; i < list.size(); ++i) {
    auto& t = list[i];
    bool allowed = t.kind == TokenKind::word || t.kind == TokenKind::number || t.is("::") ||
        t.is(",") || t.is("*") || t.is("&") || t.is("<") || t.is(">") || t.is("+") || t.is("-") ||
        t.is("/");
    if (!allowed) {
      return open;
    }
    depth += t.is("<") ? 1 : t.is(">") ? -1 : 0;
    if (depth == 0) {
      bool last = i + 1 == list.size();
      auto& next = list[last ? i : i + 1];
      bool follows = last || next.kind == TokenKind::word || next.is("(") || next.is("{") ||
          next.is("::") || next.is(">") || next.is(",") || next.is("*") || next.is("&") ||
          next.is(";") || next.is(")");
      return follows ? i : open;
    }
  }
  return open;
}

void pair_brackets(std::vector<Token>& list) {
  std::vector<size_t> open;
  int braces = 0;
  int parentheses = 0;
  for (size_t i = 0; i < list.size(); ++i) {
    auto& t = list[i];
    t.partner = i;
    bool closes = t.is(")") || t.is("]") || t.is("}");
    if (closes) {
      std::string_view wanted = t.is(")") ? "(" : t.is("]") ? "[" : "{";
      // `[[` is opened by two.
      if (open.empty() ||
          (list[open.back()].text != wanted && !(list[open.back()].is("[[") && t.is("]")))) {
        throw Mistake{t.place, "this bracket closes nothing", true};
      }
      if (list[open.back()].is("[[")) {
        if (!(i + 1 < list.size() && list[i + 1].is("]"))) {
          throw Mistake{t.place, "`]]` was expected here", true};
        }
        list[i + 1].partner = i + 1;
        list[open.back()].partner = i + 1;
        open.pop_back();
        list[i].braces = list[i + 1].braces = braces;
        list[i].parentheses = list[i + 1].parentheses = parentheses;
        ++i;
        continue;
      }
      list[open.back()].partner = i;
      t.partner = open.back();
      open.pop_back();
      braces -= t.is("}");
      parentheses -= t.is(")");
    }
    t.braces = braces;
    t.parentheses = parentheses;
    if (t.is("(") || t.is("[") || t.is("[[") || t.is("{")) {
      open.push_back(i);
      braces += t.is("{");
      parentheses += t.is("(");
    }
  }
  if (!open.empty()) {
    throw Mistake{list[open.back()].place, "this bracket is not closed", true};
  }
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].is("<")) {
      auto end = template_end(list, i);
      if (end != i) {
        list[i].partner = end;
        list[end].partner = i;
      }
    }
  }
}

} // namespace

Tokens tokens_of(std::string_view text) {
  auto out = Lexer(text).run();
  pair_brackets(out.list);
  return out;
}

std::string
shown(std::string_view text, std::string_view part, size_t place, const std::string& what) {
  place = std::min(place, text.size());
  auto line = std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(place), '\n') + 1;
  size_t start = place == 0 ? 0 : text.rfind('\n', place - 1) + 1;
  size_t end = std::min(text.find('\n', place), text.size());
  std::string before(text.substr(start, place - start));
  std::replace_if(
      before.begin(), before.end(), [](char c) { return c != '\t'; }, ' ');
  return std::string(part) + ", line " + std::to_string(line) + ": " + what + "\n" +
      std::string(text.substr(start, end - start)) + "\n" + before + "^";
}

} // namespace zmlx::msl
