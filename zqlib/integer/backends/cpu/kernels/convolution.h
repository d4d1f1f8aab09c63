// Conv1d with one group: a sum over taps of matrix products, without a copy of shifted inputs.
//
// With channels side by side in memory, frame t of the output reads contiguous bytes that start at
// frame stride * t of the input. A pointwise convolution reads its input where it lies. Others read
// a copy with the padding around it, where frames beyond an utterance's length are zero.
#pragma once

#include <cstring>

#include "product.h"
#include "requantize.h"

namespace zq {
namespace {

constexpr int64_t kSlack = 256;  // bytes that may be read beyond the end of a tensor

// Brings bytes of weights closer that are wanted soon; they may lie beyond the last ones.
void prefetch(const int8_t* weight, int64_t begin, int64_t end) {
  for (; begin < end; begin += 64) __builtin_prefetch(weight + begin, 0, 2);
}

// Into how many pieces the frames of an utterance are cut, so that everybody's part is whole pieces
// with all their channels: a thread then reads in the next step what it wrote in this one, and no
// cache line has two writers.
int64_t cuts_of(int64_t batch, const Worker& worker) {
  return batch % worker.team.size() ? worker.team.size() : 1;
}

bool is_pointwise(const Convolution& conv) { return conv.taps == 1 && conv.padding == 0; }

int64_t row_of_zeros_bytes(const Convolution& conv) { return (conv.channels + kSlack) / 64 * 64; }

int64_t scratch_bytes(const Convolution& conv, int threads) {
  if (is_pointwise(conv)) return threads * row_of_zeros_bytes(conv);
  return conv.batch * (conv.frames + 2 * conv.padding) * conv.channels + kSlack;
}

// Frame t of the padded copy of an utterance is frame t - padding of x, or zero.
void copy_padded(const Convolution& conv, int64_t row) {
  const int64_t channels = conv.channels;
  const int64_t before = conv.padding * channels, valid = conv.lengths[row] * channels;
  const int64_t total = (conv.frames + 2 * conv.padding) * channels;
  uint8_t* to = conv.scratch + row * total;
  std::memset(to, int(conv.zero), before);
  std::memcpy(to + before, conv.x + row * conv.frames * channels, valid);
  std::memset(to + before + valid, int(conv.zero), total - before - valid);
}

Rows rows_of(const Convolution& conv, int64_t row) {
  const int64_t channels = conv.channels;
  const int64_t frames = conv.frames + 2 * conv.padding;
  const uint8_t* first = is_pointwise(conv) ? conv.x : conv.scratch;
  const bool side_by_side = conv.dilation == 1;
  return {first + row * frames * channels, conv.stride * channels, conv.dilation * channels,
          side_by_side ? 1 : conv.taps, side_by_side ? conv.taps * channels : channels};
}

template <class V>
void run(const Convolution& conv, const Worker& worker) {
  const bool pointwise = is_pointwise(conv);
  const uint8_t* zeros = nullptr;
  if (pointwise) {  // everybody has its own, so nobody waits for it
    uint8_t* own = conv.scratch + worker.index * row_of_zeros_bytes(conv);
    std::memset(own, int(conv.zero), conv.channels + 4);
    zeros = own;
  } else {
    worker.share(conv.batch, [&](int64_t row) { copy_padded(conv, row); });
  }
  constexpr int width = panel_width<V>;
  const int64_t panels = (conv.output.channels + width - 1) / width;
  // Many panels of several taps are not cut: their weights outweigh the frames, and are read once.
  const bool cut_frames = pointwise || panels < 4 * worker.team.size();
  const int64_t cuts = cut_frames ? cuts_of(conv.batch, worker) : 1;
  worker.share(conv.batch * cuts * panels, [&](int64_t task) {
    const int64_t panel = task % panels, cut = task / panels % cuts, row = task / panels / cuts;
    const int64_t channel = panel * width, left = conv.output.channels - channel;
    const int64_t columns = left < width ? left : width;
    const int64_t begin = conv.out_frames * cut / cuts, end = conv.out_frames * (cut + 1) / cuts;
    const Rows rows = rows_of(conv, row);
    const int64_t panel_bytes = rows.panel_bytes(width);
    const int8_t* weight = conv.weight + panel * panel_bytes;
    const int8_t* next = weight + panel_bytes;

    const auto multiply_frames = [&](int64_t from, int64_t to, Rows x) {
      if (from >= to) return;
      x.first += from * x.row_stride;
      multiply_rows<V>(to - from, columns, x, weight, conv.bias + channel,
                       [&](const int32_t* tile, int64_t first, int count) {
        prefetch(next, first * panel_bytes / (end - begin),
                 (first + count) * panel_bytes / (end - begin));
        const int64_t out_row = row * conv.out_frames + from + first;
        emit<V>(conv.output, {tile, width, count, columns, channel, out_row, 1});
      });
    };
    // A pointwise convolution reads frames beyond the length from one row of zeros.
    int64_t valid = conv.out_frames;
    if (pointwise) valid = (conv.lengths[row] + conv.stride - 1) / conv.stride;
    const int64_t border = valid < begin ? begin : valid < end ? valid : end;
    multiply_frames(begin, border, rows);
    multiply_frames(border, end, {zeros, 0, 0, 1, rows.run_bytes});
  });
}

}  // namespace
}  // namespace zq
