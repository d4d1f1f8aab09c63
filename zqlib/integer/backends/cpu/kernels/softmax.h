// One row of scores to attention weights, and the division by their sum.
#pragma once

#include "nonlinear.h"

namespace zq {
namespace {

// The largest score; scores become what they are below it, in exponents of two. In 64 bits.
void exponents_wide(const Attention& a, const int32_t* content, const int32_t* distance,
                    int64_t valid, int64_t* x) {
  const int64_t least = INT32_MIN, most = INT32_MAX;
  const auto content_m = int32_t(a.content_m), content_e = int32_t(a.content_e);
  const auto distance_m = int32_t(a.distance_m), distance_e = int32_t(a.distance_e);
  const auto exponent_m = int32_t(a.exponent_m), exponent_e = int32_t(a.exponent_e);
  int64_t top = least;
  for (int64_t j = 0; j < valid; ++j) {
    const int64_t sum = rounded(content[j], content_m, content_e) +
                        rounded(distance[j], distance_m, distance_e);
    x[j] = sum < least ? least : sum > most ? most : sum;
    top = x[j] > top ? x[j] : top;
  }
  for (int64_t j = 0; j < valid; ++j) {
    const int64_t below = x[j] - top < least ? least : x[j] - top;
    x[j] = rounded(below, exponent_m, exponent_e);
  }
}

// The same where everything fits int32. Writes up to a vector beyond the last valid key.
template <class V>
void exponents(const Attention& a, const int32_t* content, const int32_t* distance, int64_t valid,
               int32_t* x) {
  const auto multiplier = [](int64_t m, int64_t e) {
    int32_t ms[V::lanes], es[V::lanes];
    for (int i = 0; i < V::lanes; ++i) ms[i] = int32_t(m), es[i] = int32_t(e);
    return V::multiplier(ms, es);
  };
  const auto by_content = multiplier(a.content_m, a.content_e);
  const auto by_distance = multiplier(a.distance_m, a.distance_e);
  for (int64_t j = 0; j < valid; j += V::lanes) {
    V::store(x + j, V::add(V::scale(V::load(content + j), by_content),
                           V::scale(V::load(distance + j), by_distance)));
  }
  int32_t top = INT32_MIN;
  for (int64_t j = 0; j < valid; ++j) top = x[j] > top ? x[j] : top;
  const auto by_exponent = multiplier(a.exponent_m, a.exponent_e);
  for (int64_t j = 0; j < valid; j += V::lanes) {
    V::store(x + j, V::scale(V::add(V::load(x + j), V::fill(-top)), by_exponent));
  }
}

// 2^(x / 2^16) in steps of 2^-30, for x <= 0; all but the shift of a power below 1 fits 32 bits.
uint32_t exp2_narrow(int32_t x) {
  const uint32_t fraction = uint32_t(x) & 0xffff, shift = uint32_t(1 - (x >> 16));
  const uint32_t square = ((fraction * fraction) >> 16) * ((1u << 15) - kLinear);
  const uint32_t mantissa = (1u << 31) + fraction * kLinear + square;
  return shift < 32 ? mantissa >> shift : 0;
}

// Powers to weights in steps of 1/255 of the largest, which is 2^30; their sum.
template <class Power>
int64_t round_weights(const Power* powers, int64_t valid, uint8_t* weights) {
  int64_t total = 0;
  for (int64_t j = 0; j < valid; ++j) {
    weights[j] = uint8_t((int64_t(powers[j]) * 255 + (int64_t(1) << 29)) >> 30);
    total += weights[j];
  }
  return total;
}

// Returns the sum of the weights. `room` holds an int64 for every key; the weights of keys beyond
// the length stay as they are.
template <class V>
int64_t softmax_weights(const Attention& a, const int32_t* content, const int32_t* distance,
                        int64_t valid, int64_t* room, uint8_t* weights) {
  if (a.fits_int32) {
    auto* x = reinterpret_cast<int32_t*>(room);
    exponents<V>(a, content, distance, valid, x);
    auto* powers = reinterpret_cast<uint32_t*>(room);
    for (int64_t j = 0; j < valid; ++j) powers[j] = exp2_narrow(x[j]);
    return round_weights(powers, valid, weights);
  }
  exponents_wide(a, content, distance, valid, room);
  for (int64_t j = 0; j < valid; ++j) room[j] = exp2(room[j]);
  return round_weights(room, valid, weights);
}

// Sums of int8 values with `total` weight to their means in steps of 1/255, rounded half up. The
// quotient of the numerator is below 2^16 and the numerator below 2^41, so that the reciprocal
// leaves it at most one too small.
void divide_by_total(int64_t total, int64_t size, int32_t* sums) {
  const int64_t divisor = 2 * total, reciprocal = (int64_t(1) << 46) / divisor;
  for (int64_t k = 0; k < size; ++k) {
    const int64_t numerator = 510 * int64_t(sums[k]) + total + (divisor << 15);  // not negative
    const int64_t guess = (numerator * reciprocal) >> 46;
    const int64_t rest = numerator - guess * divisor;
    sums[k] = int32_t(guess + (rest >= divisor) - (1 << 15));
  }
}

}  // namespace
}  // namespace zq
