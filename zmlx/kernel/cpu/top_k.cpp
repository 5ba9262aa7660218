// zmlx/kernel/cpu/top_k.cpp: the k largest of a row, for each instruction set.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/kernel/cpu/top_k.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "zmlx/kernel/cpu/stream-inl.h"
#include "zmlx/kernel/cpu/top_k.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {
namespace {

using I32 = hn::Rebind<int32_t, F32>;
using Ints = hn::Vec<I32>;

constexpr float lowest = -std::numeric_limits<float>::infinity();
constexpr int64_t most_k = 1024; // elements of a list that is sorted by insertion
constexpr int64_t few_k = 16; // up to which the candidates are sorted all at once
constexpr int64_t most_candidates = 32;

template <typename F>
void with_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f16:
      return f(static_cast<hwy::float16_t*>(nullptr));
    case Dtype::bf16:
      return f(static_cast<hwy::bfloat16_t*>(nullptr));
    default:
      return f(static_cast<float*>(nullptr));
  }
}

/// What lies past the end of a row counts as the lowest.
HWY_INLINE Floats or_lowest(Floats v, size_t left) {
  return left >= lanes() ? v : hn::IfThenElse(hn::FirstN(F32(), left), v, hn::Set(F32(), lowest));
}

/// As whole numbers floats keep their order once negative ones are turned. -0 becomes 0.
HWY_INLINE Ints keys_of(Floats v) {
  const auto bits = hn::BitCast(I32(), hn::Add(v, hn::Zero(F32())));
  return hn::Xor(bits, hn::And(hn::ShiftRight<31>(bits), hn::Set(I32(), 0x7FFFFFFF)));
}

/// A number that at least k elements reach: the k-th largest of the maxima of disjoint parts of the
/// row, twice as many as a vector has lanes, or for small k as many. NaN is passed over.
template <typename T>
HWY_INLINE float reached_by(const T* x, int64_t n, int64_t k) {
  const auto step = static_cast<int64_t>(lanes());
  const int64_t ahead = cpu::row_ahead(n, sizeof(T));
  Floats most = hn::Set(F32(), lowest);
  Floats more = most;
  over_pairs(
      n,
      [&](int64_t i) HWY_ATTR {
        fetch_two(x + i + ahead);
        Floats v, w;
        load_two(x + i, v, w);
        most = hn::Max(v, most);
        more = hn::Max(w, more);
      },
      [&](int64_t i, size_t left)
          HWY_ATTR { most = hn::Max(or_lowest(load_some(x + i, left), left), most); });
  // The largest of whole numbers is found in a third of the time of floats'.
  const auto none = hn::Set(I32(), std::numeric_limits<int32_t>::min());
  const bool few = 3 * k <= step;
  auto a = keys_of(few ? hn::Max(most, more) : most);
  auto b = few ? none : keys_of(more);
  auto reached = none;
  for (int64_t j = 0; j < k; ++j) {
    reached = hn::MaxOfLanes(I32(), hn::Max(a, b));
    a = hn::IfThenElse(hn::Eq(a, reached), none, a);
    b = hn::IfThenElse(hn::Eq(b, reached), none, b);
  }
  // Where all parts are used up the key is that of no number.
  const int32_t key = hn::GetLane(reached);
  const int32_t bits = key ^ ((key >> 31) & 0x7FFFFFFF);
  float number;
  hwy::CopySameSize(&bits, &number);
  return std::isnan(number) ? lowest : number;
}

struct Candidates {
  // Room for what a vector has past the last one, and for two vectors before they are counted.
  HWY_ALIGN float value[most_candidates + 4 * hn::MaxLanes(F32())];
  HWY_ALIGN int32_t index[most_candidates + 4 * hn::MaxLanes(F32())];
  int64_t count = 0;
};

