// Four lanes in plain C++: what every processor can do. The other instruction sets offer the same
// names, see avx2.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "byte_rows.h"

namespace zq {

struct Portable {
  static constexpr int lanes = 4;
  static constexpr int rows = 4;    // of a tile of a matrix product
  static constexpr int blocks = 2;  // of four frames of a depthwise convolution
  static constexpr int offset = 0;  // that dot takes off every byte
  static constexpr bool interleaves_groups = false;

  using Operand = uint8_t;  // as what an activation is multiplied; a lane holds 4 bytes of them
  struct Int { int32_t lane[lanes]; };
  struct Bytes { uint8_t lane[lanes][4]; };
  struct Weights { int8_t lane[lanes][4]; };
  struct Multiplier { Int m, e; };

  static Int load(const int32_t* from) { return copy<Int>(from); }
  static void store(int32_t* to, Int x, int count = lanes) { std::memcpy(to, &x, 4 * count); }
  static Bytes load_bytes(const uint8_t* from) { return copy<Bytes>(from); }
  static Weights load_weights(const int8_t* from) { return copy<Weights>(from); }

  static Bytes broadcast(const uint8_t* from) {
    Bytes result;
    for (auto& lane : result.lane) std::memcpy(lane, from, 4);
    return result;
  }

  static Int fill(int32_t x) {
    Int result;
    for (auto& lane : result.lane) lane = x;
    return result;
  }

  // sum + the products of four bytes by four weights, modulo 2^32
  static Int dot(Int sum, Bytes x, Weights w) {
    for (int i = 0; i < lanes; ++i) {
      int32_t total = 0;
      for (int j = 0; j < 4; ++j) total += x.lane[i][j] * w.lane[i][j];
      sum.lane[i] = wrap(uint32_t(sum.lane[i]) + uint32_t(total));
    }
    return sum;
  }

  static Int add(Int x, Int y) {
    for (int i = 0; i < lanes; ++i) x.lane[i] = wrap(uint32_t(x.lane[i]) + uint32_t(y.lane[i]));
    return x;
  }

  static Int clamp(Int x, Int low, Int high) {
    for (int i = 0; i < lanes; ++i) {
      x.lane[i] = x.lane[i] < low.lane[i] ? low.lane[i] : x.lane[i];
      x.lane[i] = x.lane[i] > high.lane[i] ? high.lane[i] : x.lane[i];
    }
    return x;
  }

  static Multiplier multiplier(const int32_t* m, const int32_t* e) { return {load(m), load(e)}; }

  // round(x * m * 2^-e), half up, modulo 2^32
  static Int scale(Int x, const Multiplier& by) {
    for (int i = 0; i < lanes; ++i) {
      const int64_t product = int64_t(x.lane[i]) * by.m.lane[i];
      const int e = by.e.lane[i];
      x.lane[i] = wrap(uint32_t((product + (int64_t(1) << (e - 1))) >> e));
    }
    return x;
  }

  using UpperMultiplier = Multiplier;  // for every e at least 33

  static UpperMultiplier upper_multiplier(const int32_t* m, const int32_t* e) {
    return multiplier(m, e);
  }

  static Int widen(const uint8_t* from) {
    Int result;
    for (int i = 0; i < lanes; ++i) result.lane[i] = from[i];
    return result;
  }

  static void store_bytes(uint8_t* to, Int x, int count) {
    for (int i = 0; i < count; ++i) to[i] = uint8_t(x.lane[i]);
  }

  using ByteRows = zq::ByteRows<Portable>;

  // The bytes of four rows side by side, lane after lane.
  static void interleave(const uint8_t* const row[4], uint8_t* to) {
    for (int i = 0; i < lanes; ++i) {
      for (int j = 0; j < 4; ++j) to[4 * i + j] = row[j][i];
    }
  }

 private:
  template <class T>
  static T copy(const void* from) {
    T result;
    std::memcpy(&result, from, sizeof result);
    return result;
  }

  static int32_t wrap(uint32_t x) { return int32_t(x); }
};

}  // namespace zq
