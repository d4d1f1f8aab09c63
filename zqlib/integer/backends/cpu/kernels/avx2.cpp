#include "avx2.h"

#include "kernels.h"

namespace zq {

const InstructionSet avx2 = kernels_of<Avx2>;

}  // namespace zq
