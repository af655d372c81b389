// What this processor and its operating system can execute, read once from cpuid.
#pragma once

namespace gemmule {

struct CpuFeatures {
  bool avx2 = false;  // AVX2 + FMA + F16C with the ymm state saved by the system
  bool avx_vnni = false;
  bool avx512_vnni = false;  // F, CD, BW, DQ, VL and VNNI with the zmm state saved
  bool neon = false;
  bool neon_dotprod = false;
  bool neon_i8mm = false;  // with neon_dotprod
};

CpuFeatures detect_cpu_features();
int physical_cores();  // usable by this process, SMT siblings counted once; at least 1

}  // namespace gemmule
