// zmlx/kernel/lang/fold.h: loops that fold a row into one value, acc = update(acc, x), recognised
// as reductions.
#pragma once

#include <optional>
#include <string>

#include "zmlx/kernel/lang/parse.h"

namespace zmlx::lang {

struct Folded {
  std::string reduction; // "row_sum", ...
  Expr value;
};

/// What `update`, of the input `acc` and others, makes of a row that starts from `init`: acc + f,
/// acc - f, acc * f, max(acc, f) or min(acc, f), where f does not use acc, in any order and
/// nesting. Nothing for other updates.
std::optional<Folded> folded(const Expr& init, const Expr& update, const std::string& acc);

/// The reduction that `combine`, of the inputs `a` and `b`, makes of a row: "row_sum", ..., or "".
std::string combination(const Expr& combine, const std::string& a, const std::string& b);

/// A loop over a row as text: what starts it, what it does with `acc` for each element, and how
/// two such values are combined ("" where that is not said), in a and b.
struct FoldText {
  std::string name; // of its result
  std::string acc;
  std::string init;
  std::string update;
  std::string combine;
};

/// The value of source.text, which may use the folds' results, as may later folds, and the row's
/// length `D`. Folds that are reductions become such, others stay loops. Throws
/// std::invalid_argument for a reduction that is combined in another way.
Expr parse_folds(const Source& source, const std::vector<FoldText>& folds);

} // namespace zmlx::lang
