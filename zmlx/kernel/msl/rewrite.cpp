// zmlx/kernel/msl/rewrite.cpp: address spaces, literals, threadgroup variables, swizzles, and two
// operators that C++ has no overload for.
#include "zmlx/kernel/msl/rewrite.h"

#include <algorithm>
#include <vector>

#include "zmlx/kernel/msl/tokens.h"

namespace zmlx::msl {
namespace {

bool is_one_of(const Token& t, std::initializer_list<std::string_view> texts) {
  return t.kind != TokenKind::quoted &&
      std::find(texts.begin(), texts.end(), t.text) != texts.end();
}
bool is_assignment(const Token& t) {
  return is_one_of(t, {"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>="});
}
bool is_swizzle(std::string_view word) {
  return word.size() > 1 && word.size() < 5 &&
      (word.find_first_not_of("xyzw") == std::string_view::npos ||
       word.find_first_not_of("rgba") == std::string_view::npos);
}

/// `0.5` is a float, `0.5h` a half, `0.5bf` a bfloat.
std::string literal(std::string_view text) {
  bool hex = text.starts_with("0x") || text.starts_with("0X");
  bool real = text.find('.') != std::string_view::npos ||
      text.find_first_of(hex ? "pP" : "eE") != std::string_view::npos;
  if (hex && !real) {
    return std::string(text);
  }
  auto number = [&](size_t suffix) {
    std::string digits(text.substr(0, text.size() - suffix));
    bool whole = digits.find_first_of(".eEpP") == std::string::npos;
    return digits + (whole ? ".0f" : "f");
  };
  if (text.ends_with("bf") || text.ends_with("BF")) {
    return "bfloat(" + number(2) + ")";
  }
  if (text.ends_with('h') || text.ends_with('H')) {
    return "half(" + number(1) + ")";
  }
  if (text.ends_with('f') || text.ends_with('F')) {
    return number(1);
  }
  return real ? std::string(text) + "f" : std::string(text);
}

/// Text to put around tokens [begin, end].
struct Wrap {
  size_t begin, end;
  std::string open, close;
};

class Rewriter {
 public:
  Rewriter(std::string_view text, bool in_function, bool small, Needs& needs)
      : tokens_(tokens_of(text)),
        list_(tokens_.list),
        in_function_(in_function),
        small_(small),
        needs_(needs) {
    for (auto& t : list_) {
      texts_.emplace_back(t.text);
    }
  }

  std::string run() {
    for (size_t i = 0; i < list_.size(); ++i) {
      if (is_swizzle(list_[i].text) && declared(i)) {
        needs_.members.emplace(list_[i].text);
      }
    }
    for (size_t i = 0; i < list_.size(); ++i) {
      auto& t = list_[i];
      if (t.kind == TokenKind::directive) {
        directive(i);
      } else if (t.kind == TokenKind::number) {
        texts_[i] = literal(t.text);
      } else if (t.kind == TokenKind::word) {
        word(i);
      } else if (t.is("[[")) {
        for (size_t k = i; k <= t.partner; ++k) {
          texts_[k].clear();
        }
        i = t.partner;
      } else if (
          t.is("(") && i + 4 < list_.size() && list_[i + 1].is("*") &&
          list_[i + 2].kind == TokenKind::word && list_[i + 3].is(")") && list_[i + 4].is("(")) {
        throw Mistake{t.place, "function pointers are not supported"};
      } else if (t.is("/") || t.is("%") || t.is("/=") || t.is("%=")) {
        division(i);
      } else if (t.is("?") && small_ && runs(i)) {
        choice(i);
      }
    }
    return joined();
  }

 private:
  const Token* before(size_t i) const {
    return i > 0 ? &list_[i - 1] : nullptr;
  }
  const Token* after(size_t i) const {
    return i + 1 < list_.size() ? &list_[i + 1] : nullptr;
  }

  void word(size_t i) {
    auto& t = list_[i];
    auto* prior = before(i);
    bool member = prior && (prior->is(".") || prior->is("->"));
    if (member) {
      if (is_swizzle(t.text) && !needs_.members.contains(t.text) &&
          !(after(i) && after(i)->is("("))) {
        swizzle(i);
      }
      return;
    }
    if (auto* what = why_not(t.text)) {
      throw Mistake{t.place, what};
    }
    if (t.text.starts_with("simd_") || t.text.starts_with("quad_") ||
        is_one_of(t, {"threadgroup_barrier", "simdgroup_barrier"})) {
      needs_.together = true;
    }
    if (is_one_of(t, {"device", "constant", "thread", "kernel"})) {
      texts_[i].clear();
    } else if (t.text == "threadgroup") {
      threadgroup(i);
    } else if (t.text == "char" && !(prior && is_one_of(*prior, {"unsigned", "signed"}))) {
      texts_[i] = "zmlx_char";
    }
  }

