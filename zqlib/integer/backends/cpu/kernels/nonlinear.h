// Powers, divisions and LayerNorm in 64-bit integers, as `zqlib/integer/nonlinear.py` defines them.
//
// Everything that is one number per row is divided and rooted as it is. What is divided per element
// has its row's divisor in common: it is multiplied by a reciprocal and corrected.
#pragma once

#include "requantize.h"

namespace zq {
namespace {

constexpr int kMaxShift = 62;
constexpr int kLinear = 21840;      // of the polynomial of exp2
constexpr int kDeviationBits = 19;  // of LayerNorm's deviations
constexpr int kRatioBits = 30;
constexpr int kRootBits = 5;
constexpr int kMaxChannels = 4096;

// 2^(x / 2^16) in steps of 2^-30, for x <= 0.
int64_t exp2(int64_t x) {
  const int64_t whole = x >> 16, fraction = x & 0xffff;
  const int64_t square = ((fraction * fraction) >> 16) * ((1 << 15) - kLinear);
  const int64_t mantissa = (int64_t(1) << 31) + fraction * kLinear + square;
  const int64_t shift = 1 - whole < kMaxShift ? 1 - whole : kMaxShift;
  return mantissa >> shift;
}

int digits_of(int64_t x) { return 64 - __builtin_clzll(uint64_t(x)); }  // for x > 0

// floor(sqrt(x)) by Newton's method, for 0 < x < 2^62. It begins at the mean of 2^k and x / 2^k,
// which is never too small and hardly 7 % too large, and falls until it is the floor.
int64_t root_of(int64_t x) {
  const int k = digits_of(x) / 2;
  int64_t root = (x >> (k + 1)) + (int64_t(1) << k >> 1) + 1;
  for (int64_t quotient; (quotient = x / root) < root;) root = (root + quotient) >> 1;
  return root;
}

// One row of a LayerNorm's input, as it is held.
template <class T>
void read_row(const T* x, int64_t zero, int64_t n, int64_t* values) {
  for (int64_t c = 0; c < n; ++c) values[c] = x[c] - zero;
}

// deviation[c] = channels * (x - mean), cut to 19 binary digits; returns the root of the sum of
// their squares in steps of 2^-5.
int64_t deviate(int64_t eps, int64_t n, int64_t* deviation) {
  int64_t sum = 0, largest = 0;
  for (int64_t c = 0; c < n; ++c) sum += deviation[c];
  for (int64_t c = 0; c < n; ++c) {
    const int64_t d = deviation[c] * n - sum, size = d < 0 ? -d : d;
    deviation[c] = d;
    largest = size > largest ? size : largest;
  }
  const int excess = digits_of(largest | 1) - kDeviationBits, shift = excess > 0 ? excess : 0;
  const int64_t half = (int64_t(1) << shift) >> 1;
  int64_t total = eps >> (2 * shift < kMaxShift ? 2 * shift : kMaxShift);
  for (int64_t c = 0; c < n; ++c) {
    deviation[c] = (deviation[c] + half) >> shift;
    total += deviation[c] * deviation[c];
  }
  return root_of((total < 1 ? 1 : total) << (2 * kRootBits));
}

// floor(d * 2^35 / root): the product with 2^59 / root is at most one off.
int64_t ratio(int64_t d, int64_t root, int64_t reciprocal) {
  const int64_t guess = (d * reciprocal) >> 24;
  const int64_t rest = int64_t(uint64_t(d) << (kRatioBits + kRootBits)) - guess * root;
  return rest < 0 ? guess - 1 : rest >= root ? guess + 1 : guess;
}

// The affine part, one rounding and the clamp, from deviations to results.
void rescale(const LayerNorm& norm, int64_t root, int64_t* values) {
  const int64_t reciprocal = (int64_t(1) << 59) / root;
  const int64_t n = norm.channels, low = norm.low, high = norm.high;
  const int64_t* __restrict m = norm.m;
  const int64_t* __restrict e = norm.e;
  const int64_t* __restrict rounding = norm.rounding;
  int64_t* __restrict value = values;
  for (int64_t c = 0; c < n; ++c) {
    const int64_t y = (ratio(value[c], root, reciprocal) * m[c] + rounding[c]) >> e[c];
    value[c] = y < low ? low : y > high ? high : y;
  }
}

template <class T>
void write_row(const int64_t* values, int64_t zero, int64_t n, T* out) {
  for (int64_t c = 0; c < n; ++c) out[c] = T(values[c] + zero);
}

template <class V>
void run(const LayerNorm& norm, const Worker& worker) {
  worker.share_rows(norm.rows, [&](int64_t row) {
    alignas(64) int64_t values[kMaxChannels];
    const int64_t n = norm.channels, at = row * n;
    if (norm.x_wide) read_row(static_cast<const int32_t*>(norm.x) + at, 0, n, values);
    else read_row(static_cast<const uint8_t*>(norm.x) + at, norm.x_zero, n, values);
    rescale(norm, deviate(norm.eps, n, values), values);
    if (norm.out_wide) write_row(values, 0, n, static_cast<int32_t*>(norm.out) + at);
    else write_row(values, norm.out_zero, n, static_cast<uint8_t*>(norm.out) + at);
  });
}

}  // namespace
}  // namespace zq
