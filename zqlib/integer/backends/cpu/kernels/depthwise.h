// Conv1d with a group per channel, by dot products of four taps.
//
// The bytes of four successive frames of a channel are put into one lane (blocks of frames 0 to 3,
// 4 to 7, ...). Output frame t reads frames t ... t + taps - 1, from block t / 4 on. It begins in
// the middle of that block unless t is a multiple of 4, so the weights are kept in four phases,
// shifted by 0 to 3 frames. Where a lane holds fewer operands, all these fours are its depth. With dilation d, frames r, r + d, r + 2d ... are a sequence of their
// own for each remainder r; within it the convolution is not dilated.
#pragma once

#include <cstddef>

#include "convolution.h"

namespace zq {
namespace {

struct Blocks {
  int64_t per_sequence;  // blocks of frames in the sequence of a remainder
  int64_t per_output;    // blocks that an output frame reads
};

template <class V>
Blocks blocks_of(const Depthwise& conv, int64_t out_frames) {
  const int64_t read = (out_frames - 1) * conv.stride + (conv.taps - 1) * conv.dilation + 1;
  const int64_t longest = (read + conv.dilation - 1) / conv.dilation;
  const int64_t per_output = (conv.taps + 2 * (depth<V> - 1)) / depth<V>;
  return {(longest + depth<V> - 1) / depth<V> + per_output, per_output};
}

// Vectors of channels that are interleaved together: what is read and what is written are whole
// cache lines then.
constexpr int64_t kGroup = 4;

// Operands of a vector.
template <class V>
constexpr int vector = depth<V> * V::lanes;

template <class V>
int64_t interleaved(const Depthwise& conv, int64_t out_frames) {  // operands, of one vector
  return conv.dilation * blocks_of<V>(conv, out_frames).per_sequence * vector<V>;
}

template <class V>
int64_t scratch_of_worker(const Depthwise& conv) {
  return kGroup * interleaved<V>(conv, conv.out_frames) * sizeof(typename V::Operand) + kSlack;
}

template <class V>
int64_t scratch_bytes(const Depthwise& conv, int threads) {
  return threads * scratch_of_worker<V>(conv);
}

// What a task computes: some output frames of a group of vectors of channels of an utterance.
struct Piece {
  int64_t row, begin, end;  // frames of the output
  int64_t vector, vectors;

  int64_t frames() const { return end - begin; }
  int64_t first_row(const Depthwise& conv) const { return row * conv.out_frames + begin; }
};

// Puts the frames that a piece reads, padding included, into blocks.
template <class V>
void interleave(const Depthwise& conv, const Piece& piece, typename V::Operand* to) {
  alignas(64) uint8_t zeros[kGroup * V::lanes];
  std::memset(zeros, int(conv.zero), sizeof zeros);
  const int64_t valid = conv.lengths[piece.row], channels = conv.channels;
  const int64_t dilation = conv.dilation;
  const int64_t blocks = blocks_of<V>(conv, piece.frames()).per_sequence;
  const int64_t pitch = interleaved<V>(conv, piece.frames());
  const uint8_t* x = conv.x + piece.row * conv.frames * channels + piece.vector * V::lanes;
  for (int64_t remainder = 0; remainder < dilation; ++remainder) {
    int64_t frame = piece.begin * conv.stride - conv.padding + remainder;
    for (int64_t block = 0; block < blocks; ++block, to += vector<V>) {
      const uint8_t* frames[depth<V>];
      for (int i = 0; i < depth<V>; ++i, frame += dilation) {
        frames[i] = frame >= 0 && frame < valid ? x + frame * channels : zeros;
      }
      if constexpr (V::interleaves_groups) {  // those beyond the last vector are not read
        V::interleave_group(frames, to, pitch);
      } else {
        for (int64_t v = 0; v < piece.vectors; ++v) {
          V::interleave(frames, to + v * pitch);
          for (auto& from : frames) from += V::lanes;
        }
      }
    }
  }
}

// All phases times B blocks of output frames, held in registers: out[frame][lane].
template <class V, int B>
void convolve(const typename V::Operand* x, const int8_t* weight, const int32_t* bias,
              int64_t blocks, int32_t* out) {
  typename V::Int sum[B][depth<V>];
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) {
#pragma GCC unroll 4
    for (int i = 0; i < depth<V>; ++i) sum[b][i] = V::load(bias);
  }
  for (int64_t k = 0; k < blocks; ++k, x += vector<V>, weight += vector<V>) {
    typename V::Weights weights[depth<V>];
#pragma GCC unroll 4
    for (int i = 0; i < depth<V>; ++i) {
      weights[i] = V::load_weights(weight + i * blocks * vector<V>);
    }
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      const auto bytes = V::load_bytes(x + b * vector<V>);
#pragma GCC unroll 4
      for (int i = 0; i < depth<V>; ++i) sum[b][i] = V::dot(sum[b][i], bytes, weights[i]);
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) {
#pragma GCC unroll 4
    for (int i = 0; i < depth<V>; ++i) {
      V::store(out + (depth<V> * b + i) * V::lanes, sum[b][i]);
    }
  }
}

template <class V, int B = V::blocks>
void convolve(int height, const typename V::Operand* x, const int8_t* weight, const int32_t* bias,
              int64_t blocks, int32_t* out) {
  if constexpr (B > 0) {
    if (height == B) return convolve<V, B>(x, weight, bias, blocks, out);
    convolve<V, B - 1>(height, x, weight, bias, blocks, out);
  }
}

// Stride 1: every output frame of the sequences, several blocks at a time, for one vector after the
// other: together they fill whole cache lines of the output.
template <class V>
void convolve_sequences(const Depthwise& conv, const Piece& piece,
                        const typename V::Operand* x) {
  alignas(64) int32_t tile[(depth<V> * V::blocks + 1) * V::lanes];
  const Blocks count = blocks_of<V>(conv, piece.frames());
  const int64_t pitch = interleaved<V>(conv, piece.frames());
  for (int64_t remainder = 0; remainder < conv.dilation; ++remainder) {
    const int64_t frames = (piece.frames() - remainder + conv.dilation - 1) / conv.dilation;
    const int64_t blocks = frames > 0 ? (frames + depth<V> - 1) / depth<V> : 0;
    const int64_t tiles = (blocks + V::blocks - 1) / V::blocks;
    const auto* sequence = x + remainder * count.per_sequence * vector<V>;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t begin = blocks * i / tiles, end = blocks * (i + 1) / tiles;
      const int rows = int((end == blocks ? frames : depth<V> * end) - depth<V> * begin);
      const int64_t first = piece.first_row(conv) + remainder + depth<V> * begin * conv.dilation;
      for (int64_t v = 0; v < piece.vectors; ++v) {
        const int64_t channel = (piece.vector + v) * V::lanes, left = conv.channels - channel;
        const int8_t* weight = conv.weight + depth<V> * channel * depth<V> * count.per_output;
        convolve<V>(int(end - begin), sequence + v * pitch + begin * vector<V>, weight,
                    conv.bias + channel, count.per_output, tile);
        emit<V>(conv.output, {tile, V::lanes, rows, left < V::lanes ? left : V::lanes, channel,
                              first, conv.dilation});
      }
    }
  }
}

