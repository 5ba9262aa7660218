// zmlx/kernel/msl/library/vectors.h: Metal's vectors of two, three and four components, behind
// types.h. zmlx_swizzles lists the swizzles of several components that the kernel uses.

template <typename T, int N>
struct vec;
template <typename T>
constexpr int components_v = 1;
template <typename T, int N>
constexpr int components_v<vec<T, N>> = N;
template <typename T>
constexpr bool is_vec_v = (components_v<T> > 1);

/// Components of a vector, to be assigned to.
template <typename T, int N>
struct Selected {
  T* parts[N];

  template <typename V>
  zmlx_inline void operator=(const V& value) const {
    vec<T, N> from(value);
    for (int i = 0; i < N; ++i) {
      *parts[i] = from[i];
    }
  }
  zmlx_inline vec<T, N> get() const {
    vec<T, N> out;
    for (int i = 0; i < N; ++i) {
      out[i] = *parts[i];
    }
    return out;
  }
  template <typename V>
  zmlx_inline void operator+=(const V& value) const {
    *this = get() + value;
  }
  template <typename V>
  zmlx_inline void operator-=(const V& value) const {
    *this = get() - value;
  }
  template <typename V>
  zmlx_inline void operator*=(const V& value) const {
    *this = get() * value;
  }
  template <typename V>
  zmlx_inline void operator/=(const V& value) const {
    *this = get() / value;
  }
};

#define zmlx_swizzle_2(name, a, b)               \
  zmlx_inline vec<T, 2> zmlx_##name() const {    \
    return vec<T, 2>(this->a, this->b);          \
  }                                              \
  zmlx_inline Selected<T, 2> zmlx_set_##name() { \
    return {{&this->a, &this->b}};               \
  }
#define zmlx_swizzle_3(name, a, b, c)            \
  zmlx_inline vec<T, 3> zmlx_##name() const {    \
    return vec<T, 3>(this->a, this->b, this->c); \
  }                                              \
  zmlx_inline Selected<T, 3> zmlx_set_##name() { \
    return {{&this->a, &this->b, &this->c}};     \
  }
#define zmlx_swizzle_4(name, a, b, c, d)                  \
  zmlx_inline vec<T, 4> zmlx_##name() const {             \
    return vec<T, 4>(this->a, this->b, this->c, this->d); \
  }                                                       \
  zmlx_inline Selected<T, 4> zmlx_set_##name() {          \
    return {{&this->a, &this->b, &this->c, &this->d}};    \
  }
/// What all vectors have. Of several arguments, together N components, some are vectors.
#define zmlx_members                                                                     \
  vec() = default;                                                                       \
  template <typename U, int M, typename = enable_if_t<M == size>>                        \
  explicit zmlx_inline vec(const vec<U, M>& v) {                                         \
    for (int i = 0; i < size; ++i) {                                                     \
      (*this)[i] = T(v[i]);                                                              \
    }                                                                                    \
  }                                                                                      \
  template <                                                                             \
      typename... A,                                                                     \
      enable_if_t<                                                                       \
          (sizeof...(A) > 1) && (components_v<A> + ...) == size && (is_vec_v<A> || ...), \
          int> = 0>                                                                      \
  explicit zmlx_inline vec(const A&... parts) {                                          \
    int at = 0;                                                                          \
    (put(at, parts), ...);                                                               \
  }                                                                                      \
  zmlx_inline T& operator[](int i) {                                                     \
    return reinterpret_cast<T*>(this)[i];                                                \
  }                                                                                      \
  zmlx_inline const T& operator[](int i) const {                                         \
    return reinterpret_cast<const T*>(this)[i];                                          \
  }                                                                                      \
  zmlx_swizzles private : template <typename A>                                          \
                          zmlx_inline void                                               \
                          put(int& at, const A& part) {                                  \
    if constexpr (is_vec_v<A>) {                                                         \
      for (int i = 0; i < components_v<A>; ++i) {                                        \
        (*this)[at++] = T(part[i]);                                                      \
      }                                                                                  \
    } else {                                                                             \
      (*this)[at++] = T(part);                                                           \
    }                                                                                    \
  }

template <typename T>
struct zmlx_aligned(sizeof(T) * 2) vec<T, 2> {
  static constexpr int size = 2;
  union {
    T x, r;
  };
  union {
    T y, g;
  };