  /// Whether a name stands where a variable or a member gets its name.
  bool declared(size_t i) const {
    return i > 0 && list_[i - 1].kind == TokenKind::word && after(i) &&
        is_one_of(*after(i), {";", ",", "[", "="});
  }

  void swizzle(size_t i) {
    std::string name(list_[i].text);
    for (char& c : name) {
      constexpr std::string_view from = "rgba";
      auto at = from.find(c);
      c = at == std::string_view::npos ? c : "xyzw"[at];
    }
    needs_.swizzles.insert(name);
    bool set = after(i) && is_assignment(*after(i));
    texts_[i] = (set ? "zmlx_set_" : "zmlx_") + name + "()";
  }

  /// A variable that the group shares, or part of a pointer's type.
  void threadgroup(size_t i) {
    texts_[i].clear();
    auto& t = list_[i];
    if (t.parentheses > 0 || (t.braces == 0 && !in_function_)) {
      return;
    }
    for (size_t k = i + 1; k < list_.size() && !is_one_of(list_[k], {";", "=", "[", "{", "("});
         ++k) {
      if (list_[k].is("*") || list_[k].is("&")) {
        return;
      }
    }
    size_t first = i;
    while (first > 0 && is_one_of(list_[first - 1], {"const", "volatile"})) {
      --first;
    }
    if (first > 0 && list_[first - 1].kind != TokenKind::directive &&
        !is_one_of(list_[first - 1], {";", "{", "}", ":", ")"})) {
      throw Mistake{t.place, "`threadgroup` must come first in a variable's declaration"};
    }
    texts_[i] = "zmlx_threadgroup";
  }

  void directive(size_t i) {
    auto& t = list_[i];
    auto text = t.text;
    auto name_at = text.find_first_not_of(" \t", 1);
    if (name_at == std::string_view::npos) {
      return;
    }
    auto rest = text.substr(name_at);
    if (rest.starts_with("include")) {
      auto file = rest.substr(rest.find_first_of("<\"", 0) + 1);
      if (!file.starts_with("metal_") && !file.starts_with("simd/")) {
        throw Mistake{t.place, "only Metal's own headers can be included"};
      }
      texts_[i].clear();
    } else if (rest.starts_with("define")) {
      // The name, and the parameters that stick to it, are not rewritten.
      size_t start = text.find_first_not_of(" \t", name_at + 6);
      if (start == std::string_view::npos) {
        return;
      }
      size_t end = std::min(text.find_first_of(" \t\n(", start), text.size());
      if (end < text.size() && text[end] == '(') {
        end = std::min(text.find(')', end), text.size() - 1) + 1;
      }
      auto body = text.substr(end);
      // Half a statement cannot be read: it stays as it is, but for its literals.
      try {
        texts_[i] = std::string(text.substr(0, end)) + rewritten(body, true, small_, needs_);
      } catch (Mistake& mistake) {
        if (!mistake.unpaired) {
          throw Mistake{t.place + end + mistake.place, mistake.what};
        }
      }
    }
  }

  /// Whether a token stands inside a function, not among a type's or a namespace's members.
  bool runs(size_t i) const {
    std::vector<bool> open = {in_function_};
    for (size_t k = 0; k < i; ++k) {
      if (list_[k].is("{")) {
        open.push_back(!holds_members(k));
      } else if (list_[k].is("}")) {
        open.pop_back();
      }
    }
    return open.back();
  }
  bool holds_members(size_t brace) const {
    for (size_t k = brace; k-- > 0 && !is_one_of(list_[k], {";", "{", "}", ")", "="});) {
      if (is_one_of(list_[k], {"struct", "class", "union", "enum", "namespace"})) {
        return true;
      }
    }
    return false;
  }

  // --- Expressions ---

  size_t skipped(size_t i) const {
    return std::max(i, list_[i].partner);
  }

  /// Index of the last token of the unary expression that begins at i; i - 1 where none does.
  size_t operand_end(size_t i) const {
    size_t start = i;
    while (i < list_.size() && is_one_of(list_[i], {"-", "+", "!", "~", "*", "&", "++", "--"})) {
      ++i;
    }
    if (i >= list_.size()) {
      return start - 1;
    }
    if (list_[i].is("(")) {
      i = list_[i].partner;
      auto* next = after(i);
      bool cast = next &&
          (next->kind == TokenKind::word || next->kind == TokenKind::number || next->is("(") ||
           next->is("!") || next->is("~"));
      if (cast) {
        return operand_end(i + 1);
      }
    } else if (list_[i].kind == TokenKind::word || list_[i].is("::")) {
      while (after(i) &&
             ((list_[i].kind == TokenKind::word && after(i)->is("::")) ||
              (list_[i].is("::") && after(i)->kind == TokenKind::word))) {
        ++i;
      }
    } else if (list_[i].kind != TokenKind::number) {
      return start - 1;
    }
    for (auto* next = after(i); next; next = after(i)) {
      if (next->is("(") || next->is("[") || next->is("{") ||
          (next->is("<") && next->partner != i + 1)) {
        i = next->partner;
      } else if (
          (next->is(".") || next->is("->")) && i + 2 < list_.size() &&
          list_[i + 2].kind == TokenKind::word) {
        i += 2;
      } else if (next->is("::") && i + 2 < list_.size() && list_[i + 2].kind == TokenKind::word) {
        i += 2;
      } else if (next->is("++") || next->is("--")) {
        ++i;
      } else {
        break;
      }
    }
    return i;
  }

