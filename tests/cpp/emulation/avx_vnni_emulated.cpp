// The level avx_vnni in AVX2 instructions: its source against the emulated intrinsics of immintrin.h beside
// this file.
#define kernels_avx_vnni kernels_avx_vnni_emulated
#include "backend/cpu/isa/avx_vnni.cpp"