// Any stride: one output frame after the other.
template <class V>
void convolve_frames(const Depthwise& conv, const Piece& piece, const typename V::Operand* x) {
  alignas(64) int32_t tile[2 * V::lanes];
  const Blocks count = blocks_of<V>(conv, piece.frames());
  const int64_t pitch = interleaved<V>(conv, piece.frames());
  for (int64_t v = 0; v < piece.vectors; ++v, x += pitch) {
    const int64_t channel = (piece.vector + v) * V::lanes, left = conv.channels - channel;
    const int8_t* weight = conv.weight + depth<V> * channel * depth<V> * count.per_output;
    for (int64_t t = 0; t < piece.frames(); ++t) {
      const int64_t start = t * conv.stride, frame = start / conv.dilation;
      const int64_t block = start % conv.dilation * count.per_sequence + frame / depth<V>;
      const auto* bytes = x + block * vector<V>;
      const int8_t* shifted = weight + frame % depth<V> * count.per_output * vector<V>;
      typename V::Int sum = V::load(conv.bias + channel);
      for (int64_t k = 0; k < count.per_output; ++k) {
        sum = V::dot(sum, V::load_bytes(bytes + k * vector<V>),
                     V::load_weights(shifted + k * vector<V>));
      }
      V::store(tile, sum);
      emit<V>(conv.output, {tile, V::lanes, 1, left < V::lanes ? left : V::lanes, channel,
                            piece.first_row(conv) + t, 1});
    }
  }
}

template <class V>
void run(const Depthwise& conv, const Worker& worker) {
  const int64_t vectors = (conv.channels + V::lanes - 1) / V::lanes;
  const int64_t groups = (vectors + kGroup - 1) / kGroup;
  const int64_t cuts = cuts_of(conv.batch, worker);
  auto* x = reinterpret_cast<typename V::Operand*>(conv.scratch +
                                                   worker.index * scratch_of_worker<V>(conv));
  worker.share(conv.batch * cuts * groups, [&](int64_t task) {
    const int64_t group = task % groups, cut = task / groups % cuts;
    const int64_t first = vectors * group / groups, last = vectors * (group + 1) / groups;
    const Piece piece = {task / groups / cuts, conv.out_frames * cut / cuts,
                         conv.out_frames * (cut + 1) / cuts, first, last - first};
    if (piece.begin == piece.end) return;
    interleave<V>(conv, piece, x);
    if (conv.stride == 1) convolve_sequences<V>(conv, piece, x);
    else convolve_frames<V>(conv, piece, x);
  });
}

}  // namespace
}  // namespace zq
