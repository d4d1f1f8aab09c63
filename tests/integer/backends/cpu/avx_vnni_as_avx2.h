// Puts the kernels for AVX-VNNI in the place of those for AVX2, with the dot product of AVX-512 on
// vectors of the same size: the instruction is the same but for its encoding.
#include <immintrin.h>
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
#include "avx_vnni.h"
#define Avx2 AvxVnni
