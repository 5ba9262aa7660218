// zmlx/kernel/msl/tokens.h: MSL text as tokens that know where they stand and what brackets pair.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace zmlx::msl {

enum class TokenKind { word, number, quoted, symbol, directive };

struct Token {
  TokenKind kind;
  std::string_view text;
  std::string_view space; // what stands before it: blanks, line ends, comments
  size_t place; // of its first character
  size_t partner = 0; // the other bracket's index; its own where it has none
  int braces = 0; // how many are open before it
  int parentheses = 0;

  bool is(std::string_view other) const {
    return text == other && kind != TokenKind::quoted;
  }
};

struct Tokens {
  std::vector<Token> list;
  std::string_view tail; // blanks behind the last token
};

/// A text in which something is wrong: the place is of a character.
struct Mistake {
  size_t place;
  std::string what;
  bool unpaired = false; // it is about brackets
};

/// `>>` is two tokens, as it may close two template argument lists. Throws Mistake.
Tokens tokens_of(std::string_view text);

/// `line 3: what`, the line, and a caret below the character.
std::string
shown(std::string_view text, std::string_view part, size_t place, const std::string& what);

} // namespace zmlx::msl
