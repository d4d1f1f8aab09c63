#include "portable.h"

#include "kernels.h"

namespace zq {

const InstructionSet portable = kernels_of<Portable>;

}  // namespace zq
