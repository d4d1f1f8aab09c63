// How accumulators leave a kernel: y = clamp(sum over terms of round(x * m * 2^-e)).
#pragma once

#include "arguments.h"
#include "team.h"

namespace zq {
namespace {

// A tile of accumulators on its way out: `rows` of `columns` channels, `pitch` apart. Row r belongs
// to row `first + r * step` of the output, and the first column to `channel` of it.
struct Tile {
  const int32_t* values;
  int64_t pitch;
  int rows;
  int64_t columns, channel, first, step;

  int64_t row(int r) const { return first + r * step; }
};

constexpr int kTileRows = 32;  // at most

int64_t rounded(int64_t x, int32_t m, int32_t e) {
  return (x * m + (int64_t(1) << (e - 1))) >> e;
}

// The general case, in 64 bits.
void requantize_wide(const Output& out, const Tile& tile) {
  for (int r = 0; r < tile.rows; ++r) {
    for (int64_t c = 0; c < tile.columns; ++c) {
      const int64_t channel = tile.channel + c, at = tile.row(r) * out.channels + channel;
      int64_t sum = 0;
      for (int64_t t = 0; t < out.term_count; ++t) {
        const Term& term = out.terms[t];
        int64_t x = tile.values ? tile.values[r * tile.pitch + c] : 0;
        if (term.values) {
          x = term.wide ? static_cast<const int32_t*>(term.values)[at]
                        : static_cast<const uint8_t*>(term.values)[at] - term.zero;
        }
        sum += rounded(x, term.m[channel], term.e[channel]);
      }
      sum = sum < out.low ? out.low : sum > out.high ? out.high : sum;
      if (out.wide) static_cast<int32_t*>(out.values)[at] = int32_t(sum);
      else static_cast<uint8_t*>(out.values)[at] = uint8_t(sum + out.zero);
    }
  }
}

// One term of one vector of channels, for row r.
template <class V>
typename V::Int term_of(const Output& out, const Term& term, const Tile& tile, int64_t c, int r,
                        const typename V::Multiplier& multiplier) {
  const int64_t at = tile.row(r) * out.channels + tile.channel + c;
  typename V::Int x;
  if (!term.values) x = V::load(tile.values + r * tile.pitch + c);
  else if (term.wide) x = V::load(static_cast<const int32_t*>(term.values) + at);
  else x = V::add(V::widen(static_cast<const uint8_t*>(term.values) + at),
                  V::fill(int32_t(-term.zero)));
  return V::scale(x, multiplier);
}

template <class V>
void store_result(const Output& out, int64_t at, typename V::Int x, int count) {
  if (out.wide) V::store(static_cast<int32_t*>(out.values) + at, x, count);
  else V::store_bytes(static_cast<uint8_t*>(out.values) + at,
                      V::add(x, V::fill(int32_t(out.zero))), count);
}

// The terms of a vector of channels one after the other, so that their constants stay in registers.
template <class V>
void requantize_vector(const Output& out, const Tile& tile, int64_t c, int count) {
  typename V::Int sum[kTileRows];
  for (int r = 0; r < tile.rows; ++r) sum[r] = V::zero();
  const auto low = V::fill(int32_t(out.low)), high = V::fill(int32_t(out.high));
  for (int64_t t = 0; t < out.term_count; ++t) {
    const Term& term = out.terms[t];
    const auto multiplier = V::multiplier(term.m + tile.channel + c, term.e + tile.channel + c);
    for (int r = 0; r < tile.rows; ++r) {
      sum[r] = V::add(sum[r], term_of<V>(out, term, tile, c, r, multiplier));
    }
  }
  for (int r = 0; r < tile.rows; ++r) {
    const int64_t at = tile.row(r) * out.channels + tile.channel + c;
    store_result<V>(out, at, V::clamp(sum[r], low, high), count);
  }
}

template <class V>
void emit(const Output& out, const Tile& tile) {
  if (out.term_count && !out.fits_int32) return requantize_wide(out, tile);
  for (int64_t c = 0; c < tile.columns; c += V::lanes) {
    const int count = tile.columns - c < V::lanes ? int(tile.columns - c) : V::lanes;
    if (out.term_count) {
      requantize_vector<V>(out, tile, c, count);
      continue;
    }
    for (int r = 0; r < tile.rows; ++r) {
      const int64_t at = tile.row(r) * out.channels + tile.channel + c;
      V::store(static_cast<int32_t*>(out.values) + at, V::load(tile.values + r * tile.pitch + c),
               count);
    }
  }
}

template <class V>
void run(const Requantization& step, const Worker& worker) {
  const int64_t tiles = (step.rows + kTileRows - 1) / kTileRows;
  worker.share(tiles, [&](int64_t task) {
    const int64_t first = task * kTileRows, left = step.rows - first;
    const int rows = left < kTileRows ? int(left) : kTileRows;
    emit<V>(step.output, {nullptr, 0, rows, step.output.channels, 0, first, 1});
  });
}

}  // namespace
}  // namespace zq
