// zmlx/kernel/lang/parse.cpp: a recursive-descent parser of expressions, statements and functions.
#include "zmlx/kernel/lang/parse.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "zmlx/kernel/lang/scan.h"
#include "zmlx/runtime/error.h"

namespace zmlx::lang {
namespace {

struct Binary {
  std::string_view token;
  int strength;
  std::string_view function;
};
// Longer tokens first.
constexpr Binary binaries[] = {
    {"||", 1, "or"},         {"&&", 2, "and"},         {"==", 6, "eq"},    {"!=", 6, "ne"},
    {"<<", 8, "shift_left"}, {">>", 8, "shift_right"}, {"<=", 7, "le"},    {">=", 7, "ge"},
    {"**", 12, "pow"},       {"//", 10, "floor_div"},  {"|", 3, "bit_or"}, {"^", 4, "bit_xor"},
    {"&", 5, "bit_and"},     {"<", 7, "lt"},           {">", 7, "gt"},     {"+", 9, "add"},
    {"-", 9, "sub"},         {"*", 10, "mul"},         {"/", 10, "div"},   {"%", 10, "remainder"},
};
constexpr int unary_strength = 11;

class Parser : public Scanner {
 public:
  using Scanner::Scanner;

  /// Values of names, and functions of the header.
  std::map<std::string, Expr, std::less<>> names;
  std::vector<Body> functions;

  Expr expression() {
    Expr condition = binary(0);
    if (!accept("?")) {
      return condition;
    }
    Expr yes = expression();
    expect(":");
    return call("select", {condition, yes, expression()});
  }

  /// Statements up to an expression without `=`; nothing when the text ends after a statement.
  void statement_or_value(std::vector<Expr>& values) {
    size_t begin = at_;
    if (accept("return")) {
      values.push_back(expression());
      accept(";");
      return;
    }
    if (assignment()) {
      return;
    }
    at_ = begin;
    values.push_back(expression());
    accept(";");
  }

  /// `[const] [type] name[elem] = expression;`, also with += and its like. False when there is
  /// none.
  bool assignment() {
    auto first = name();
    while (first == "const" || first == "constexpr" || first == "thread") {
      first = name();
    }
    auto target = first;
    std::optional<Dtype> type;
    bool declared = false;
    if (!first.empty() && (is_computing_type(first) || (type = find_type(first)))) {
      target = name();
      declared = true;
    }
    if (target.empty()) {
      return false;
    }
    index();
    skip();
    size_t at = at_;
    std::string_view update;
    for (std::string_view token : {"+=", "-=", "*=", "/="}) {
      if (accept(token)) {
        update = token.substr(0, 1);
      }
    }
    if (update.empty() && (text_.substr(at_).starts_with("==") || !accept("="))) {
      return false;
    }
    Expr value = expression();
    if (!update.empty()) {
      auto old = names.find(target);
      if (old == names.end()) {
        error("'" + std::string(target) + "' has no value yet:", at);
      }
      auto* row = std::find_if(std::begin(binaries), std::end(binaries), [&](const Binary& b) {
        return b.token == update;
      });
      value = call(row->function, {old->second, value});
    }
    if (declared && type && *type != Dtype::f32) {
      value = cast(value, *type);
    }
    names.insert_or_assign(std::string(target), value);
    expect(";");
    return true;
  }

  /// `[inline] type name(type a, type b) { statements return expression; }`
  void function() {
    if (accept("template")) {
      expect("<");
      at_ = std::min(text_.find('>', at_), text_.size() - 1) + 1;
    }
    auto word = name();
    while (word == "inline" || word == "static" || word == "constexpr") {
      word = name();
    }
    type_name(word);
    auto called = name();
    std::vector<std::string> args;
    expect("(");
    while (!accept(")")) {
      auto type = name();
      type_name(type == "const" ? name() : type);
      args.emplace_back(name());
      if (!accept(",")) {
        expect(")");
        break;
      }
    }
    expect("{");
    auto outer = names;
    for (auto& arg : args) {
      names.insert_or_assign(arg, input(arg));
    }
    std::vector<Expr> values;
    while (values.empty()) {
      if (done()) {
        error("a function must return a value:", at_);
      }
      statement_or_value(values);
    }
    expect("}");
    names = std::move(outer);
    functions.push_back({std::string(called), std::move(args), values[0]});
  }

 private:
  void type_name(std::string_view word) {
    if (!is_computing_type(word) && !find_type(word)) {
      error("expected a type such as float:", at_ - word.size());
    }
  }

  /// The place of an element: `[elem]` or another name. Every tensor has the same, so it says
  /// nothing.
  void index() {
    if (accept("[")) {
      name();
      expect("]");
    }
  }

  const Binary* operation() {
    skip();
    for (auto& row : binaries) {
      if (text_.substr(at_).starts_with(row.token)) {
        return &row;
      }
    }
    return nullptr;
  }

  Expr binary(int strength) {
    Expr left = unary();
    for (auto* row = operation(); row && row->strength > strength; row = operation()) {
      at_ += row->token.size();
      // ** binds to the right.
      Expr right = binary(row->token == "**" ? row->strength - 1 : row->strength);
      left = call(row->function, {left, right});
    }
    return left;
  }

  Expr unary() {
    if (accept("-")) {
      return call("neg", {binary(unary_strength)});
    }
    if (accept("+")) {
      return binary(unary_strength);
    }
    if (accept("!")) {
      return call("not", {binary(unary_strength)});
    }
    if (accept("~")) {
      return call("bit_not", {binary(unary_strength)});
    }
    return primary();
  }

