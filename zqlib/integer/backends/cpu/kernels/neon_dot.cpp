#include "neon_dot.h"

#include "kernels.h"

namespace zq {

const InstructionSet neon_dot = kernels_of<NeonDot>;

}  // namespace zq
