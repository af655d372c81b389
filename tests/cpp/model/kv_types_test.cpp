#include "model/kv_types.h"

#include <doctest/doctest.h>

#include <stdexcept>

using namespace gemmule;

TEST_CASE("number formats of the cache are read and written as text") {
  CHECK(parse_kv_types("f16") == KvTypes(DType::F16));
  CHECK(parse_kv_types("q8_0") == KvTypes(DType::Q8_0));
  CHECK(parse_kv_types("f32") == KvTypes(DType::F32));
  CHECK(parse_kv_types("sliding=f16,global=q8_0") == KvTypes(DType::Q8_0, DType::F16));
  CHECK(parse_kv_types("global=q8_0,sliding=f32") == KvTypes(DType::Q8_0, DType::F32));
  CHECK(parse_kv_types("global=q8_0") == KvTypes(DType::Q8_0, DType::F16));
  CHECK(parse_kv_types("sliding=q8_0").of(true) == DType::Q8_0);
  CHECK(parse_kv_types("sliding=q8_0").of(false) == DType::F16);
  for (const char* text : {"f16", "q8_0", "f32", "sliding=f16,global=q8_0", "sliding=q8_0,global=f32"})
    CHECK(format_kv_types(parse_kv_types(text)) == text);
  CHECK(format_kv_types(parse_kv_types("global=f32,sliding=f32")) == "f32");
}

TEST_CASE("other texts are refused with what is possible") {
  for (const char* text :
       {"", "q9", "F16", "f16 ", "bf16", "global", "global=", "=f16", "local=f16", "global=q4_0",
        "global=f16,", "global=f16,global=f16", "sliding=f16;global=f16", "global=f16,f16"})
    CHECK_THROWS_WITH_AS(parse_kv_types(text), doctest::Contains("choose f16, q8_0 or f32"),
                         std::invalid_argument);
}
