// What Python tells the kernels: one struct per kind of step, mirrored in `arguments.py`.
//
// Every tensor is (batch, frames, channels), contiguous. An element of 8 bits is held as an
// unsigned byte q + zero, with zero = 128 for a signed tensor: the dot products of processors
// multiply unsigned activations by signed weights. An element of 32 bits is held as it is.
#pragma once

#include <cstdint>

namespace zq {

// One summand of a requantization: round(x * m * 2^-e) per channel.
struct Term {
  const void* values;  // null: the accumulator that the kernel has just computed
  const int32_t* m;    // padded with 0 to whole vectors, as e with 33
  const int32_t* e;
  int64_t wide;   // values are int32, not bytes
  int64_t upper;  // every e is at least 33: result and rounding lie in the product's upper half
  int64_t zero;
};

// Where the results of a kernel go, and what becomes of them on the way.
struct Output {
  void* values;
  const Term* terms;
  const uint8_t* table;  // if not null, the output is table[y - low], in bytes
  int64_t term_count;  // 0: the int32 accumulators are written as they are
  int64_t fits_int32;  // the sum of the rounded terms does, for every input
  int64_t channels;
  int64_t low, high, zero;
  int64_t wide;  // int32, not bytes
};

// Conv1d with one group. Weights come in panels of `lanes * columns` output channels, and within a
// panel as [run][4 bytes of the run][output channel][4]: the order in which the product reads them.
// Where a lane holds fewer operands (`depth`), they are so many for each 4 here.
struct Convolution {
  const uint8_t* x;
  const int8_t* weight;
  const int32_t* bias;     // with -zero * (sum of weights) folded in, padded to whole panels
  const int64_t* lengths;  // valid frames of each utterance
  uint8_t* scratch;
  int64_t batch, frames, channels, zero;
  int64_t out_frames, taps, stride, dilation, padding;
  Output output;
};

// Conv1d with a group per channel. Weights are [16 lanes][phase][4 taps][lane][4], see depthwise.h.
struct Depthwise {
  const uint8_t* x;
  const int8_t* weight;
  const int32_t* bias;
  const int64_t* lengths;
  uint8_t* scratch;
  int64_t batch, frames, channels, zero;
  int64_t out_frames, taps, stride, dilation, padding;
  Output output;
};

// Conv2d; weights as those of Convolution, with one run per tap along the frames. Where the planes
// of a band lie side by side in the output, its "frames" are the bands of all frames.
struct Planar {
  const uint8_t* x;
  const int8_t* weight;
  const int32_t* bias;
  const int64_t* lengths;
  uint8_t* scratch;
  int64_t batch, frames, bands, planes, zero;
  int64_t out_frames, out_bands, out_planes, taps, stride, padding;
  int64_t planes_last, out_planes_last;
  Output output;
};

// A requantization of its own: `rows` frames of all utterances.
struct Requantization {
  int64_t rows;
  Output output;
};

struct LayerNorm {
  const void* x;
  void* out;
  const int64_t* m;
  const int64_t* e;
  const int64_t* rounding;  // the offset and half of 2^e
  int64_t rows, channels, eps;
  int64_t x_wide, x_zero, low, high, out_zero, out_wide;
};

// out = table[x - low]: an element-wise function to a tensor of 8 bits.
struct Lookup {
  const void* x;
  uint8_t* out;
  const uint8_t* table;
  int64_t elements, wide, first;  // first: what the tensor holds for its lowest value
};

struct Product {
  const uint8_t* a;
  const uint8_t* b;
  int32_t* out;
  int64_t elements, a_zero, b_zero;
};

struct Positions {
  const int8_t* table;  // (most frames, channels)
  uint8_t* out;
  int64_t frames, channels;
};

struct Attention {
  const uint8_t* query;
  const uint8_t* key;
  const uint8_t* value;
  const uint8_t* position;
  const int32_t* content_bias;
  const int32_t* distance_bias;
  const int64_t* lengths;
  uint8_t* scratch;
  int32_t* out;
  int64_t batch, frames, channels, heads;
  int64_t content_m, content_e, distance_m, distance_e, exponent_m, exponent_e;
  int64_t fits_int32;  // scores, their differences and the exponents do, for every input
};

struct Argmax {
  const int32_t* x;
  int32_t* out;
  int64_t rows, channels;
};

enum class Kind : int64_t {
  convolution, depthwise, planar, requantization, layer_norm, lookup, product, positions,
  attention, argmax,
};

struct Step {
  Kind kind;
  const void* arguments;
};

}  // namespace zq