  Expr primary() {
    skip();
    size_t begin = at_;
    if (accept("(")) {
      size_t inside = at_;
      auto word = name();
      bool typed = is_computing_type(word) || find_type(word);
      if (typed && accept(")")) {
        return convert(word, binary(unary_strength));
      }
      at_ = inside;
      Expr value = expression();
      expect(")");
      return value;
    }
    auto word = name();
    if (word.empty()) {
      return number();
    }
    if (accept("<")) { // static_cast<T>(x)
      if (word == "static_cast") {
        word = name();
        expect(">");
      } else {
        --at_;
      }
    }
    auto known = names.find(word);
    if (accept("(")) {
      return called(std::string(word), begin);
    }
    if (known != names.end()) {
      index();
      return known->second;
    }
    if (word == "row_size") {
      return row_size();
    }
    if (word == "true" || word == "false") {
      return word == "true";
    }
    if (auto value = named_constant(word)) {
      return *value;
    }
    unknown(word, begin);
  }

  Expr called(const std::string& word, size_t begin) {
    std::vector<Expr> args;
    while (!accept(")")) {
      args.push_back(expression());
      if (!accept(",")) {
        expect(")");
        break;
      }
    }
    for (auto& body : functions) {
      if (body.name == word) {
        if (args.size() != body.args.size()) {
          error(
              word + " takes " + std::to_string(body.args.size()) + " arguments but got " +
                  std::to_string(args.size()) + ":",
              begin);
        }
        return substitute(body.value, body.args, args);
      }
    }
    if (is_computing_type(word) || find_type(word)) {
      if (args.size() != 1) {
        error("a conversion takes 1 value but got " + std::to_string(args.size()) + ":", begin);
      }
      return convert(word, args[0]);
    }
    auto plain = plain_name(word);
    size_t arity = 0;
    if (auto* function = find_function(plain)) {
      arity = static_cast<size_t>(function->arity);
    } else if (auto* composite = find_composite(plain)) {
      auto list = std::string_view(composite->args);
      arity = static_cast<size_t>(std::count(list.begin(), list.end(), ',')) + 1;
    } else if (find_reduction(plain)) {
      arity = 1;
    } else {
      unknown(word, begin);
    }
    if (args.size() != arity) {
      error(
          std::string(plain) + " takes " + std::to_string(arity) +
              (arity == 1 ? " argument" : " arguments") + " but got " +
              std::to_string(args.size()) + ":",
          begin);
    }
    return call(plain, std::move(args));
  }

  Expr convert(std::string_view type, const Expr& value) {
    return is_computing_type(type) ? value : cast(value, *find_type(type));
  }

  [[noreturn]] void unknown(std::string_view word, size_t begin) {
    std::vector<std::string> own;
    for (auto& [known, value] : names) {
      own.push_back(known);
    }
    auto near = nearest_name(word, own);
    error(
        "unknown name '" + std::string(word) + "'" +
            (near.empty() ? ":" : "; did you mean '" + near + "'?"),
        begin);
  }
};

/// A parser that knows the source's inputs, functions and prelude, for its text.
Parser parser_of(const Source& source) {
  Parser header(source.header, source.where);
  while (!header.done()) {
    header.function();
  }
  Parser prelude(source.prelude, source.where);
  prelude.functions = header.functions;
  for (auto& name : source.inputs) {
    prelude.names.emplace(name, input(name));
  }
  while (!prelude.done()) {
    if (!prelude.assignment()) {
      prelude.error("expected a statement 'name = value;':", 0);
    }
  }
  Parser parser(source.text, source.where);
  parser.functions = std::move(prelude.functions);
  parser.names = std::move(prelude.names);
  return parser;
}

} // namespace

Expr parse(const Source& source) {
  auto parser = parser_of(source);
  std::vector<Expr> values;
  while (!parser.done() && values.empty()) {
    parser.statement_or_value(values);
  }
  if (values.empty()) {
    fail(source.where.c_str(), "expected an expression but got '", source.text, "'.");
  }
  if (!parser.done()) {
    parser.expect("the end");
  }
  return values[0];
}

std::vector<Expr> parse_outputs(const Source& source, const std::vector<std::string>& outputs) {
  auto parser = parser_of(source);
  std::vector<Expr> rest;
  while (!parser.done()) {
    parser.statement_or_value(rest);
  }
  std::vector<Expr> values;
  for (auto& name : outputs) {
    auto it = parser.names.find(name);
    if (it == parser.names.end()) {
      fail(source.where.c_str(), "nothing is assigned to the output '", name, "'.");
    }
    values.push_back(it->second);
  }
  return values;
}

const Body& parsed_composite(const Composite& composite) {
  static std::mutex mutex;
  static std::map<std::string_view, Body> parsed;
  {
    std::lock_guard lock(mutex);
    if (auto it = parsed.find(composite.name); it != parsed.end()) {
      return it->second;
    }
  }
  // Unlocked: a composite may use others.
  std::vector<std::string> args;
  for (std::string_view rest = composite.args; !rest.empty();) {
    auto name = rest.substr(0, rest.find(", "));
    rest.remove_prefix(std::min(rest.size(), name.size() + 2));
    args.emplace_back(name);
  }
  Body body{composite.name, args, parse({composite.body, args})};
  std::lock_guard lock(mutex);
  return parsed.emplace(composite.name, std::move(body)).first->second;
}

} // namespace zmlx::lang
