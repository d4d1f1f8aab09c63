// One row of scores to attention weights in steps of 1/255.
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

// Powers to shares of their sum. The reciprocal is less than one unit off in the product, so the
// quotient is at most one too small.
template <class Power>
void share_weights(const Power* powers, int64_t valid, uint8_t* weights) {
  int64_t total = 0;
  for (int64_t j = 0; j < valid; ++j) total += powers[j];
  const int64_t reciprocal = (int64_t(1) << 54) / total;
  for (int64_t j = 0; j < valid; ++j) {
    const int64_t numerator = int64_t(powers[j]) * 255 + (total >> 1);
    const int64_t guess = (numerator * reciprocal) >> 54;
    weights[j] = uint8_t(numerator - guess * total >= total ? guess + 1 : guess);
  }
}

// `room` holds an int64 for every key; the weights of keys beyond the length stay as they are.
template <class V>
void softmax(const Attention& a, const int32_t* content, const int32_t* distance, int64_t valid,
             int64_t* room, uint8_t* weights) {
  if (a.fits_int32) {
    auto* x = reinterpret_cast<int32_t*>(room);
    exponents<V>(a, content, distance, valid, x);
    auto* powers = reinterpret_cast<uint32_t*>(room);
    for (int64_t j = 0; j < valid; ++j) powers[j] = exp2_narrow(x[j]);
    share_weights(powers, valid, weights);
  } else {
    exponents_wide(a, content, distance, valid, room);
    for (int64_t j = 0; j < valid; ++j) room[j] = exp2(room[j]);
    share_weights(room, valid, weights);
  }
}

}  // namespace
}  // namespace zq
