// zmlx/kernel/cuda/convolution.cuh: convolutions of each channel by itself, over images and over time; a thread an element.
#pragma once

#include "zmlx/kernel/cuda/units.cuh"

/// x [N, H, W, C], weight [taps, taps, C]; zeros around x.
template <typename T>
__global__ void __launch_bounds__(256) depthwise_conv(
    Pointer x,
    Pointer weight,
    Pointer out,
    int images,
    int rows_in,
    int columns_in,
    int rows_out,
    int columns_out,
    int channels,
    int row_taps,
    int column_taps,
    int row_stride,
    int column_stride,
    int row_padding,
    int column_padding) {
  start_successor();
  wait_for_predecessor();
  const int channel = static_cast<int>(thread_number() % channels);
  const int64_t pixel = thread_number() / channels;
  const int64_t image = pixel / columns_out / rows_out;
  if (image >= images) {
    return;
  }
  const int top = static_cast<int>(pixel / columns_out % rows_out) * row_stride - row_padding;
  const int left = static_cast<int>(pixel % columns_out) * column_stride - column_padding;
  float sum = 0;
  for (int i = 0; i < row_taps; ++i) {
    for (int j = 0; j < column_taps; ++j) {
      const int row = top + i;
      const int column = left + j;
      if (row >= 0 && row < rows_in && column >= 0 && column < columns_in) {
        const int64_t from = (image * rows_in + row) * columns_in + column;
        const int64_t tap = static_cast<int64_t>(i) * column_taps + j;
        sum = fmaf(
            to_float(x.as<T>()[from * channels + channel]), to_float(weight.as<T>()[tap * channels + channel]), sum);
      }
    }
  }
  out.as<T>()[thread_number()] = from_float<T>(sum);
}

/// Row t of state [B, kept, C] and x [B, T, C] after one another; t counts from the state's first row.
template <typename T>
ZMLX_DEVICE const T* row_in_time(Pointer state, Pointer x, int64_t b, int64_t t, int kept, int tokens, int channels) {
  return t < kept ? state.as<T>() + (b * kept + t) * channels : x.as<T>() + (b * tokens + t - kept) * channels;
}

template <typename T>
__global__ void __launch_bounds__(256) conv1d_silu(
    Pointer x,
    Pointer weight,
    Pointer state,
    Pointer out,
    int batch,
    int tokens,
    int channels,
    int taps) {
  start_successor();
  wait_for_predecessor();
  const int64_t row = thread_number() / channels;
  const int64_t b = row / tokens;
  const int channel = static_cast<int>(thread_number() % channels);
  if (b >= batch) {
    return;
  }
  float y = 0;
  for (int k = 0; k < taps; ++k) {
    const T* at = row_in_time<T>(state, x, b, row % tokens + k, taps - 1, tokens, channels);
    y = fmaf(to_float(at[channel]), to_float(weight.as<T>()[static_cast<int64_t>(channel) * taps + k]), y);
  }
  out.as<T>()[thread_number()] = from_float<T>(y / (1 + expf(-y)));
}

/// The state after x: its last rows, or those that end at each sequence's length.
template <typename T, bool own_lengths>
__global__ void __launch_bounds__(256) conv1d_state(
    Pointer x,
    Pointer state,
    Pointer lengths,
    Pointer out,
    int batch,
    int tokens,
    int channels,
    int kept) {
  start_successor();
  wait_for_predecessor();
  const int64_t row = thread_number() / channels;
  const int64_t b = row / kept;
  const int channel = static_cast<int>(thread_number() % channels);
  if (b >= batch) {
    return;
  }
  int64_t t = tokens;
  if (own_lengths) {
    const int64_t length = lengths.as<int32_t>()[b];
    t = length < 0 ? 0 : length < tokens ? length : tokens;
  }
  out.as<T>()[thread_number()] = row_in_time<T>(state, x, b, t + row % kept, kept, tokens, channels)[channel];
}