/// Elements of the row that are not below `least`, in their order; false if there are too many.
/// Where they are cannot be foreseen, so nothing branches on it but the end of a loop over pairs of
/// vectors that have some.
template <typename T>
HWY_INLINE bool collect(const T* x, int64_t n, float least, Candidates& to) {
  const auto step = static_cast<int64_t>(lanes());
  const Floats limit = hn::Set(F32(), least);
  const auto places = hn::Iota(I32(), 0);
  auto add = [&](int64_t at, size_t left) HWY_ATTR {
    const Floats v = load_some(x + at, left);
    auto is_one = hn::Not(hn::Lt(v, limit));
    if (left < lanes()) {
      is_one = hn::And(is_one, hn::FirstN(F32(), left));
    }
    const auto index = hn::Add(places, hn::Set(I32(), static_cast<int32_t>(at)));
    hn::StoreU(hn::Compress(v, is_one), F32(), to.value + to.count);
    hn::StoreU(hn::Compress(index, hn::RebindMask(I32(), is_one)), I32(), to.index + to.count);
    to.count += static_cast<int64_t>(hn::CountTrue(F32(), is_one));
  };
  int64_t i = 0;
  for (; i + 2 * step <= n;) {
    const int64_t first = i;
    uint64_t pairs = 0;
    for (int64_t j = 0; j < 64 && i + 2 * step <= n; ++j, i += 2 * step) {
      Floats v, w;
      load_two(x + i, v, w);
      const auto below = hn::And(hn::Lt(v, limit), hn::Lt(w, limit));
      pairs |= uint64_t{!hn::AllTrue(F32(), below)} << j;
    }
    for (; pairs; pairs &= pairs - 1) {
      const int64_t at = first + static_cast<int64_t>(__builtin_ctzll(pairs)) * 2 * step;
      add(at, lanes());
      add(at + step, lanes());
      if (to.count > most_candidates) {
        return false;
      }
    }
  }
  for (; i < n; i += step) {
    add(i, static_cast<size_t>(n - i));
  }
  return to.count <= most_candidates;
}

/// Sorts the candidates without a branch: each one's place is the number of those that come before.
HWY_INLINE void sort(Candidates& from, float* best, uint32_t* index) {
  const I32 d;
  const auto step = static_cast<int64_t>(lanes());
  HWY_ALIGN int32_t key[most_candidates + hn::MaxLanes(F32())];
  HWY_ALIGN int32_t place[most_candidates + hn::MaxLanes(F32())];
  // Whole fours, of which the last have the lowest key and so the last places: the number of
  // candidates varies from row to row, that of fours seldom. A key is compared less one.
  const int64_t count = (from.count + 3) / 4 * 4;
  const auto lowest_key = hn::Set(d, std::numeric_limits<int32_t>::min() + 1);
  const auto places = hn::Iota(d, 0);
  for (int64_t i = 0; i < count; i += step) {
    const Floats v = hn::Load(F32(), from.value + i);
    const auto nan = hn::RebindMask(d, hn::IsNaN(v));
    const auto keys = hn::IfThenElse(nan, hn::Set(d, 0x7FFFFFFF), keys_of(v));
    const auto index = hn::Add(places, hn::Set(d, static_cast<int32_t>(i)));
    const auto is_one = hn::Gt(hn::Set(d, static_cast<int32_t>(from.count)), index);
    hn::Store(hn::IfThenElse(is_one, keys, lowest_key), d, key + i);
  }
  for (int64_t i = 0; i < count; i += step) {
    const auto own = hn::Load(d, key + i);
    const auto number = hn::Add(places, hn::Set(d, static_cast<int32_t>(i)));
    auto before = hn::Zero(d);
    for (int64_t j = 0; j < count; ++j) {
      // An earlier candidate comes first when it is as large.
      const auto later = hn::VecFromMask(d, hn::Gt(number, hn::Set(d, static_cast<int32_t>(j))));
      const auto first = hn::Gt(hn::Set(d, key[j]), hn::Add(own, later));
      before = hn::Sub(before, hn::VecFromMask(d, first));
    }
    hn::Store(before, d, place + i);
  }
  for (int64_t i = 0; i < count; ++i) {
    best[place[i]] = from.value[i];
    index[place[i]] = static_cast<uint32_t>(from.index[i]);
  }
}

/// Whether a comes before b in descending order, NaN first.
HWY_INLINE bool above(float a, float b) {
  return std::isnan(a) ? !std::isnan(b) : a > b;
}

/// Insertion into a sorted list of k: for any k and any row.
template <typename T>
void insert_all(const T* x, int64_t n, int64_t k, float* best, uint32_t* index) {
  const auto step = static_cast<int64_t>(lanes());
  HWY_ALIGN float part[hn::MaxLanes(F32())];
  int64_t held = 0;
  for (int64_t i = 0; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    const Floats v = load_some(x + i, left);
    if (held == k) {
      const auto candidates = hn::Or(hn::Gt(v, hn::Set(F32(), best[k - 1])), hn::IsNaN(v));
      if (HWY_LIKELY(hn::AllFalse(F32(), candidates))) {
        continue;
      }
    }
    hn::Store(v, F32(), part);
    const int64_t count = std::min(step, n - i);
    for (int64_t j = 0; j < count; ++j) {
      const float value = part[j];
      if (held == k && !above(value, best[k - 1])) {
        continue;
      }
      int64_t at = held < k ? held++ : k - 1;
      for (; at > 0 && above(value, best[at - 1]); --at) {
        best[at] = best[at - 1];
        index[at] = index[at - 1];
      }
      best[at] = value;
      index[at] = static_cast<uint32_t>(i + j);
    }
  }
}

