#include "avx512_vnni.h"

#include "kernels.h"

namespace zq {

const InstructionSet avx512_vnni = kernels_of<Avx512Vnni>;

}  // namespace zq
