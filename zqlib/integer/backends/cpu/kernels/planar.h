// Conv2d over frames and bands: per frame of the output, a matrix product whose rows are its bands.
//
// It reads a padded copy with the planes of a band side by side: a row of taps along the bands is
// then one run of bytes. Where the output has the bands of a plane side by side, the accumulators of
// a panel are turned around first; they are a contiguous part of its channels.
#pragma once

#include "convolution.h"

namespace zq {
namespace {

int64_t padded_bands(const Planar& conv) { return conv.bands + 2 * conv.padding; }

template <class V>
int64_t padded_bytes(const Planar& conv) {
  return (conv.frames + 2 * conv.padding) * padded_bands(conv) * conv.planes *
         sizeof(typename V::Operand);
}

template <class V>
int64_t turned_elements(const Planar& conv) {  // of one panel
  return panel_width<V> * conv.out_bands + kSlack / 4;
}

template <class V>
int64_t scratch_bytes(const Planar& conv, int threads) {
  const int64_t images = (conv.batch * padded_bytes<V>(conv) + kSlack + 63) / 64 * 64;
  return images + threads * turned_elements<V>(conv) * 4;
}

// Frame t of the padded copy.
template <class V>
void copy_planes(const Planar& conv, int64_t row, int64_t t) {
  const int64_t bands = padded_bands(conv), source = t - conv.padding;
  auto* to = reinterpret_cast<typename V::Operand*>(conv.scratch + row * padded_bytes<V>(conv)) +
             t * bands * conv.planes;
  fill(conv.zero, bands * conv.planes, to);
  if (source < 0 || source >= conv.lengths[row]) return;
  const uint8_t* x = conv.x + (row * conv.frames + source) * conv.planes * conv.bands;
  if (conv.planes_last) {
    copy(x, conv.bands * conv.planes, to + conv.padding * conv.planes);
    return;
  }
  for (int64_t plane = 0; plane < conv.planes; ++plane) {
    for (int64_t band = 0; band < conv.bands; ++band) {
      to[(band + conv.padding) * conv.planes + plane] = x[plane * conv.bands + band];
    }
  }
}

template <class V>
void run(const Planar& conv, const Worker& worker) {
  const int64_t padded_frames = conv.frames + 2 * conv.padding;
  worker.share_rows(conv.batch * padded_frames, [&](int64_t task) {
    copy_planes<V>(conv, task / padded_frames, task % padded_frames);
  });
  constexpr int width = panel_width<V>;
  const int64_t panels = (conv.out_planes + width - 1) / width;
  const int64_t images = (conv.batch * padded_bytes<V>(conv) + kSlack + 63) / 64 * 64;
  int32_t* turned = reinterpret_cast<int32_t*>(conv.scratch + images) +
                    worker.index * turned_elements<V>(conv);
  const int64_t band_bytes = conv.planes * sizeof(typename V::Operand);
  const int64_t frame_bytes = padded_bands(conv) * band_bytes;
  const auto multiply_frame = [&](int64_t panel, int64_t image, int64_t t) {
    const int64_t plane = panel * width, left = conv.out_planes - plane;
    const int64_t planes = left < width ? left : width;
    const Rows rows = {
        conv.scratch + image * padded_bytes<V>(conv) + t * conv.stride * frame_bytes,
        conv.stride * band_bytes, frame_bytes, conv.taps, conv.taps * band_bytes};
    const int8_t* weight = conv.weight + panel * panel_bytes<V>(rows);
    const int64_t out_row = image * conv.out_frames + t;
    if (conv.out_planes_last) {
      return multiply_rows<V>(conv.out_bands, planes, rows, weight, conv.bias + plane,
                              [&](const int32_t* tile, int64_t first, int count) {
        emit<V>(conv.output,
                {tile, width, count, planes, plane, out_row * conv.out_bands + first, 1});
      });
    }
    multiply_rows<V>(conv.out_bands, planes, rows, weight, conv.bias + plane,
                     [&](const int32_t* tile, int64_t first, int count) {
      for (int64_t p = 0; p < planes; ++p) {
        for (int band = 0; band < count; ++band) {
          turned[p * conv.out_bands + first + band] = tile[band * width + p];
        }
      }
    });
    const int64_t columns = planes * conv.out_bands;
    emit<V>(conv.output, {turned, columns, 1, columns, plane * conv.out_bands, out_row, 1});
  };
  if constexpr (widens<V>) {  // some frames meet all panels while they are near
    constexpr int64_t most = 8;
    const int64_t blocks = (conv.out_frames + most - 1) / most;
    worker.share(conv.batch * blocks, [&](int64_t task) {
      const int64_t block = task % blocks;
      const int64_t begin = conv.out_frames * block / blocks;
      const int64_t end = conv.out_frames * (block + 1) / blocks;
      for (int64_t panel = 0; panel < panels; ++panel) {
        for (int64_t t = begin; t < end; ++t) multiply_frame(panel, task / blocks, t);
      }
    });
  } else {
    worker.share(conv.batch * panels * conv.out_frames, [&](int64_t task) {
      multiply_frame(task / conv.out_frames / conv.batch, task / conv.out_frames % conv.batch,
                     task % conv.out_frames);
    });
  }
}

}  // namespace
}  // namespace zq