/// `best` and `index` have room for most_k, of which the first k are the result.
template <typename T>
HWY_INLINE void top_k_row(const T* x, int64_t n, int64_t k, float* best, uint32_t* index) {
  if (k <= few_k) {
    Candidates candidates;
    if (HWY_LIKELY(collect(x, n, reached_by(x, n, k), candidates))) {
      return sort(candidates, best, index);
    }
  }
  insert_all(x, n, k, best, index);
}

template <typename T>
HWY_INLINE void
store_top(const float* best, const uint32_t* index, int64_t k, T* to, uint32_t* at) {
  over_vectors(k, [&](int64_t i, size_t left) HWY_ATTR {
    store_some(load_some(best + i, left), to + i, left);
  });
  std::copy_n(index, k, at);
}

void top_k_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    int64_t k,
    void* values,
    uint32_t* indices) {
  with_type(dtype, [&]<typename T>(T*) {
    HWY_ALIGN float best[most_k];
    uint32_t index[most_k];
    for (int64_t r = 0; r < rows; ++r) {
      top_k_row(static_cast<const T*>(x) + r * n, n, k, best, index);
      store_top(best, index, k, static_cast<T*>(values) + r * k, indices + r * k);
    }
  });
}

/// softmax of one row, to float32.
template <typename T>
HWY_FLATTEN void softmax_row(const T* x, int64_t n, float* scores) {
  Floats most = hn::Set(F32(), lowest);
  over_vectors(n, [&](int64_t i, size_t left) HWY_ATTR {
    const Floats v = load_some(x + i, left);
    most = hn::Max(or_lowest(v, left), most);
    store_some(v, scores + i, left);
  });
  const float largest = hn::GetLane(hn::MaxOfLanes(F32(), most));
  const Floats less = hn::Set(F32(), largest == lowest ? 0 : largest);
  Floats total = hn::Zero(F32());
  over_vectors(n, [&](int64_t i, size_t left) HWY_ATTR {
    Floats e = exp_in_units<float, true>(hn::Sub(load_some(scores + i, left), less));
    if (left < lanes()) {
      e = hn::IfThenElseZero(hn::FirstN(F32(), left), e);
    }
    total = hn::Add(total, e);
    store_some(e, scores + i, left);
  });
  const Floats part = hn::Set(F32(), 1 / sum(total));
  over_vectors(n, [&](int64_t i, size_t left) HWY_ATTR {
    store_some(hn::Mul(load_some(scores + i, left), part), scores + i, left);
  });
}

void softmax_top_k_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    int64_t k,
    bool normalise,
    float scale,
    void* weights,
    uint32_t* indices) {
  with_type(dtype, [&]<typename T>(T*) {
    HWY_ALIGN float scores[cpu::most_softmax_top_k];
    HWY_ALIGN float best[most_k];
    uint32_t index[most_k];
    for (int64_t r = 0; r < rows; ++r) {
      softmax_row(static_cast<const T*>(x) + r * n, n, scores);
      top_k_row(scores, n, k, best, index);
      float total = 0;
      for (int64_t i = 0; normalise && i < k; ++i) {
        total += best[i];
      }
      const float factor = normalise ? scale / total : scale;
      for (int64_t i = 0; i < k; ++i) {
        best[i] *= factor;
      }
      store_top(best, index, k, static_cast<T*>(weights) + r * k, indices + r * k);
    }
  });
}

} // namespace
} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace zmlx {

HWY_EXPORT(top_k_rows);
HWY_EXPORT(softmax_top_k_rows);

namespace cpu {

void top_k_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    int64_t k,
    void* values,
    uint32_t* indices) {
  HWY_DYNAMIC_DISPATCH(top_k_rows)(dtype, x, rows, n, k, values, indices);
}

void softmax_top_k_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    int64_t k,
    bool normalise,
    float scale,
    void* weights,
    uint32_t* indices) {
  HWY_DYNAMIC_DISPATCH(softmax_top_k_rows)
  (dtype, x, rows, n, k, normalise, scale, weights, indices);
}

} // namespace cpu
} // namespace zmlx
#endif
