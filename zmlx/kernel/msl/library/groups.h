// zmlx/kernel/msl/library/groups.h: what threads of a group do together, in terms of the machine's
// exchange between the 32 of a simd-group (host_threads.h, cuda_threads.h).

enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16
};
constexpr zmlx_inline mem_flags operator|(mem_flags a, mem_flags b) {
  return static_cast<mem_flags>(static_cast<uint>(a) | static_cast<uint>(b));
}
enum memory_order { memory_order_relaxed, memory_order_seq_cst };
enum thread_scope {
  thread_scope_thread,
  thread_scope_threadgroup,
  thread_scope_device,
  thread_scope_simdgroup
};

struct simd_vote {
  using vote_t = ulong;
  vote_t bits;
  vote_t active;

  zmlx_inline explicit operator vote_t() const {
    return bits;
  }
  zmlx_inline bool all() const {
    return bits == active;
  }
  zmlx_inline bool any() const {
    return bits != 0;
  }
};

// Operators of reductions: associative enough, and commutative.
struct Sum {
  template <typename T>
  zmlx_inline T operator()(T a, T b) const {
    return T(a + b);
  }
};
struct Product {
  template <typename T>
  zmlx_inline T operator()(T a, T b) const {
    return T(a * b);
  }
};
struct Min {
  template <typename T>
  zmlx_inline T operator()(T a, T b) const {
    return min(a, b);
  }
};
struct Max {
  template <typename T>
  zmlx_inline T operator()(T a, T b) const {
    return max(a, b);
  }
};
struct And {
  template <typename T>
  zmlx_inline T operator()(T a, T b) const {
    return T(a & b);
  }
};
struct Or {
  template <typename T>
  zmlx_inline T operator()(T a, T b) const {
    return T(a | b);
  }
};
struct Xor {
  template <typename T>
  zmlx_inline T operator()(T a, T b) const {
    return T(a ^ b);
  }
};

// `site` tells calls apart when threads of a simd-group come to different ones.
#define zmlx_site uint site = zmlx_line
#define zmlx_reductions(name, Op)             \
  template <typename T>                       \
  zmlx_inline T simd_##name(T x, zmlx_site) { \
    return zmlx_reduce<Op, 32>(x, site);      \
  }                                           \
  template <typename T>                       \
  zmlx_inline T quad_##name(T x, zmlx_site) { \
    return zmlx_reduce<Op, 4>(x, site);       \
  }
zmlx_reductions(sum, Sum) zmlx_reductions(product, Product) zmlx_reductions(min, Min)
    zmlx_reductions(max, Max) zmlx_reductions(and, And) zmlx_reductions(or, Or)
        zmlx_reductions(xor, Xor)
#undef zmlx_reductions
#define zmlx_scans(name, Op, neutral)                          \
  template <typename T>                                        \
  zmlx_inline T simd_prefix_inclusive_##name(T x, zmlx_site) { \
    return zmlx_scan<Op, true>(x, T(neutral), site);           \
  }                                                            \
  template <typename T>                                        \
  zmlx_inline T simd_prefix_exclusive_##name(T x, zmlx_site) { \
    return zmlx_scan<Op, false>(x, T(neutral), site);          \
  }
            zmlx_scans(sum, Sum, 0) zmlx_scans(product, Product, 1)
#undef zmlx_scans

