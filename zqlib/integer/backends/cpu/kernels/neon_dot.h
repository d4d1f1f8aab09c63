// Four lanes of AArch64 with the dot product of Armv8.2, which multiplies s8 by s8: 128 is taken off
// the bytes.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "byte_rows.h"

namespace zq {

struct NeonDot {
  static constexpr int lanes = 4;
  static constexpr int rows = 8;    // with two columns: 16 of 32 registers, 8 more hold bytes
  static constexpr int blocks = 6;  // times four phases: 24 of 32 registers
  static constexpr int offset = 128;
  static constexpr bool interleaves_groups = false;

  using Operand = uint8_t;
  using Int = int32x4_t;
  using Bytes = int8x16_t;
  using Weights = int8x16_t;

  struct Multiplier {  // e in 64 bits, negated: shifts go to the left
    int32x4_t m;
    int64x2_t e[2];
  };

  static Int load(const int32_t* from) { return vld1q_s32(from); }
  static Bytes load_bytes(const uint8_t* from) { return center(vld1q_u8(from)); }
  static Weights load_weights(const int8_t* from) { return vld1q_s8(from); }

  static void store(int32_t* to, Int x, int count = lanes) {
    if (count == lanes) vst1q_s32(to, x);
    else std::memcpy(to, &x, 4 * count);
  }

  static Bytes broadcast(const uint8_t* from) {
    uint32_t four;
    std::memcpy(&four, from, 4);
    return center(vreinterpretq_u8_u32(vdupq_n_u32(four)));
  }

  static Int fill(int32_t x) { return vdupq_n_s32(x); }
  static Int dot(Int sum, Bytes x, Weights w) { return vdotq_s32(sum, x, w); }
  static Int add(Int x, Int y) { return vaddq_s32(x, y); }
  static Int clamp(Int x, Int low, Int high) { return vminq_s32(vmaxq_s32(x, low), high); }

  static Multiplier multiplier(const int32_t* m, const int32_t* e) {
    const int32x4_t shift = vnegq_s32(load(e));
    return {load(m), {vmovl_s32(vget_low_s32(shift)), vmovl_high_s32(shift)}};
  }

  // round(x * m * 2^-e), half up, modulo 2^32
  static Int scale(Int x, const Multiplier& by) {
    const int64x2_t low = vmull_s32(vget_low_s32(x), vget_low_s32(by.m));
    const int64x2_t high = vmull_high_s32(x, by.m);
    return vmovn_high_s64(vmovn_s64(vrshlq_s64(low, by.e[0])), vrshlq_s64(high, by.e[1]));
  }

  using UpperMultiplier = Multiplier;

  static UpperMultiplier upper_multiplier(const int32_t* m, const int32_t* e) {
    return multiplier(m, e);
  }

  static Int widen(const uint8_t* from) {
    uint32_t four;
    std::memcpy(&four, from, 4);
    const uint16x8_t words = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words)));
  }

  static void store_bytes(uint8_t* to, Int x, int count) {
    const uint16x4_t words = vmovn_u32(vreinterpretq_u32_s32(x));
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
    std::memcpy(to, &bytes, count);
  }

  using ByteRows = zq::ByteRows<NeonDot>;

  // The bytes of four rows side by side, lane after lane.
  static void interleave(const uint8_t* const row[4], uint8_t* to) {
    uint32_t rows[4];
    for (int i = 0; i < 4; ++i) std::memcpy(&rows[i], row[i], 4);
    const uint8x16_t turned = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    vst1q_u8(to, vqtbl1q_u8(vreinterpretq_u8_u32(vld1q_u32(rows)), turned));
  }

 private:
  static Bytes center(uint8x16_t x) {
    return vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(0x80)));
  }
};

}  // namespace zq
