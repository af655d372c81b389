// Arithmetic peaks: one multiply instruction over and over, on twelve registers and without loads, so that
// only the multiply pipes bind. peaks() lists those that this machine has.
#pragma once

#include <cstdint>
#include <vector>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace gemmule::bench {

struct Peak {
  const char* name;
  const char* level;  // the kernel level that it bounds, or "" for none
  double macs;        // multiply-accumulates of one round
  void (*run)(int64_t n_rounds);
};

inline constexpr int kChains = 12;  // at least latency (4 or 5) times two instructions a cycle

// Assembly, because compilers move loop-invariant products out of loops. Register 12 is the second operand of
// all; every register is zeroed, as subnormal numbers may be slow. A round is one instruction on registers 0
// to 11.
#define GEMMULE_TWELVE(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#if defined(__x86_64__)
#define GEMMULE_ZERO(i) "vpxor %%xmm" #i ", %%xmm" #i ", %%xmm" #i "\n\t"
#define GEMMULE_YMM(i) GEMMULE_OP " %%ymm12, %%ymm12, %%ymm" #i "\n\t"
#define GEMMULE_ZMM(i) GEMMULE_OP " %%zmm12, %%zmm12, %%zmm" #i "\n\t"
#define GEMMULE_CLOBBERS                                                                                  \
  "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
      "xmm12"
#define GEMMULE_LOOP(step) \
  asm volatile(GEMMULE_TWELVE(GEMMULE_ZERO) GEMMULE_ZERO(12) "1:\n\t" GEMMULE_TWELVE(step) "dec %0\n\t" \
               "jnz 1b\n\tvzeroupper"                                                               \
               : "+r"(n)                                                                          \
               :                                                                                  \
               : GEMMULE_CLOBBERS)

#define GEMMULE_OP "vpmaddubsw"
inline void maddubs_ymm(int64_t n) { GEMMULE_LOOP(GEMMULE_YMM); }
inline void maddubs_zmm(int64_t n) { GEMMULE_LOOP(GEMMULE_ZMM); }
#undef GEMMULE_OP
#define GEMMULE_OP "%{vex%} vpdpbusd"
inline void dpbusd_vex(int64_t n) { GEMMULE_LOOP(GEMMULE_YMM); }
#undef GEMMULE_OP
#define GEMMULE_OP "%{evex%} vpdpbusd"
inline void dpbusd_ymm(int64_t n) { GEMMULE_LOOP(GEMMULE_YMM); }
inline void dpbusd_zmm(int64_t n) { GEMMULE_LOOP(GEMMULE_ZMM); }
#undef GEMMULE_OP
#define GEMMULE_OP "vfmadd231ps"
inline void fma_ymm(int64_t n) { GEMMULE_LOOP(GEMMULE_YMM); }
inline void fma_zmm(int64_t n) { GEMMULE_LOOP(GEMMULE_ZMM); }
#undef GEMMULE_OP
#undef GEMMULE_LOOP
#undef GEMMULE_CLOBBERS
#undef GEMMULE_ZMM
#undef GEMMULE_YMM
#undef GEMMULE_ZERO

inline std::vector<Peak> peaks() {
  std::vector<Peak> all;
  const auto add = [&](bool present, const char* name, const char* level, int macs, void (*run)(int64_t)) {
    if (present) all.push_back({name, level, static_cast<double>(macs * kChains), run});
  };
  const bool vnni = __builtin_cpu_supports("avx512vnni");
  add(__builtin_cpu_supports("avx2"), "int8 vpmaddubsw ymm", "avx2", 32, maddubs_ymm);
  add(__builtin_cpu_supports("avx512bw"), "int8 vpmaddubsw zmm", "", 64, maddubs_zmm);
  add(__builtin_cpu_supports("avxvnni"), "int8 vpdpbusd ymm (VEX)", "avx_vnni", 32, dpbusd_vex);
  add(vnni && __builtin_cpu_supports("avx512vl"), "int8 vpdpbusd ymm", "", 32, dpbusd_ymm);
  add(vnni, "int8 vpdpbusd zmm", "avx512", 64, dpbusd_zmm);
  add(__builtin_cpu_supports("fma"), "f32 fma ymm", "", 8, fma_ymm);
  add(__builtin_cpu_supports("avx512f"), "f32 fma zmm", "", 16, fma_zmm);
  return all;
}
#elif defined(__aarch64__)
#define GEMMULE_ZERO(i) "movi v" #i ".16b, #0\n\t"
#define GEMMULE_CLOBBERS "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12"
#define GEMMULE_LOOP(feature, step)                                                            \
  asm volatile(feature GEMMULE_TWELVE(GEMMULE_ZERO)                                            \
                   GEMMULE_ZERO(12) "1:\n\t" GEMMULE_TWELVE(step) "subs %0, %0, #1\n\tb.ne 1b" \
               : "+r"(n)                                                                       \
               :                                                                               \
               : GEMMULE_CLOBBERS)
#define GEMMULE_SMULL(i) "smull v" #i ".8h, v12.8b, v12.8b\n\t"
#define GEMMULE_SDOT(i) "sdot v" #i ".4s, v12.16b, v12.16b\n\t"
#define GEMMULE_SMMLA(i) "smmla v" #i ".4s, v12.16b, v12.16b\n\t"
#define GEMMULE_FMLA(i) "fmla v" #i ".4s, v12.4s, v12.4s\n\t"
inline void smull(int64_t n) { GEMMULE_LOOP("", GEMMULE_SMULL); }
inline void sdot(int64_t n) { GEMMULE_LOOP(".arch armv8.2-a+dotprod\n\t", GEMMULE_SDOT); }
inline void smmla(int64_t n) { GEMMULE_LOOP(".arch armv8.2-a+dotprod+i8mm\n\t", GEMMULE_SMMLA); }
inline void fmla(int64_t n) { GEMMULE_LOOP("", GEMMULE_FMLA); }
#undef GEMMULE_FMLA
#undef GEMMULE_SMMLA
#undef GEMMULE_SDOT
#undef GEMMULE_SMULL
#undef GEMMULE_LOOP
#undef GEMMULE_CLOBBERS
#undef GEMMULE_ZERO

inline std::vector<Peak> peaks() {
  std::vector<Peak> all = {{"int8 smull", "neon", 8.0 * kChains, smull}};
#if defined(__linux__)
  if (getauxval(AT_HWCAP) & (1u << 20)) all.push_back({"int8 sdot", "neon_dotprod", 16.0 * kChains, sdot});
  if (getauxval(AT_HWCAP2) & (1u << 13)) all.push_back({"int8 smmla", "neon_i8mm", 32.0 * kChains, smmla});
#endif
  all.push_back({"f32 fmla", "", 4.0 * kChains, fmla});
  return all;
}
#else
inline std::vector<Peak> peaks() { return {}; }
#endif
#undef GEMMULE_TWELVE

}  // namespace gemmule::bench
