// Attention with relative positions: softmax((q + u) k + shift((q + v) p)) v, head by head.
//
// Keys, positions and values take the place of weights: they are packed into panels when a head
// begins. The products with u and v, and the offset of the queries' bytes, are biases of columns.
#pragma once

#include "product.h"
#include "softmax.h"

namespace zq {
namespace {

// What one worker needs for one head; the layout depends on the sizes only.
template <class V>
struct Workspace {
  static constexpr int width = panel_width<V>;
  int64_t frames, size;
  int64_t key_panels = panels(frames), position_panels = panels(2 * frames - 1);
  int64_t score_pitch = key_panels * width, distance_pitch = position_panels * width;
  int64_t weight_bytes = (frames + 3) / 4 * 4;
  uint8_t* end = nullptr;
  int8_t* keys = take<int8_t>(key_panels * packed(size));
  int8_t* positions = take<int8_t>(position_panels * packed(size));
  int8_t* values = take<int8_t>(panels(size) * packed(frames));
  int32_t* key_bias = take<int32_t>(score_pitch);
  int32_t* position_bias = take<int32_t>(distance_pitch);
  int32_t* value_bias = take<int32_t>(panels(size) * width);
  int32_t* scores = take<int32_t>(V::rows * score_pitch);
  int32_t* distances = take<int32_t>(V::rows * distance_pitch);
  int64_t* powers = take<int64_t>(frames);
  uint8_t* weights = take<uint8_t>(V::rows * weight_bytes);
  typename V::Operand* operands = take<typename V::Operand>(
      widens<V> ? V::rows * whole<V>(frames > size ? frames : size) : 0);

  Workspace(const Attention& a, uint8_t* begin)
      : frames(a.frames), size(a.channels / a.heads), end(begin) {}

  static int64_t panels(int64_t columns) { return (columns + width - 1) / width; }
  static int64_t packed(int64_t rows) { return whole<V>(rows) * width; }  // of one panel

