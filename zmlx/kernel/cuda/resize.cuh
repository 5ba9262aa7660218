// zmlx/kernel/cuda/resize.cuh: bilinear resizing of images; a thread an element.
#pragma once

#include "zmlx/kernel/cuda/units.cuh"

/// Between which two pixels an output lies, and how near to the second.
struct Between {
  int low;
  int high;
  float share;
};

/// The place is a quotient of whole numbers, so that share is exact but for its rounding.
template <bool align_corners>
ZMLX_DEVICE Between pixels_around(int64_t o, int64_t in, int64_t out) {
  int64_t place = align_corners ? o * (in - 1) : (2 * o + 1) * in - out;
  const int64_t unit = !align_corners ? 2 * out : out > 1 ? out - 1 : 1;
  place = place < 0 ? 0 : place < (in - 1) * unit ? place : (in - 1) * unit;
  const int64_t low = place / unit;
  const float share = static_cast<float>(place - low * unit) / static_cast<float>(unit);
  return {static_cast<int>(low), static_cast<int>(low + 1 < in ? low + 1 : in - 1), share};
}

/// x [N, H, W, C].
template <typename T, bool align_corners>
__global__ void __launch_bounds__(256) resize_bilinear(
    Pointer x,
    Pointer out,
    int images,
    int rows_in,
    int columns_in,
    int rows_out,
    int columns_out,
    int channels) {
  start_successor();
  wait_for_predecessor();
  const int channel = static_cast<int>(thread_number() % channels);
  const int64_t pixel = thread_number() / channels;
  const int64_t image = pixel / columns_out / rows_out;
  if (image >= images) {
    return;
  }
  const Between down = pixels_around<align_corners>(pixel / columns_out % rows_out, rows_in, rows_out);
  const Between across = pixels_around<align_corners>(pixel % columns_out, columns_in, columns_out);
  auto at = [&](int row, int column) {
    return to_float(x.as<T>()[((image * rows_in + row) * columns_in + column) * channels + channel]);
  };
  auto mix = [](float a, float b, float share) { return fmaf(b - a, share, a); };
  const float low = mix(at(down.low, across.low), at(down.high, across.low), down.share);
  const float high = mix(at(down.low, across.high), at(down.high, across.high), down.share);
  out.as<T>()[thread_number()] = from_float<T>(mix(low, high, across.share));
}
