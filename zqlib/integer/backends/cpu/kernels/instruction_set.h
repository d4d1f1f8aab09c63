// What the library knows of the kernels compiled for one instruction set.
#pragma once

#include "arguments.h"
#include "team.h"

namespace zq {

struct InstructionSet {
  int lanes, panel_width, depth, offset;
  void (*run)(const Step& step, const Worker& worker);
  int64_t (*scratch_bytes)(const Step& step, int threads);
};

extern const InstructionSet portable;
#if defined(__x86_64__)
extern const InstructionSet avx2;
extern const InstructionSet avx_vnni;
extern const InstructionSet avx512_vnni;
#elif defined(__aarch64__) && defined(__linux__)
extern const InstructionSet neon_dot;
#endif

}  // namespace zq
