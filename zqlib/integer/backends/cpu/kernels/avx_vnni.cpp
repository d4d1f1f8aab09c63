#include "avx_vnni.h"

#include "kernels.h"

namespace zq {

const InstructionSet avx_vnni = kernels_of<AvxVnni>;

}  // namespace zq
