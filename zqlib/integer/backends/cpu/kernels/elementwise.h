// Operators that move or compare integers, or look them up.
#pragma once

#include "requantize.h"

namespace zq {
namespace {

constexpr int64_t kChunk = 1 << 14;  // elements of a task

// body(begin, end) over chunks of all elements.
template <class Body>
void share_elements(int64_t elements, const Worker& worker, Body body) {
  worker.share((elements + kChunk - 1) / kChunk, [&](int64_t task) {
    const int64_t begin = task * kChunk;
    body(begin, begin + kChunk < elements ? begin + kChunk : elements);
  });
}

template <class V>
void run(const Lookup& step, const Worker& worker) {
  share_elements(step.elements, worker, [&](int64_t begin, int64_t end) {
    const auto look_up = [&](const auto* x) {
      for (int64_t i = begin; i < end; ++i) step.out[i] = step.table[x[i] - step.first];
    };
    if (step.wide) look_up(static_cast<const int32_t*>(step.x));
    else look_up(static_cast<const uint8_t*>(step.x));
  });
}

template <class V>
void run(const Product& step, const Worker& worker) {
  const int32_t a_zero = int32_t(step.a_zero), b_zero = int32_t(step.b_zero);
  share_elements(step.elements, worker, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      step.out[i] = (step.a[i] - a_zero) * (step.b[i] - b_zero);
    }
  });
}

// The rows of the distances n - 1 ... 1 - n: a sine changes its sign with that of the distance.
template <class V>
void run(const Positions& step, const Worker& worker) {
  worker.share_rows(2 * step.frames - 1, [&](int64_t row) {
    const int64_t distance = step.frames - 1 - row;
    const int8_t* from = step.table + (distance < 0 ? -distance : distance) * step.channels;
    uint8_t* to = step.out + row * step.channels;
    for (int64_t c = 0; c < step.channels; ++c) {
      const int value = distance < 0 && c % 2 == 0 ? -from[c] : from[c];
      to[c] = uint8_t(value + 128);
    }
  });
}

template <class V>
void run(const Argmax& step, const Worker& worker) {
  worker.share_rows(step.rows, [&](int64_t row) {
    const int32_t* x = step.x + row * step.channels;
    int32_t best = 0;
    for (int32_t c = 1; c < step.channels; ++c) best = x[c] > x[best] ? c : best;
    step.out[row] = best;
  });
}

}  // namespace
}  // namespace zq
