// zmlx/kernel/lang/packs_cuda.h: neighbouring elements in one access, in CUDA, behind math.h.

template <typename T, int Size>
struct alignas(sizeof(T) * Size) Pack {
  T v[Size];
};

/// Whether packs from p on are words of memory.
template <int Size, typename T>
ZMLX_INLINE bool in_packs(const T* p) {
  return reinterpret_cast<uint64_t>(p) % sizeof(Pack<T, Size>) == 0;
}

/// The pack at `first` of n elements, zero past the end.
template <int Size, typename T, typename Index>
ZMLX_INLINE Pack<T, Size> load_pack(const T* p, Index first, Index n, bool in_packs) {
  if (in_packs && first + Size <= n) {
    return *reinterpret_cast<const Pack<T, Size>*>(p + first);
  }
  Pack<T, Size> pack;
#pragma unroll
  for (int j = 0; j < Size; ++j) {
    pack.v[j] = first + j < n ? p[first + j] : T{};
  }
  return pack;
}

/// All packs of a thread, `apart` elements apart: reads that do not wait for each other.
template <typename T, int Size, int Count>
ZMLX_INLINE void
load_packs(Pack<T, Size> (&packs)[Count], const T* p, int first, int apart, int n, bool in_packs) {
  if (in_packs && n % Size == 0) {
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      packs[k] = first + k * apart < n
          ? *reinterpret_cast<const Pack<T, Size>*>(p + first + k * apart)
          : Pack<T, Size>{};
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < Count; ++k) {
    packs[k] = load_pack<Size>(p, first + k * apart, n, false);
  }
}

/// Tells the compiler nothing of what it knows of the packs' values, so that what was made of their
/// elements is made anew instead of being held in registers.
template <typename T, int Size, int Count>
ZMLX_INLINE void forget(Pack<T, Size> (&packs)[Count]) {
  if constexpr (sizeof(packs) % 4 == 0) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(packs) / 4); ++i) {
      asm volatile("" : "+r"(reinterpret_cast<uint32_t*>(packs)[i]));
    }
  }
}

template <int Size, typename T, typename Index>
ZMLX_INLINE void store_pack(const Pack<T, Size>& pack, T* p, Index first, Index n, bool in_packs) {
  if (in_packs && first + Size <= n) {
    *reinterpret_cast<Pack<T, Size>*>(p + first) = pack;
    return;
  }
#pragma unroll
  for (int j = 0; j < Size; ++j) {
    if (first + j < n) {
      p[first + j] = pack.v[j];
    }
  }
}
