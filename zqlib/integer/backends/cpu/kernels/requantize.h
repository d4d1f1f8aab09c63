// How accumulators leave a kernel: y = clamp(sum over terms of round(x * m * 2^-e)), or a function
// of y that is held as a table.
#pragma once

#include "arguments.h"
#include "team.h"

namespace zq {
namespace {

// A tile of accumulators on its way out: `rows` of `columns` channels, `pitch` apart, with room to
// read a vector beyond the end. Row r belongs to row `first + r * step` of the output, and the first
// column to `channel` of it.
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
      if (out.table) static_cast<uint8_t*>(out.values)[at] = out.table[sum - out.low];
      else if (out.wide) static_cast<int32_t*>(out.values)[at] = int32_t(sum);
      else static_cast<uint8_t*>(out.values)[at] = uint8_t(sum + out.zero);
    }
  }
}

// What a term adds to one vector of channels, row after row: add(row, element of the output, x).
// Constants stay in registers, and sizes in locals: a store of bytes may change anything else.
template <class V, class Add>
void scale_rows(const Output& out, const Term& term, const Tile& tile, int64_t c, Add add) {
  const int rows = tile.rows;
  const int64_t channel = tile.channel + c, pitch = tile.pitch;
  const int64_t first = tile.first * out.channels + channel, step = tile.step * out.channels;
  const int32_t* own = tile.values + c;
  const auto each_row = [=](auto scaled) {
    int64_t at = first;
    for (int r = 0; r < rows; ++r, at += step) add(r, at, scaled(r, at));
  };
  if (!term.values && term.upper) {
    const auto by = V::upper_multiplier(term.m + channel, term.e + channel);
    return each_row([=](int r, int64_t) { return V::scale(V::load(own + r * pitch), by); });
  }
  const auto by = V::multiplier(term.m + channel, term.e + channel);
  if (!term.values) {
    each_row([=](int r, int64_t) { return V::scale(V::load(own + r * pitch), by); });
  } else if (term.wide) {
    const auto* values = static_cast<const int32_t*>(term.values);
    each_row([=](int, int64_t at) { return V::scale(V::load(values + at), by); });
  } else {
    const auto* values = static_cast<const uint8_t*>(term.values);
    const auto zero = V::fill(int32_t(-term.zero));
    each_row([=](int, int64_t at) { return V::scale(V::add(V::widen(values + at), zero), by); });
  }
}

// One vector of channels: all terms but the last are summed up, the last one ends in the output.
template <class V>
void requantize_vector(const Output& out, const Tile& tile, int64_t c, int count) {
  using Int = typename V::Int;
  Int sums[kTileRows];
  Int* sum = sums;
  const int64_t last = out.term_count - 1;
  for (int64_t t = 0; t < last; ++t) {
    scale_rows<V>(out, out.terms[t], tile, c, [=](int r, int64_t, Int x) {
      sum[r] = t ? V::add(sum[r], x) : x;
    });
  }
  const auto low = V::fill(int32_t(out.low)), high = V::fill(int32_t(out.high));
  const auto zero = V::fill(int32_t(out.zero));
  const auto finish = [&](auto store) {
    if (last == 0) {
      scale_rows<V>(out, out.terms[0], tile, c, [=](int, int64_t at, Int x) {
        store(at, V::clamp(x, low, high));
      });
    } else {
      scale_rows<V>(out, out.terms[last], tile, c, [=](int r, int64_t at, Int x) {
        store(at, V::clamp(V::add(sum[r], x), low, high));
      });
    }
  };
  auto* words = static_cast<int32_t*>(out.values);
  auto* bytes = static_cast<uint8_t*>(out.values);
  if (out.table) {
    const uint8_t* table = out.table - out.low;
    finish([=](int64_t at, Int x) {
      int32_t y[V::lanes];
      V::store(y, x);
      for (int i = 0; i < count; ++i) bytes[at + i] = table[y[i]];
    });
  } else if (out.wide) {
    finish([=](int64_t at, Int x) { V::store(words + at, x, count); });
  } else if (count == V::lanes) {
    finish([=](int64_t at, Int x) { V::store_bytes(bytes + at, V::add(x, zero), V::lanes); });
  } else {
    finish([=](int64_t at, Int x) { V::store_bytes(bytes + at, V::add(x, zero), count); });
  }
}

// What most convolutions come to: one vector of channels of their own accumulators, to bytes.
template <class V>
void requantize_to_bytes(const Output& out, const Tile& tile, int64_t c) {
  const int64_t channel = tile.channel + c, pitch = tile.pitch, step = tile.step * out.channels;
  const auto by = V::upper_multiplier(out.terms->m + channel, out.terms->e + channel);
  const typename V::ByteRows bytes(out.low, out.high, out.zero);
  const int32_t* x = tile.values + c;
  uint8_t* to = static_cast<uint8_t*>(out.values) + tile.first * out.channels + channel;
  int rows = tile.rows;
  for (; rows >= 4; rows -= 4, x += 4 * pitch, to += 4 * step) {
    bytes.store(to, step, V::scale(V::load(x), by), V::scale(V::load(x + pitch), by),
                V::scale(V::load(x + 2 * pitch), by), V::scale(V::load(x + 3 * pitch), by));
  }
  for (; rows; --rows, x += pitch, to += step) bytes.store(to, V::scale(V::load(x), by));
}

template <class V>
void emit(const Output& out, const Tile& tile) {
  if (out.term_count && !out.fits_int32) return requantize_wide(out, tile);
  const bool to_bytes = out.term_count == 1 && !out.terms->values && out.terms->upper &&
                        !out.wide && !out.table;
  for (int64_t c = 0; c < tile.columns; c += V::lanes) {
    const int count = tile.columns - c < V::lanes ? int(tile.columns - c) : V::lanes;
    if (to_bytes && count == V::lanes) {
      requantize_to_bytes<V>(out, tile, c);
      continue;
    }
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
