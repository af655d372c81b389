// The level avx512 in AVX2 instructions: its source against the emulated intrinsics of immintrin.h beside
// this file.
#define kernels_avx512 kernels_avx512_emulated
#include "backend/cpu/isa/avx512.cpp"