  /// Index behind the assignment expression that begins at i.
  size_t expression_end(size_t i) const {
    int open = 0;
    for (; i < list_.size(); i = skipped(i) + 1) {
      auto& t = list_[i];
      if (is_one_of(t, {",", ";", ")", "]", "}"}) || (t.is(":") && open == 0)) {
        break;
      }
      open += t.is("?") ? 1 : t.is(":") ? -1 : 0;
    }
    return i;
  }

  void division(size_t i) {
    bool assigns = list_[i].text.size() == 2;
    size_t end = assigns ? expression_end(i + 1) - 1 : operand_end(i + 1);
    if (end <= i || end >= list_.size()) {
      return;
    }
    if (end == i + 1 && list_[end].kind == TokenKind::number &&
        list_[end].text.find_first_of("123456789") != std::string_view::npos) {
      return;
    }
    wraps_.push_back({i + 1, end, "zmlx_divisor(", ")"});
  }

  /// Where the condition of the `?` at i begins.
  size_t condition_start(size_t i) const {
    size_t start = i;
    while (start > 0) {
      auto& t = list_[start - 1];
      if (is_assignment(t) || t.kind == TokenKind::directive ||
          is_one_of(t, {"return", ",", ";", "{", "(", "[", "?", ":", "else", "do", "case"})) {
        break;
      }
      if (t.is("}")) {
        break;
      }
      size_t open = std::min(start - 1, t.partner);
      bool statement =
          t.is(")") && open > 0 && is_one_of(list_[open - 1], {"if", "while", "for", "switch"});
      if (statement) {
        break;
      }
      start = open;
    }
    return start;
  }

  void choice(size_t i) {
    size_t colon = expression_end(i + 1);
    if (colon >= list_.size() || !list_[colon].is(":")) {
      return;
    }
    size_t start = condition_start(i);
    size_t end = expression_end(colon + 1);
    if (start == i || end == colon + 1) {
      return;
    }
    // A template's argument: `f<N > 4 ? 1 : 2>(x)` cannot be told from a comparison.
    for (size_t k = colon; k < end; ++k) {
      if (list_[k].is(">") && list_[k].partner == k) {
        return;
      }
    }
    texts_[i] = ", [&] { return ";
    texts_[colon] = "; }, [&] { return ";
    wraps_.push_back({start, end - 1, "zmlx_choose(", "; })"});
  }

  std::string joined() {
    std::vector<std::vector<const Wrap*>> opens(list_.size());
    std::vector<std::vector<const Wrap*>> closes(list_.size());
    for (auto& wrap : wraps_) {
      opens[wrap.begin].push_back(&wrap);
      closes[wrap.end].push_back(&wrap);
    }
    std::string out;
    for (size_t i = 0; i < list_.size(); ++i) {
      // The longest stands outside.
      auto& open = opens[i];
      std::sort(open.begin(), open.end(), [](auto* a, auto* b) { return a->end > b->end; });
      auto& close = closes[i];
      std::sort(close.begin(), close.end(), [](auto* a, auto* b) { return a->begin > b->begin; });
      out += list_[i].space;
      for (auto* wrap : open) {
        out += wrap->open;
      }
      out += texts_[i];
      for (auto* wrap : close) {
        out += wrap->close;
      }
    }
    return out.append(tokens_.tail);
  }

  Tokens tokens_;
  const std::vector<Token>& list_;
  bool in_function_;
  bool small_;
  Needs& needs_;
  std::vector<std::string> texts_;
  std::vector<Wrap> wraps_;
};

} // namespace

std::string rewritten(std::string_view text, bool in_function, bool small, Needs& needs) {
  return Rewriter(text, in_function, small, needs).run();
}

bool names_small_floats(std::string_view text) {
  return text.find("half") != std::string_view::npos ||
      text.find("bfloat") != std::string_view::npos ||
      text.find("float16_t") != std::string_view::npos;
}

} // namespace zmlx::msl
