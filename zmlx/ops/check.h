// zmlx/ops/check.h: checks that many ops make on the types of their inputs.
#pragma once

#include "zmlx/ops/op.h"
#include "zmlx/runtime/error.h"

namespace zmlx {

inline void expect_inputs(const char* op, const Types& in, size_t count) {
  if (in.size() != count) {
    fail(op, "expected ", count, " inputs but got ", in.size(), ".");
  }
}

inline void expect_rank(const char* op, const char* name, const Type& type, int rank) {
  if (type.shape.rank() != rank) {
    fail(op, name, " must have ", rank, " axes but got ", to_string(type), ".");
  }
}

inline void expect_floating(const char* op, const char* name, const Type& type) {
  if (!is_floating(type.dtype)) {
    fail(op, name, " must be float32, float16 or bfloat16 but got ", name_of(type.dtype), ".");
  }
}

inline void expect_dtype(const char* op, const char* name, const Type& type, Dtype dtype) {
  if (type.dtype != dtype) {
    fail(op, name, " must be ", name_of(dtype), " but got ", name_of(type.dtype), ".");
  }
}

inline void expect_shape(const char* op, const char* name, const Type& type, const Shape& shape) {
  if (!(type.shape == shape)) {
    fail(op, name, " must have shape ", to_string(shape), " but got ", to_string(type.shape), ".");
  }
}

/// Floating x with a last axis, of at least `least` elements.
inline void expect_rows(const char* op, const Type& x, int64_t least = 0) {
  expect_floating(op, "x", x);
  if (x.shape.rank() == 0) {
    fail(op, "x must have at least 1 axis but got a number.");
  }
  if (x.shape[-1] < least) {
    fail(op, "x's last axis must have at least ", least, " elements but got ", to_string(x), ".");
  }
}

/// The position of a call's first token: one int32.
inline void expect_offset(const char* op, const Type& type) {
  expect_dtype(op, "offset", type, Dtype::i32);
  if (type.shape.size() != 1) {
    fail(op, "offset must be one number but got shape ", to_string(type.shape), ".");
  }
}

/// Positions of each sequence's first token: one int32 a sequence.
inline void expect_positions(const char* op, const Type& type, int64_t batch) {
  expect_dtype(op, "positions", type, Dtype::i32);
  expect_shape(op, "positions", type, {batch});
}

/// Throws unless rows [offset, offset + tokens) lie in a buffer of `capacity` rows.
inline void expect_room(const char* op, int64_t offset, int64_t tokens, int64_t capacity) {
  if (offset < 0 || offset + tokens > capacity) {
    fail(
        op,
        "positions ",
        offset,
        " to ",
        offset + tokens,
        " must lie in the buffer, which holds ",
        capacity,
        ".");
  }
}

/// Random values of any dtype from a fixed seed, for cases.
mx::array random_case(mx::Shape shape, mx::Dtype dtype, uint64_t seed, float scale = 1);

} // namespace zmlx
