// The table of codecs. The error budgets are the round-trip error measured on Gaussian data plus about 5 %.
#include "quant/codec.h"

#include "core/error.h"
#include "quant/encode.h"
#include "quant/row_codecs.h"

namespace gemmule {

namespace {

template <DType dtype>
void encode_plain(const float* src, uint8_t* dst, int64_t n) {
  encode_plain_row(dtype, src, dst, n);
}

constexpr Codec kCodecs[] = {
    {DType::F32, dequantize_f32, quantize_f32, 0.0f},
    {DType::F16, dequantize_f16, quantize_f16, 0.00022f},
    {DType::BF16, dequantize_bf16, quantize_bf16, 0.00175f},
    {DType::Q8_0, dequantize_q8_0, encode_plain<DType::Q8_0>, 0.00563f},
    {DType::Q4_0, dequantize_q4_0, encode_plain<DType::Q4_0>, 0.0903f},
    {DType::Q4_1, dequantize_q4_1, encode_plain<DType::Q4_1>, 0.0822f},
    {DType::Q5_0, dequantize_q5_0, encode_plain<DType::Q5_0>, 0.0449f},
    {DType::Q5_1, dequantize_q5_1, encode_plain<DType::Q5_1>, 0.0398f},
    {DType::Q2_K, dequantize_q2_k, encode_plain<DType::Q2_K>, 0.284f},
    {DType::Q3_K, dequantize_q3_k, encode_plain<DType::Q3_K>, 0.153f},
    {DType::Q4_K, dequantize_q4_k, encode_plain<DType::Q4_K>, 0.075f},
    {DType::Q5_K, dequantize_q5_k, encode_plain<DType::Q5_K>, 0.038f},
    {DType::Q6_K, dequantize_q6_k, encode_plain<DType::Q6_K>, 0.0183f},
};

}  // namespace

const Codec& codec(DType dtype) {
  for (const Codec& row : kCodecs)
    if (row.dtype == dtype) return row;
  throw UnsupportedError(
      cat("tensor type ", static_cast<uint32_t>(dtype),
          " has no codec; convert the model to a type that gemmule lists, such as Q4_K or Q8_0"));
}

}  // namespace gemmule
