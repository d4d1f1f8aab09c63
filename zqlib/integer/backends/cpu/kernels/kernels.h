// The kernels of one instruction set. Everything they include lies in an unnamed namespace: each
// source file that includes this one is compiled for other processors, and must not lend its
// functions to the rest of the library.
#pragma once

#include "attention.h"
#include "depthwise.h"
#include "elementwise.h"
#include "instruction_set.h"
#include "planar.h"

namespace zq {
namespace {

// Calls `body` with the arguments of a step, in their type.
template <class Body>
auto visit(const Step& step, Body body) {
  switch (step.kind) {
    case Kind::convolution: return body(*static_cast<const Convolution*>(step.arguments));
    case Kind::depthwise: return body(*static_cast<const Depthwise*>(step.arguments));
    case Kind::planar: return body(*static_cast<const Planar*>(step.arguments));
    case Kind::requantization: return body(*static_cast<const Requantization*>(step.arguments));
    case Kind::layer_norm: return body(*static_cast<const LayerNorm*>(step.arguments));
    case Kind::lookup: return body(*static_cast<const Lookup*>(step.arguments));
    case Kind::product: return body(*static_cast<const Product*>(step.arguments));
    case Kind::positions: return body(*static_cast<const Positions*>(step.arguments));
    case Kind::attention: return body(*static_cast<const Attention*>(step.arguments));
    default: return body(*static_cast<const Argmax*>(step.arguments));
  }
}

template <class V>
int64_t scratch_of(const Step& step, int threads) {
  switch (step.kind) {
    case Kind::convolution:
      return scratch_bytes<V>(*static_cast<const Convolution*>(step.arguments), threads);
    case Kind::depthwise:
      return scratch_bytes<V>(*static_cast<const Depthwise*>(step.arguments), threads);
    case Kind::planar:
      return scratch_bytes<V>(*static_cast<const Planar*>(step.arguments), threads);
    case Kind::attention:
      return scratch_bytes<V>(*static_cast<const Attention*>(step.arguments), threads);
    default: return 0;
  }
}

template <class V>
void run_step(const Step& step, const Worker& worker) {
  visit(step, [&](const auto& arguments) { run<V>(arguments, worker); });
}

template <class V>
constexpr InstructionSet kernels_of = {V::lanes,  panel_width<V>, depth<V>,
                                       V::offset, run_step<V>,    scratch_of<V>};

}  // namespace
}  // namespace zq
