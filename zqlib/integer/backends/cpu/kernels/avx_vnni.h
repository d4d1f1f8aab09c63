// AVX2 with the dot product of AVX-VNNI.
#pragma once

#include "avx2.h"

namespace zq {

struct AvxVnni : Avx2 {
  static constexpr int rows = 6;    // with two columns: 12 of 16 registers
  static constexpr int blocks = 2;  // times four phases: 8 of 16 registers

  using Bytes = __m256i;
  using Weights = __m256i;

  static Bytes load_bytes(const uint8_t* from) { return load_vector(from); }
  static Weights load_weights(const int8_t* from) { return load_vector(from); }

  static Bytes broadcast(const uint8_t* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
  }

  static Int dot(Int sum, Bytes x, Weights w) { return _mm256_dpbusd_avx_epi32(sum, x, w); }
};

}  // namespace zq
