// The element types of a tensor, numbered as in GGUF, with the size of their blocks.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace gemmule {

enum class DType : uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  BF16 = 30,
};

struct DTypeInfo {
  DType dtype;
  const char* name;
  int32_t block_size;   // elements of one block
  int32_t block_bytes;  // bytes of one block
};

inline constexpr DTypeInfo kDTypes[] = {
    {DType::F32, "F32", 1, 4},       {DType::F16, "F16", 1, 2},       {DType::BF16, "BF16", 1, 2},
    {DType::Q8_0, "Q8_0", 32, 34},   {DType::Q4_0, "Q4_0", 32, 18},   {DType::Q4_1, "Q4_1", 32, 20},
    {DType::Q5_0, "Q5_0", 32, 22},   {DType::Q5_1, "Q5_1", 32, 24},   {DType::Q2_K, "Q2_K", 256, 84},
    {DType::Q3_K, "Q3_K", 256, 110}, {DType::Q4_K, "Q4_K", 256, 144}, {DType::Q5_K, "Q5_K", 256, 176},
    {DType::Q6_K, "Q6_K", 256, 210},
};
inline constexpr int kDTypeSlots = 31;  // one more than the largest DType value

// In files, this plus a GGUF type number is that type in the packed layout (quant/packed.h).
inline constexpr uint32_t kPackedTypes = 4096;

// The row of kDTypes for a GGUF type number or a name; nullptr when gemmule does not know it.
constexpr const DTypeInfo* find_dtype(uint32_t ggml_type) {
  for (const DTypeInfo& info : kDTypes)
    if (static_cast<uint32_t>(info.dtype) == ggml_type) return &info;
  return nullptr;
}
constexpr const DTypeInfo* find_dtype(std::string_view name) {
  for (const DTypeInfo& info : kDTypes)
    if (name == info.name) return &info;
  return nullptr;
}
constexpr const DTypeInfo& dtype_info(DType dtype) { return *find_dtype(static_cast<uint32_t>(dtype)); }
constexpr const char* dtype_name(DType dtype) { return dtype_info(dtype).name; }

// Bytes of a row of `n` elements; `n` must be a multiple of the block size.
constexpr int64_t row_bytes(DType dtype, int64_t n) {
  const DTypeInfo& info = dtype_info(dtype);
  return n / info.block_size * info.block_bytes;
}

}  // namespace gemmule