  template <typename S, typename = enable_if_t<is_scalar_v<S>>>
  constexpr zmlx_inline vec(S s) : x(T(s)), y(T(s)) {}
  template <typename A, typename B, typename = enable_if_t<is_scalar_v<A> && is_scalar_v<B>>>
  constexpr zmlx_inline vec(A a, B b) : x(T(a)), y(T(b)) {}
  zmlx_members
};
template <typename T>
struct zmlx_aligned(sizeof(T) * 4) vec<T, 3> {
  static constexpr int size = 3;
  union {
    T x, r;
  };
  union {
    T y, g;
  };
  union {
    T z, b;
  };
  T zmlx_padding;

  template <typename S, typename = enable_if_t<is_scalar_v<S>>>
  constexpr zmlx_inline vec(S s) : x(T(s)), y(T(s)), z(T(s)), zmlx_padding(T(0)) {}
  template <
      typename A,
      typename B,
      typename C,
      typename = enable_if_t<is_scalar_v<A> && is_scalar_v<B> && is_scalar_v<C>>>
  constexpr zmlx_inline vec(A a, B b, C c) : x(T(a)), y(T(b)), z(T(c)), zmlx_padding(T(0)) {}
  zmlx_members
};
template <typename T>
struct zmlx_aligned(sizeof(T) * 4) vec<T, 4> {
  static constexpr int size = 4;
  union {
    T x, r;
  };
  union {
    T y, g;
  };
  union {
    T z, b;
  };
  union {
    T w, a;
  };

  template <typename S, typename = enable_if_t<is_scalar_v<S>>>
  constexpr zmlx_inline vec(S s) : x(T(s)), y(T(s)), z(T(s)), w(T(s)) {}
  template <
      typename A,
      typename B,
      typename C,
      typename D,
      typename = enable_if_t<is_scalar_v<A> && is_scalar_v<B> && is_scalar_v<C> && is_scalar_v<D>>>
  constexpr zmlx_inline vec(A a, B b, C c, D d) : x(T(a)), y(T(b)), z(T(c)), w(T(d)) {}
  zmlx_members
};
#undef zmlx_members

/// f of each component.
template <typename F, typename T, int N>
zmlx_inline auto zmlx_map(F f, const vec<T, N>& a) {
  vec<remove_cv_t<decltype(f(a.x))>, N> out;
  for (int i = 0; i < N; ++i) {
    out[i] = f(a[i]);
  }
  return out;
}
template <typename F, typename T, int N, typename B>
zmlx_inline auto zmlx_map(F f, const vec<T, N>& a, const B& b) {
  vec<T, N> other(b);
  vec<remove_cv_t<decltype(f(a.x, a.x))>, N> out;
  for (int i = 0; i < N; ++i) {
    out[i] = f(a[i], other[i]);
  }
  return out;
}

#define zmlx_operator(op)                                                          \
  template <typename T, int N>                                                     \
  zmlx_inline vec<T, N> operator op(const vec<T, N>& a, const vec<T, N>& b) {      \
    return zmlx_map([](T x, T y) { return T(x op y); }, a, b);                     \
  }                                                                                \
  template <typename T, int N, typename S, typename = enable_if_t<is_scalar_v<S>>> \
  zmlx_inline vec<T, N> operator op(const vec<T, N>& a, S b) {                     \
    return a op vec<T, N>(b);                                                      \
  }                                                                                \
  template <typename T, int N, typename S, typename = enable_if_t<is_scalar_v<S>>> \
  zmlx_inline vec<T, N> operator op(S a, const vec<T, N>& b) {                     \
    return vec<T, N>(a) op b;                                                      \
  }                                                                                \
  template <typename T, int N, typename B>                                         \
  zmlx_inline vec<T, N>& operator op##=(vec<T, N>& a, const B& b) {                \
    return a = a op b;                                                             \
  }
zmlx_operator(+) zmlx_operator(-) zmlx_operator(*) zmlx_operator(&) zmlx_operator(|)
    zmlx_operator(^) zmlx_operator(<<) zmlx_operator(>>)
