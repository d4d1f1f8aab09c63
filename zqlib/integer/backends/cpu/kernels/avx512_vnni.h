// Sixteen lanes of AVX-512 with VNNI, whose dot product adds four u8 x s8 products to a lane.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace zq {

struct Avx512Vnni {
  static constexpr int lanes = 16;
  static constexpr int rows = 14;   // with two columns: 28 of 32 registers
  static constexpr int blocks = 6;  // times four phases: 24 of 32 registers
  static constexpr int offset = 0;
  static constexpr bool interleaves_groups = true;

  using Operand = uint8_t;
  using Int = __m512i;
  using Bytes = __m512i;
  using Weights = __m512i;

  struct Multiplier {  // for even and odd lanes, in 64 bits
    __m512i m[2], half[2], e[2];
  };

  static Int load(const int32_t* from) { return _mm512_loadu_si512(from); }
  static Bytes load_bytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static Weights load_weights(const int8_t* from) { return _mm512_loadu_si512(from); }

  static void store(int32_t* to, Int x, int count = lanes) {
    if (count == lanes) _mm512_storeu_si512(to, x);
    else _mm512_mask_storeu_epi32(to, __mmask16((1u << count) - 1), x);
  }

  static Bytes broadcast(const uint8_t* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
  }

  static Int fill(int32_t x) { return _mm512_set1_epi32(x); }
  static Int dot(Int sum, Bytes x, Weights w) { return _mm512_dpbusd_epi32(sum, x, w); }
  static Int add(Int x, Int y) { return _mm512_add_epi32(x, y); }

  static Int clamp(Int x, Int low, Int high) {
    return _mm512_min_epi32(_mm512_max_epi32(x, low), high);
  }

  static Multiplier multiplier(const int32_t* m, const int32_t* e) {
    const __m512i shift = load(e), one = _mm512_set1_epi64(1);
    const __m512i even = _mm512_and_si512(shift, _mm512_set1_epi64(0xffffffff));
    const __m512i odd = _mm512_srli_epi64(shift, 32);
    return {{load(m), _mm512_srli_epi64(load(m), 32)},
            {_mm512_sllv_epi64(one, _mm512_sub_epi64(even, one)),
             _mm512_sllv_epi64(one, _mm512_sub_epi64(odd, one))},
            {even, odd}};
  }

  // round(x * m * 2^-e), half up, modulo 2^32
  static Int scale(Int x, const Multiplier& by) {
    const __m512i even = _mm512_mul_epi32(x, by.m[0]);
    const __m512i odd = _mm512_mul_epi32(_mm512_srli_epi64(x, 32), by.m[1]);
    const __m512i low = _mm512_srav_epi64(_mm512_add_epi64(even, by.half[0]), by.e[0]);
    const __m512i high = _mm512_srav_epi64(_mm512_add_epi64(odd, by.half[1]), by.e[1]);
    return _mm512_mask_shuffle_epi32(low, 0xaaaa, high, _MM_PERM_CCAA);
  }

  struct UpperMultiplier {
    __m512i m[2], half, e;  // of the upper halves: 2^(e - 33) and e - 32
  };

  static UpperMultiplier upper_multiplier(const int32_t* m, const int32_t* e) {
    const __m512i shift = _mm512_sub_epi32(load(e), _mm512_set1_epi32(32)), one = fill(1);
    const __m512i half = _mm512_sllv_epi32(one, _mm512_sub_epi32(shift, one));
    return {{load(m), _mm512_srli_epi64(load(m), 32)}, half, shift};
  }

  // The same where every e is at least 33: upper halves are rounded and shifted together.
  static Int scale(Int x, const UpperMultiplier& by) {
    const __m512i even = _mm512_mul_epi32(x, by.m[0]);
    const __m512i odd = _mm512_mul_epi32(_mm512_shuffle_epi32(x, _MM_PERM_DDBB), by.m[1]);
    const __m512i upper = _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
    return _mm512_srav_epi32(_mm512_add_epi32(upper, by.half), by.e);
  }

