// The table of element types.
#include "core/dtype.h"

#include <doctest/doctest.h>

#include <set>
#include <string>

#include "quant/blocks.h"

namespace gemmule {
namespace {

TEST_CASE("dtype: every row is found by number and by name, and none twice") {
  std::set<uint32_t> numbers;
  std::set<std::string> names;
  for (const DTypeInfo& info : kDTypes) {
    CAPTURE(info.name);
    const uint32_t number = static_cast<uint32_t>(info.dtype);
    CHECK(find_dtype(number) == &info);
    CHECK(find_dtype(std::string_view(info.name)) == &info);
    CHECK(&dtype_info(info.dtype) == &info);
    CHECK(dtype_name(info.dtype) == info.name);
    CHECK(number < static_cast<uint32_t>(kDTypeSlots));
    CHECK(numbers.insert(number).second);
    CHECK(names.insert(info.name).second);
  }
}

TEST_CASE("dtype: unknown numbers and names are not found") {
  CHECK(find_dtype(4u) == nullptr);
  CHECK(find_dtype(15u) == nullptr);
  CHECK(find_dtype(~0u) == nullptr);
  CHECK(find_dtype(std::string_view("q4_k")) == nullptr);
  CHECK(find_dtype(std::string_view("")) == nullptr);
}

TEST_CASE("dtype: block sizes are those of the block structures") {
  const auto bytes = [](DType dtype) { return static_cast<size_t>(dtype_info(dtype).block_bytes); };
  CHECK(bytes(DType::Q8_0) == sizeof(BlockQ8_0));
  CHECK(bytes(DType::Q4_0) == sizeof(BlockQ4_0));
  CHECK(bytes(DType::Q4_1) == sizeof(BlockQ4_1));
  CHECK(bytes(DType::Q5_0) == sizeof(BlockQ5_0));
  CHECK(bytes(DType::Q5_1) == sizeof(BlockQ5_1));
  CHECK(bytes(DType::Q2_K) == sizeof(BlockQ2_K));
  CHECK(bytes(DType::Q3_K) == sizeof(BlockQ3_K));
  CHECK(bytes(DType::Q4_K) == sizeof(BlockQ4_K));
  CHECK(bytes(DType::Q5_K) == sizeof(BlockQ5_K));
  CHECK(bytes(DType::Q6_K) == sizeof(BlockQ6_K));
}

TEST_CASE("dtype: bytes of a row") {
  CHECK(row_bytes(DType::F32, 5) == 20);
  CHECK(row_bytes(DType::BF16, 5) == 10);
  CHECK(row_bytes(DType::Q8_0, 64) == 68);
  CHECK(row_bytes(DType::Q4_K, 3840) == 15 * 144);
  CHECK(row_bytes(DType::Q6_K, int64_t{1} << 40) == (int64_t{1} << 32) * 210);
}

}  // namespace
}  // namespace gemmule