// Lanes that do not exist, or do not take part, give a lane its own value back.
#define zmlx_shuffles(group, width)                                              \
  template <typename T>                                                          \
  zmlx_inline T group##_shuffle(T x, uint lane, zmlx_site) {                     \
    return zmlx_exchange<width>(x, lane, site);                                  \
  }                                                                              \
  template <typename T>                                                          \
  zmlx_inline T group##_broadcast(T x, uint lane, zmlx_site) {                   \
    return zmlx_exchange<width>(x, lane, site);                                  \
  }                                                                              \
  template <typename T>                                                          \
  zmlx_inline T group##_shuffle_xor(T x, uint mask, zmlx_site) {                 \
    return zmlx_exchange<width>(x, zmlx_lane() % width ^ mask, site);            \
  }                                                                              \
  template <typename T>                                                          \
  zmlx_inline T group##_shuffle_down(T x, uint by, zmlx_site) {                  \
    return zmlx_exchange<width>(x, zmlx_lane() % width + by, site);              \
  }                                                                              \
  template <typename T>                                                          \
  zmlx_inline T group##_shuffle_up(T x, uint by, zmlx_site) {                    \
    return zmlx_exchange<width>(x, zmlx_lane() % width - by, site);              \
  }                                                                              \
  template <typename T>                                                          \
  zmlx_inline T group##_shuffle_rotate_down(T x, uint by, zmlx_site) {           \
    return zmlx_exchange<width>(x, (zmlx_lane() + by) % width, site);            \
  }                                                                              \
  template <typename T>                                                          \
  zmlx_inline T group##_shuffle_rotate_up(T x, uint by, zmlx_site) {             \
    return zmlx_exchange<width>(x, (zmlx_lane() - by) % width, site);            \
  }                                                                              \
  template <typename T>                                                          \
  zmlx_inline T group##_shuffle_and_fill_down(                                   \
      T x, T fill, uint by, uint modulo = width, zmlx_site) {                    \
    uint at = zmlx_lane() % modulo + by;                                         \
    T near = zmlx_exchange<width>(x, zmlx_lane() % width + by, site);            \
    T far = zmlx_exchange<width>(fill, zmlx_lane() % width + by - modulo, site); \
    return at < modulo ? near : far;                                             \
  }                                                                              \
  template <typename T>                                                          \
  zmlx_inline T group##_shuffle_and_fill_up(                                     \
      T x, T fill, uint by, uint modulo = width, zmlx_site) {                    \
    T near = zmlx_exchange<width>(x, zmlx_lane() % width - by, site);            \
    T far = zmlx_exchange<width>(fill, zmlx_lane() % width - by + modulo, site); \
    return zmlx_lane() % modulo >= by ? near : far;                              \
  }                                                                              \
  zmlx_inline bool group##_any(bool x, zmlx_site) {                              \
    return zmlx_reduce<Or, width>(static_cast<uint>(x), site) != 0;              \
  }                                                                              \
  zmlx_inline bool group##_all(bool x, zmlx_site) {                              \
    return zmlx_reduce<And, width>(static_cast<uint>(x), site) != 0;             \
  }                                                                              \
  zmlx_inline simd_vote group##_active_threads_mask(zmlx_site) {                 \
    ulong mask = zmlx_reduce<Or, width>(1u << zmlx_lane() % width, site);        \
    return {mask, mask};                                                         \
  }                                                                              \
  zmlx_inline simd_vote group##_ballot(bool x, zmlx_site) {                      \
    uint mine = 1u << zmlx_lane() % width;                                       \
    uint2 masks = zmlx_reduce<Or, width>(uint2(x ? mine : 0u, mine), site);      \
    return {masks.x, masks.y};                                                   \
  }                                                                              \
  zmlx_inline bool group##_is_first(zmlx_site) {                                 \
    uint mask = zmlx_reduce<Or, width>(1u << zmlx_lane() % width, site);         \
    return (mask & (0u - mask)) == 1u << zmlx_lane() % width;                    \
  }                                                                              \
  template <typename T>                                                          \
  zmlx_inline T group##_broadcast_first(T x, zmlx_site) {                        \
    uint mask = zmlx_reduce<Or, width>(1u << zmlx_lane() % width, site);         \
    return zmlx_exchange<width>(x, static_cast<uint>(ctz(mask)), site);          \
  }
                zmlx_shuffles(simd, 32u) zmlx_shuffles(quad, 4u)
#undef zmlx_shuffles

                    template <typename T>
                    struct atomic {
  T value;
};
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_bool = atomic<bool>;
using atomic_float = atomic<float>;
using atomic_ulong = atomic<ulong>;
template <typename T>
zmlx_inline T atomic_load_explicit(const volatile atomic<T>* at, memory_order) {
  return ZmlxAtomic<T>::load(&at->value);
}
template <typename T, typename V>
zmlx_inline void atomic_store_explicit(volatile atomic<T>* at, V x, memory_order) {
  ZmlxAtomic<T>::exchange(&at->value, static_cast<T>(x));
}
template <typename T, typename V>
zmlx_inline T atomic_exchange_explicit(volatile atomic<T>* at, V x, memory_order) {
  return ZmlxAtomic<T>::exchange(&at->value, static_cast<T>(x));
}
template <typename T, typename V>
zmlx_inline bool atomic_compare_exchange_weak_explicit(
    volatile atomic<T>* at,
    T* expected,
    V desired,
    memory_order,
    memory_order) {
  return ZmlxAtomic<T>::compare_exchange(&at->value, *expected, static_cast<T>(desired));
}
/// What stood there before.
template <typename Op, typename T>
zmlx_inline T zmlx_atomic_update(volatile atomic<T>* at, T x) {
  T before = ZmlxAtomic<T>::load(&at->value);
  while (!ZmlxAtomic<T>::compare_exchange(&at->value, before, Op()(before, x))) {
  }
  return before;
}
struct Difference {
  template <typename T>
  zmlx_inline T operator()(T a, T b) const {
    return T(a - b);
  }
};
#define zmlx_atomic(name, Op)                                                               \
  template <typename T, typename V>                                                         \
  zmlx_inline T atomic_fetch_##name##_explicit(volatile atomic<T>* at, V x, memory_order) { \
    return zmlx_atomic_update<Op>(at, static_cast<T>(x));                                   \
  }
zmlx_atomic(sub, Difference) zmlx_atomic(min, Min) zmlx_atomic(max, Max) zmlx_atomic(and, And)
    zmlx_atomic(or, Or) zmlx_atomic(xor, Xor)
#undef zmlx_atomic
        template <typename T, typename V>
        zmlx_inline T atomic_fetch_add_explicit(volatile atomic<T>* at, V x, memory_order) {
  return ZmlxAtomic<T>::add(&at->value, static_cast<T>(x));
}
zmlx_inline void atomic_thread_fence(
    mem_flags,
    memory_order = memory_order_relaxed,
    thread_scope = thread_scope_device) {
  zmlx_fence();
}