  template <class T>
  T* take(int64_t count) {
    uint8_t* begin = end;
    end += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(begin);
  }
};

template <class V>
int64_t scratch_bytes(const Attention& a, int threads) {
  return threads * (Workspace<V>(a, nullptr).end - static_cast<uint8_t*>(nullptr));
}

// Packs columns whose bytes lie side by side in memory, `stride` apart: keys and positions.
template <class V>
void pack_columns(const uint8_t* from, int64_t rows, int64_t columns, int64_t stride, int8_t* to) {
  constexpr int width = panel_width<V>;
  constexpr int deep = depth<V>;
  for (int64_t panel = 0; panel < columns; panel += width) {
    for (int64_t row = 0; row < rows; row += deep) {
      const uint8_t signs[4] = {0x80, 0x80, 0x80, 0x80}, ones[4] = {0xff, 0xff, 0xff, 0xff};
      uint32_t inside = 0, sign;
      std::memcpy(&inside, ones, rows - row < deep ? rows - row : deep);
      std::memcpy(&sign, signs, 4);
      for (int64_t c = panel; c < panel + width; ++c, to += deep) {
        uint32_t bytes = sign;
        if (c < columns) std::memcpy(&bytes, from + c * stride + row, deep);
        bytes = (bytes ^ sign) & inside;
        std::memcpy(to, &bytes, deep);
      }
    }
  }
}

// Packs rows, `stride` apart: values. What lies beyond the last row is multiplied by weights of 0,
// and what lies beyond the last column is not read again.
template <class V>
void pack_rows(const uint8_t* from, int64_t rows, int64_t columns, int64_t stride, int8_t* to) {
  constexpr int deep = depth<V>;
  int8_t* const begin = to;
  for (int64_t panel = 0; panel < columns; panel += panel_width<V>) {
    for (int64_t first = 0; first < rows; first += deep) {
      const uint8_t* lane[deep];
      for (int64_t i = 0; i < deep; ++i) {
        lane[i] = from + (first + i < rows ? first + i : rows - 1) * stride + panel;
      }
      for (int c = 0; c < 2; ++c, to += deep * V::lanes) {
        V::interleave(lane, reinterpret_cast<uint8_t*>(to));
        for (auto& row : lane) row += V::lanes;
      }
    }
  }
  for (int8_t* byte = begin; byte < to; ++byte) *byte = int8_t(*byte ^ 0x80);
}

// The product of a row of biases with every packed column, and of -128, the bytes' offset, as far as
// dot does not take it off.
template <class V>
void fold_bias(const int32_t* bias, const uint8_t* from, int64_t size, int64_t columns,
               int64_t column_stride, int32_t* to) {
  for (int64_t c = 0; c < columns; ++c) {
    uint32_t sum = 0;
    for (int64_t k = 0; k < size; ++k) {
      sum += uint32_t(bias[k] - 128 + V::offset) * uint32_t(from[c * column_stride + k] - 128);
    }
    to[c] = int32_t(sum);
  }
}

// What dot takes off the product of unsigned bytes with every packed column.
template <class V>
void fold_offset(const int8_t* packed, int64_t bytes, int64_t panels, int32_t* to) {
  constexpr int width = panel_width<V>;
  std::memset(to, 0, panels * width * 4);
  if (V::offset == 0) return;
  for (int64_t panel = 0; panel < panels; ++panel, to += width) {
    for (int64_t i = 0; i < bytes; ++i, ++packed) to[i / depth<V> % width] += V::offset * *packed;
  }
}

template <class V>
void attend(const Attention& a, int64_t row, int64_t head, const Workspace<V>& w) {
  constexpr int width = panel_width<V>;
  const int64_t n = a.frames, size = w.size, start = row * n * a.channels + head * size;
  const uint8_t* position = a.position + head * size;
  pack_columns<V>(a.key + start, size, n, a.channels, w.keys);
  pack_columns<V>(position, size, 2 * n - 1, a.channels, w.positions);
  pack_rows<V>(a.value + start, n, size, a.channels, w.values);
  fold_bias<V>(a.content_bias + head * size, a.key + start, size, n, a.channels, w.key_bias);
  fold_bias<V>(a.distance_bias + head * size, position, size, 2 * n - 1, a.channels,
               w.position_bias);
  fold_offset<V>(w.values, w.packed(n), w.panels(size), w.value_bias);
  std::memset(w.weights, 0, V::rows * w.weight_bytes);

  for (int64_t i = 0; i < n; i += V::rows) {
    const int rows = n - i < V::rows ? int(n - i) : V::rows;
    const Rows query =
        operands<V>(a.query + start + i * a.channels, a.channels, rows, size, w.operands);
    for (int64_t p = 0; p < w.key_panels; ++p) {
      multiply<V>(rows, width, query, w.keys + p * panel_bytes<V>(query), w.key_bias + p * width,
                  w.scores + p * width, w.score_pitch);
    }
    // Row i meets the distances n - 1 - i ... 2n - 2 - i.
    for (int64_t p = (n - i - rows) / width; p <= (2 * n - 2 - i) / width; ++p) {
      multiply<V>(rows, width, query, w.positions + p * panel_bytes<V>(query),
                  w.position_bias + p * width, w.distances + p * width, w.distance_pitch);
    }
    int64_t totals[V::rows];
    for (int r = 0; r < rows; ++r) {
      const int32_t* distance = w.distances + r * w.distance_pitch + n - 1 - (i + r);
      totals[r] = softmax_weights<V>(a, w.scores + r * w.score_pitch, distance, a.lengths[row],
                                     w.powers, w.weights + r * w.weight_bytes);
    }
    const Rows weights = operands<V>(w.weights, w.weight_bytes, rows, n, w.operands);
    for (int64_t column = 0; column < size; column += width) {
      alignas(64) int32_t tile[V::rows * width];
      const int8_t* panel = w.values + column / width * panel_bytes<V>(weights);
      const int64_t columns = size - column < width ? size - column : width;
      multiply<V>(rows, columns, weights, panel, w.value_bias + column, tile, width);
      for (int r = 0; r < rows; ++r) {
        divide_by_total(totals[r], columns, tile + r * width);
        std::memcpy(a.out + start + (i + r) * a.channels + column, tile + r * width, 4 * columns);
      }
    }
  }
}

template <class V>
void run(const Attention& a, const Worker& worker) {
  const int64_t bytes = scratch_bytes<V>(a, 1);
  const Workspace<V> workspace(a, a.scratch + worker.index * bytes);
  worker.share(a.batch * a.heads, [&](int64_t task) {
    attend<V>(a, task / a.heads, task % a.heads, workspace);
  });
}

}  // namespace
}  // namespace zq