#undef zmlx_operator
// These two divide by a Divisor, as whole numbers may be zero.
#define zmlx_operator(op)                                                          \
  template <typename T, int N>                                                     \
  zmlx_inline vec<T, N> operator op(const vec<T, N>& a, const vec<T, N>& b) {      \
    return zmlx_map([](T x, T y) { return T(x op zmlx_divisor(y)); }, a, b);       \
  }                                                                                \
  template <typename T, int N, typename S, typename = enable_if_t<is_scalar_v<S>>> \
  zmlx_inline vec<T, N> operator op(const vec<T, N>& a, S b) {                     \
    return a op vec<T, N>(b);                                                      \
  }                                                                                \
  template <typename T, int N, typename S, typename = enable_if_t<is_scalar_v<S>>> \
  zmlx_inline vec<T, N> operator op(S a, const vec<T, N>& b) {                     \
    return vec<T, N>(a) op b;                                                      \
  }
        zmlx_operator(/) zmlx_operator(%)
#undef zmlx_operator
#define zmlx_operator(op)                                                          \
  template <typename T, int N>                                                     \
  zmlx_inline vec<bool, N> operator op(const vec<T, N>& a, const vec<T, N>& b) {   \
    return zmlx_map([](T x, T y) { return bool(x op y); }, a, b);                  \
  }                                                                                \
  template <typename T, int N, typename S, typename = enable_if_t<is_scalar_v<S>>> \
  zmlx_inline vec<bool, N> operator op(const vec<T, N>& a, S b) {                  \
    return a op vec<T, N>(b);                                                      \
  }                                                                                \
  template <typename T, int N, typename S, typename = enable_if_t<is_scalar_v<S>>> \
  zmlx_inline vec<bool, N> operator op(S a, const vec<T, N>& b) {                  \
    return vec<T, N>(a) op b;                                                      \
  }
            zmlx_operator(==) zmlx_operator(!=) zmlx_operator(<) zmlx_operator(<=) zmlx_operator(>)
                zmlx_operator(>=) zmlx_operator(&&) zmlx_operator(||)
#undef zmlx_operator
                    template <typename T, int N>
                    zmlx_inline vec<T, N> operator-(const vec<T, N>& a) {
  return zmlx_map([](T x) { return T(-x); }, a);
}
template <typename T, int N>
zmlx_inline vec<T, N> operator~(const vec<T, N>& a) {
  return zmlx_map([](T x) { return T(~x); }, a);
}
template <typename T, int N>
zmlx_inline vec<bool, N> operator!(const vec<T, N>& a) {
  return zmlx_map([](T x) { return !x; }, a);
}

/// Components without padding: three take the room of three.
template <typename T, int N>
struct packed_vec {
  T parts[N];

  packed_vec() = default;
  zmlx_inline packed_vec(const vec<T, N>& v) {
    for (int i = 0; i < N; ++i) {
      parts[i] = v[i];
    }
  }
  template <typename... A, typename = enable_if_t<sizeof...(A) == N>>
  constexpr zmlx_inline packed_vec(A... a) : parts{T(a)...} {}
  zmlx_inline operator vec<T, N>() const {
    vec<T, N> out;
    for (int i = 0; i < N; ++i) {
      out[i] = parts[i];
    }
    return out;
  }
  zmlx_inline T& operator[](int i) {
    return parts[i];
  }
  zmlx_inline const T& operator[](int i) const {
    return parts[i];
  }
};

#define zmlx_vectors(name, T)                \
  using name##2 = vec<T, 2>;                 \
  using name##3 = vec<T, 3>;                 \
  using name##4 = vec<T, 4>;                 \
  using packed_##name##2 = packed_vec<T, 2>; \
  using packed_##name##3 = packed_vec<T, 3>; \
  using packed_##name##4 = packed_vec<T, 4>;
zmlx_vectors(bool, bool) zmlx_vectors(char, signed char) zmlx_vectors(uchar, uchar)
    zmlx_vectors(short, short) zmlx_vectors(ushort, ushort) zmlx_vectors(int, int)
        zmlx_vectors(uint, uint) zmlx_vectors(long, long) zmlx_vectors(ulong, ulong)
            zmlx_vectors(half, half) zmlx_vectors(bfloat, bfloat) zmlx_vectors(float, float)
#undef zmlx_vectors
