// AVX2 with the dot product of AVX-VNNI.
#pragma once

#include "avx2.h"

namespace zq {

struct AvxVnni : Avx2 {
  static constexpr int blocks = 2;  // times four phases: 8 of 16 registers

  using Operand = uint8_t;

  static Bytes load_bytes(const uint8_t* from) { return load_vector(from); }
  static Weights load_weights(const int8_t* from) { return load_vector(from); }

  static Int dot(Int sum, Bytes x, Weights w) { return _mm256_dpbusd_avx_epi32(sum, x, w); }

  // The bytes of four rows side by side, lane after lane.
  static void interleave(const uint8_t* const row[4], uint8_t* to) {
    __m128i x[4];
    for (int i = 0; i < 4; ++i) x[i] = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row[i]));
    const __m128i low = _mm_unpacklo_epi8(x[0], x[1]), high = _mm_unpacklo_epi8(x[2], x[3]);
    auto* out = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(out, _mm_unpacklo_epi16(low, high));
    _mm_storeu_si128(out + 1, _mm_unpackhi_epi16(low, high));
  }
};

}  // namespace zq
