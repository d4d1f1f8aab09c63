// How vectors of int32 become bytes, on processors without a shorter way.
#pragma once

#include <cstdint>

namespace zq {
namespace {

// Adds `zero` to numbers cut to what lies between `low` and `high`.
template <class V>
class ByteRows {
  using Int = typename V::Int;

 public:
  ByteRows(int64_t low, int64_t high, int64_t zero)
      : low_(V::fill(int32_t(low))), high_(V::fill(int32_t(high))), zero_(V::fill(int32_t(zero))) {}

  void store(uint8_t* to, Int x) const {
    V::store_bytes(to, V::add(V::clamp(x, low_, high_), zero_), V::lanes);
  }

  // Four vectors to rows that lie `pitch` apart.
  void store(uint8_t* to, int64_t pitch, Int x0, Int x1, Int x2, Int x3) const {
    store(to, x0);
    store(to + pitch, x1);
    store(to + 2 * pitch, x2);
    store(to + 3 * pitch, x3);
  }

 private:
  Int low_, high_, zero_;
};

}  // namespace
}  // namespace zq
