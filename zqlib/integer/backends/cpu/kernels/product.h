// The product of unsigned activations and signed weights: a tile of some rows by one panel.
#pragma once

#include <cstddef>
#include <cstring>

#include "arguments.h"

namespace zq {
namespace {

// Two vectors of output channels side by side make a panel.
template <class V>
constexpr int panel_width = 2 * V::lanes;

// Activations that meet weights in a lane.
template <class V>
constexpr int depth = 4 / int(sizeof(typename V::Operand));

// Whether activations are multiplied as other numbers than the bytes that tensors hold.
template <class V>
constexpr bool widens = sizeof(typename V::Operand) > 1;

template <class Operand>
void copy(const uint8_t* __restrict from, int64_t count, Operand* __restrict to) {
  if constexpr (sizeof(Operand) == 1) std::memcpy(to, from, count);
  else for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

template <class Operand>
void fill(int64_t zero, int64_t count, Operand* to) {
  if constexpr (sizeof(Operand) == 1) std::memset(to, int(zero), count);
  else for (int64_t i = 0; i < count; ++i) to[i] = Operand(zero);
}

// The left operand: row r is the concatenation, over runs, of the operands' bytes at
// first + r * row_stride + run * run_stride. A dilated tap, or a tap along the frames of an image,
// is a run of its own; the taps of other convolutions lie side by side and make one run.
struct Rows {
  const uint8_t* first;
  ptrdiff_t row_stride, run_stride;
  int64_t runs, run_bytes;

  int64_t fours() const { return (run_bytes + 3) / 4; }
};

// Operands of whole lanes.
template <class V>
int64_t whole(int64_t count) { return (count + depth<V> - 1) / depth<V> * depth<V>; }

// `count` bytes of some rows, widened to `to` where that is needed, with what lies beyond the end of
// a row up to a whole lane.
template <class V>
Rows operands(const uint8_t* first, ptrdiff_t stride, int64_t rows, int64_t count,
              typename V::Operand* to) {
  if constexpr (!widens<V>) return {first, stride, 0, 1, count};
  const int64_t pitch = whole<V>(count), bytes = int64_t(sizeof *to);
  for (int64_t r = 0; r < rows; ++r) copy(first + r * stride, pitch, to + r * pitch);
  return {reinterpret_cast<const uint8_t*>(to), pitch * bytes, 0, 1, count * bytes};
}

template <class V>
int64_t panel_bytes(const Rows& x) { return x.runs * x.fours() * panel_width<V> * depth<V>; }

// R rows by the first C vectors of a panel, held in registers: row r of out, `pitch` apart, is bias
// + row r of x times the panel. A run is read in fours, up to 3 bytes beyond its end; the weights
// there are 0.
template <class V, int R, int C>
void multiply(const Rows& x, const int8_t* panel, const int32_t* bias, int32_t* out,
              int64_t pitch) {
  typename V::Int sum[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) sum[r][c] = V::load(bias + c * V::lanes);
  }
  const int64_t fours = x.fours();
  const ptrdiff_t stride = x.row_stride;
  for (int64_t run = 0; run < x.runs; ++run) {
    const uint8_t* row = x.first + run * x.run_stride;
    for (int64_t k = 0; k < fours; ++k, row += 4, panel += depth<V> * panel_width<V>) {
      typename V::Weights weights[C];
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) weights[c] = V::load_weights(panel + depth<V> * c * V::lanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const auto bytes = V::broadcast(row + r * stride);
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) sum[r][c] = V::dot(sum[r][c], bytes, weights[c]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) V::store(out + r * pitch + c * V::lanes, sum[r][c]);
  }
}

template <class V, int R = V::rows>
void multiply(int rows, int64_t columns, const Rows& x, const int8_t* panel, const int32_t* bias,
              int32_t* out, int64_t pitch) {
  if constexpr (R > 0) {
    if (rows < R) return multiply<V, R - 1>(rows, columns, x, panel, bias, out, pitch);
    if (columns > V::lanes) multiply<V, R, 2>(x, panel, bias, out, pitch);
    else multiply<V, R, 1>(x, panel, bias, out, pitch);
  }
}

// All `rows` of x by the first `columns` of a panel, in tiles of one height but the last, which are
// given to done(tile, first row, rows).
template <class V, class Done>
void multiply_rows(int64_t rows, int64_t columns, const Rows& x, const int8_t* panel,
                   const int32_t* bias, Done done) {
  alignas(64) int32_t tile[V::rows * panel_width<V> + V::lanes];
  const int64_t tiles = (rows + V::rows - 1) / V::rows, most = (rows + tiles - 1) / tiles;
  Rows part = x;
  for (int64_t first = 0; first < rows; first += most, part.first += most * x.row_stride) {
    const int height = int(rows - first < most ? rows - first : most);
    multiply<V>(height, columns, part, panel, bias, tile, panel_width<V>);
    done(tile, first, height);
  }
}

}  // namespace
}  // namespace zq
