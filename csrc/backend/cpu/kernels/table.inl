// Fills a KernelTable from the bodies below. The including object has defined the F8 vocabulary (vec_*.h) and
// the quantized matmuls; everything stays in unnamed namespaces, so that each level has its own copy.
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/activation.inl"
#include "backend/cpu/kernels/attention.inl"
#include "backend/cpu/kernels/matmul_float.inl"
#include "backend/cpu/kernels/norm_rope.inl"
#include "backend/cpu/kernels/route.inl"

namespace gemmule {
namespace {

constexpr KernelTable make_table(const char* name, const char* description) {
  KernelTable t{};
  t.name = name;
  t.description = description;
  t.matmul[0] = matmul_f32;  // indexed by DType
  t.matmul[1] = matmul_f16;
  t.matmul[30] = matmul_bf16;
  t.matmul[2] = matmul_q4_0;
  t.matmul[3] = matmul_q4_1;
  t.matmul[6] = matmul_q5_0;
  t.matmul[7] = matmul_q5_1;
  t.matmul[8] = matmul_q8_0;
  t.matmul[10] = matmul_q2_k;
  t.matmul[11] = matmul_q3_k;
  t.matmul[12] = matmul_q4_k;
  t.matmul[13] = matmul_q5_k;
  t.matmul[14] = matmul_q6_k;
  t.matmul_scratch_bytes = matmul_scratch_bytes;
  add_packed_kernels(t);
  t.quantize_q8_32 = quantize_q8_32;
  t.quantize_q8_256 = quantize_q8_256;
  t.rms_norm = rms_norm;
  t.add_rms_norm = add_rms_norm;
  t.layer_norm = layer_norm;
  t.rope = rope;
  t.gelu_mul = gelu_mul;
  t.scale = scale;
  t.add_scaled = add_scaled;
  t.softcap = softcap;
  t.f32_to_f16 = f32_to_f16_row;
  t.route = route;
  t.attend = attend;
  t.attend_chunk = attend_chunk;
  t.attend_join = attend_join;
  t.attend_part_floats = attend_part_floats;
  t.attend_scratch_bytes = attend_scratch_bytes;
  return t;
}

}  // namespace
}  // namespace gemmule
