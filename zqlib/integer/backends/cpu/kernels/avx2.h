// Eight lanes of AVX2. Its product of u8 x s8 adds pairs in 16 bits, which saturates: both are
// multiplied in 16 bits, two to a lane. Bytes are widened where they are copied, weights where they
// are loaded, which costs no more than loading vectors of 16 bits.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "byte_rows.h"

namespace zq {

struct Avx2 {
  static constexpr int lanes = 8;
  static constexpr int rows = 6;    // with two columns: 12 of 16 registers
  static constexpr int blocks = 6;  // times two phases: 12 of 16 registers
  static constexpr int offset = 0;
  static constexpr bool interleaves_groups = false;

  using Operand = int16_t;
  using Int = __m256i;
  using Bytes = __m256i;
  using Weights = __m256i;

  struct Multiplier {  // for even and odd lanes, in 64 bits
    __m256i m[2], half[2], e[2], sign[2];
  };

  static __m256i load_vector(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }

  static Int load(const int32_t* from) { return load_vector(from); }
  static Bytes load_bytes(const Operand* from) { return load_vector(from); }

  static Weights load_weights(const int8_t* from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  static void store(int32_t* to, Int x, int count = lanes) {
    if (count == lanes) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
    alignas(32) int32_t all[lanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(all), x);
    std::memcpy(to, all, 4 * count);
  }

  static Bytes broadcast(const uint8_t* from) {
    int32_t lane;
    std::memcpy(&lane, from, 4);
    return _mm256_set1_epi32(lane);
  }

  static Int fill(int32_t x) { return _mm256_set1_epi32(x); }
  static Int add(Int x, Int y) { return _mm256_add_epi32(x, y); }

  static Int dot(Int sum, Bytes x, Weights w) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
  }

  static Int clamp(Int x, Int low, Int high) {
    return _mm256_min_epi32(_mm256_max_epi32(x, low), high);
  }

  // There is no arithmetic shift in 64 bits: 2^63 makes the sum positive, and its share is taken
  // off after a logical shift.
  static Multiplier multiplier(const int32_t* m, const int32_t* e) {
    const __m256i shift = load(e), one = _mm256_set1_epi64x(1);
    const __m256i top = _mm256_set1_epi64x(INT64_MIN);
    Multiplier result;
    result.m[0] = load(m), result.m[1] = _mm256_srli_epi64(load(m), 32);
    result.e[0] = _mm256_and_si256(shift, _mm256_set1_epi64x(0xffffffff));
    result.e[1] = _mm256_srli_epi64(shift, 32);
    for (int i = 0; i < 2; ++i) {
      const __m256i half = _mm256_sllv_epi64(one, _mm256_sub_epi64(result.e[i], one));
      result.half[i] = _mm256_add_epi64(half, top);
      result.sign[i] = _mm256_srlv_epi64(top, result.e[i]);
    }
    return result;
  }

  // round(x * m * 2^-e), half up, modulo 2^32
  static Int scale(Int x, const Multiplier& by) {
    const __m256i low = shift(_mm256_mul_epi32(x, by.m[0]), by, 0);
    const __m256i high = shift(_mm256_mul_epi32(_mm256_srli_epi64(x, 32), by.m[1]), by, 1);
    return _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xaa);
  }

  struct UpperMultiplier {
    __m256i m[2], half, e;  // of the upper halves: 2^(e - 33) and e - 32
  };

  static UpperMultiplier upper_multiplier(const int32_t* m, const int32_t* e) {
    const __m256i shift = _mm256_sub_epi32(load(e), fill(32)), one = fill(1);
    const __m256i half = _mm256_sllv_epi32(one, _mm256_sub_epi32(shift, one));
    return {{load(m), _mm256_srli_epi64(load(m), 32)}, half, shift};
  }

  // The same where every e is at least 33: upper halves are rounded and shifted together.
  static Int scale(Int x, const UpperMultiplier& by) {
    const __m256i even = _mm256_mul_epi32(x, by.m[0]);
    const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(x, 32), by.m[1]);
    const __m256i upper = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    return _mm256_srav_epi32(_mm256_add_epi32(upper, by.half), by.e);
  }

  static Int widen(const uint8_t* from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }

  static void store_bytes(uint8_t* to, Int x, int count) {
    const __m256i first = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                           -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                           -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8(x, first);  // four in each half
    const __m128i joined = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes),
                                              _mm256_extracti128_si256(bytes, 1));
    const int64_t all = _mm_cvtsi128_si64(joined);
    std::memcpy(to, &all, count);
  }

  using ByteRows = zq::ByteRows<Avx2>;

  // The bytes of two rows side by side, lane after lane.
  static void interleave(const uint8_t* const row[2], uint8_t* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), interleaved(row));
  }

  static void interleave(const uint8_t* const row[2], Operand* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepu8_epi16(interleaved(row)));
  }

 private:
  static __m128i interleaved(const uint8_t* const row[2]) {
    return _mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row[0])),
                             _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row[1])));
  }

  static __m256i shift(__m256i product, const Multiplier& by, int odd) {
    const __m256i positive = _mm256_add_epi64(product, by.half[odd]);
    return _mm256_sub_epi64(_mm256_srlv_epi64(positive, by.e[odd]), by.sign[odd]);
  }
};

}  // namespace zq
