// The level avx_vnni with the instructions of AVX-512 VNNI, for processors that have only those.
#define kernels_avx_vnni kernels_avx_vnni_evex
#include "backend/cpu/isa/avx_vnni.cpp"
