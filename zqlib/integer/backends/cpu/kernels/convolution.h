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

// Frames that are widened together: few enough to stay near while they meet all panels.
template <class V>
constexpr int64_t widened_frames = 8 * V::rows;

template <class V>
int64_t widened_bytes(const Convolution& conv) {
  const int64_t operands = widened_frames<V> * whole<V>(conv.channels);
  return (operands * int64_t(sizeof(typename V::Operand)) + 63) / 64 * 64;
}

template <class V>
int64_t scratch_bytes(const Convolution& conv, int threads) {
  if (is_pointwise(conv)) {
    return threads * (widens<V> ? widened_bytes<V>(conv) : row_of_zeros_bytes(conv));
  }
  return conv.batch * (conv.frames + 2 * conv.padding) * conv.channels *
             int64_t(sizeof(typename V::Operand)) +
         kSlack;
}

// Frame t of the padded copy of an utterance is frame t - padding of x, or zero.
template <class V>
void copy_padded(const Convolution& conv, int64_t row) {
  const int64_t channels = conv.channels;
  const int64_t before = conv.padding * channels, valid = conv.lengths[row] * channels;
  const int64_t total = (conv.frames + 2 * conv.padding) * channels;
  auto* to = reinterpret_cast<typename V::Operand*>(conv.scratch) + row * total;
  fill(conv.zero, before, to);
  copy(conv.x + row * conv.frames * channels, valid, to + before);
  fill(conv.zero, total - before - valid, to + before + valid);
}

template <class V>
Rows rows_of(const Convolution& conv, int64_t row) {
  const int64_t bytes = conv.channels * int64_t(sizeof(typename V::Operand));
  const int64_t frames = conv.frames + 2 * conv.padding;
  const uint8_t* first = is_pointwise(conv) ? conv.x : conv.scratch;
  const bool side_by_side = conv.dilation == 1;
  return {first + row * frames * bytes, conv.stride * bytes, conv.dilation * bytes,
          side_by_side ? 1 : conv.taps, side_by_side ? conv.taps * bytes : bytes};
}

// A pointwise convolution whose bytes are widened first, a block of frames at a time. Frames beyond
// an utterance's length are zero.
template <class V>
void run_widened(const Convolution& conv, const Worker& worker) {
  constexpr int width = panel_width<V>;
  const int64_t channels = conv.channels, cuts = cuts_of(conv.batch, worker);
  const int64_t longest = (conv.out_frames + cuts - 1) / cuts;
  const int64_t blocks = cuts * ((longest + widened_frames<V> - 1) / widened_frames<V>);
  auto* own = reinterpret_cast<typename V::Operand*>(conv.scratch +
                                                     worker.index * widened_bytes<V>(conv));
  worker.share(conv.batch * blocks, [&](int64_t task) {
    const int64_t row = task / blocks, block = task % blocks;
    const int64_t begin = conv.out_frames * block / blocks;
    const int64_t end = conv.out_frames * (block + 1) / blocks;
    if (begin == end) return;
    const int64_t valid = (conv.lengths[row] + conv.stride - 1) / conv.stride;
    const int64_t border = valid < begin ? begin : valid < end ? valid : end;
    const uint8_t* x = conv.x + (row * conv.frames + begin * conv.stride) * channels;
    const Rows rows = operands<V>(x, conv.stride * channels, border - begin, channels, own);
    const int64_t pitch = whole<V>(channels);
    fill(conv.zero, (end - border) * pitch, own + (border - begin) * pitch);
    const int8_t* weight = conv.weight;
    for (int64_t channel = 0; channel < conv.output.channels; channel += width) {
      const int64_t left = conv.output.channels - channel, columns = left < width ? left : width;
      multiply_rows<V>(end - begin, columns, rows, weight, conv.bias + channel,
                       [&](const int32_t* tile, int64_t first, int count) {
        emit<V>(conv.output, {tile, width, count, columns, channel,
                              row * conv.out_frames + begin + first, 1});
      });
      weight += panel_bytes<V>(rows);
    }
  });
}

template <class V>
void run(const Convolution& conv, const Worker& worker) {
  const bool pointwise = is_pointwise(conv);
  if constexpr (widens<V>) {
    if (pointwise) return run_widened<V>(conv, worker);
  }
  const uint8_t* zeros = nullptr;
  if (pointwise) {  // everybody has its own, so nobody waits for it
    uint8_t* own = conv.scratch + worker.index * row_of_zeros_bytes(conv);
    std::memset(own, int(conv.zero), conv.channels + 4);
    zeros = own;
  } else {
    worker.share(conv.batch, [&](int64_t row) { copy_padded<V>(conv, row); });
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
    const Rows rows = rows_of<V>(conv, row);
    const int64_t bytes = panel_bytes<V>(rows);
    const int8_t* weight = conv.weight + panel * bytes;
    const int8_t* next = weight + bytes;

    const auto multiply_frames = [&](int64_t from, int64_t to, Rows x) {
      if (from >= to) return;
      x.first += from * x.row_stride;
      multiply_rows<V>(to - from, columns, x, weight, conv.bias + channel,
                       [&](const int32_t* tile, int64_t first, int count) {
        prefetch(next, first * bytes / (end - begin), (first + count) * bytes / (end - begin));
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