  static Int widen(const uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  static void store_bytes(uint8_t* to, Int x, int count) {
    const __m128i bytes = _mm512_cvtepi32_epi8(x);
    if (count == lanes) _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
    else _mm_mask_storeu_epi8(to, __mmask16((1u << count) - 1), bytes);
  }

  // See byte_rows.h. Packing cuts numbers to 16 bits, then to those of a byte.
  class ByteRows {
   public:
    ByteRows(int64_t low, int64_t high, int64_t zero)
        : low_(_mm512_set1_epi8(char(low + zero))), high_(_mm512_set1_epi8(char(high + zero))),
          zero_(_mm512_set1_epi16(short(zero))) {}

    void store(uint8_t* to, Int x) const { store_lane<0>(to, pack(x, x, x, x)); }

    void store(uint8_t* to, int64_t pitch, Int x0, Int x1, Int x2, Int x3) const {
      const __m512i rows = pack(x0, x1, x2, x3);
      store_lane<0>(to, rows);
      store_lane<1>(to + pitch, rows);
      store_lane<2>(to + 2 * pitch, rows);
      store_lane<3>(to + 3 * pitch, rows);
    }

   private:
    __m512i low_, high_, zero_;

    __m512i pack(Int x0, Int x1, Int x2, Int x3) const {
      const __m512i turned =
          _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(x0, x1), zero_);
      const __m512i last = _mm512_adds_epi16(_mm512_packs_epi32(x2, x3), zero_);
      const __m512i bytes = _mm512_packus_epi16(first, last);
      return _mm512_permutexvar_epi32(
          turned, _mm512_min_epu8(_mm512_max_epu8(bytes, low_), high_));
    }

    template <int lane>
    static void store_lane(uint8_t* to, __m512i rows) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_extracti32x4_epi32(rows, lane));
    }
  };

  // The bytes of four rows side by side, lane after lane.
  static void interleave(const uint8_t* const row[4], uint8_t* to) {
    __m128i x[4];
    for (int i = 0; i < 4; ++i) x[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[i]));
    const __m128i low01 = _mm_unpacklo_epi8(x[0], x[1]), low23 = _mm_unpacklo_epi8(x[2], x[3]);
    const __m128i high01 = _mm_unpackhi_epi8(x[0], x[1]), high23 = _mm_unpackhi_epi8(x[2], x[3]);
    auto* out = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(out, _mm_unpacklo_epi16(low01, low23));
    _mm_storeu_si128(out + 1, _mm_unpackhi_epi16(low01, low23));
    _mm_storeu_si128(out + 2, _mm_unpacklo_epi16(high01, high23));
    _mm_storeu_si128(out + 3, _mm_unpackhi_epi16(high01, high23));
  }

  // The same for rows of four vectors, which go to places `pitch` apart. Each lane of 128 bits is
  // given bytes of all four first: what is unpacked from it goes to another vector each.
  static void interleave_group(const uint8_t* const row[4], uint8_t* to, int64_t pitch) {
    const __m512i turned = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i x[4];
    for (int i = 0; i < 4; ++i) x[i] = _mm512_permutexvar_epi32(turned, load_bytes(row[i]));
    const __m512i low01 = _mm512_unpacklo_epi8(x[0], x[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(x[2], x[3]);
    const __m512i high01 = _mm512_unpackhi_epi8(x[0], x[1]);
    const __m512i high23 = _mm512_unpackhi_epi8(x[2], x[3]);
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(low01, low23));
    _mm512_storeu_si512(to + pitch, _mm512_unpackhi_epi16(low01, low23));
    _mm512_storeu_si512(to + 2 * pitch, _mm512_unpacklo_epi16(high01, high23));
    _mm512_storeu_si512(to + 3 * pitch, _mm512_unpackhi_epi16(high01, high23));
  }
};

}  // namespace zq
