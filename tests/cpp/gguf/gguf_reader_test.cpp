// GgufFile: what a right file gives, then one test for every way to be wrong.
#include "gguf/gguf_reader.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "gguf/gguf_builder.h"

namespace gemmule {
namespace {

using testing::gguf_array;
using testing::gguf_string;
using testing::GgufBuilder;
using testing::le;
using testing::TempFile;

std::shared_ptr<const GgufFile> open_image(const std::string& image) {
  return GgufFile::open(TempFile(image).path());
}

// Expects `call` to throw Exception with a one-line message that holds `words`.
template <class Exception, class Call>
void expect_refused(const Call& call, const std::string& words) {
  std::string message;
  try {
    call();
    FAIL_CHECK("nothing was thrown; expected: " << words);
  } catch (const Exception& e) {
    message = e.what();
  }
  INFO(message);
  CHECK(message.find(words) != std::string::npos);
  CHECK(message.find('\n') == std::string::npos);
}

template <class Exception = FormatError>
void expect_image_refused(const std::string& image, const std::string& words) {
  expect_refused<Exception>([&] { open_image(image); }, words);
}

// A right file with one value of every kind and three tensors.
GgufBuilder sample() {
  GgufBuilder b;
  b.string("general.architecture", "gemma3");
  b.scalar<uint8_t>("a.u8", ValueType::U8, 200).scalar<int8_t>("a.i8", ValueType::I8, -7);
  b.scalar<uint16_t>("a.u16", ValueType::U16, 60000).scalar<int16_t>("a.i16", ValueType::I16, -300);
  b.scalar<uint32_t>("a.u32", ValueType::U32, 4000000000u).scalar<int32_t>("a.i32", ValueType::I32, -70000);
  b.scalar<uint64_t>("a.u64", ValueType::U64, uint64_t{1} << 40).scalar<int64_t>("a.i64", ValueType::I64, -1);
  b.scalar<float>("a.f32", ValueType::F32, 1.5f).scalar<double>("a.f64", ValueType::F64, 2.25);
  b.scalar<uint8_t>("a.true", ValueType::Bool, 1).scalar<uint8_t>("a.false", ValueType::Bool, 0);
  b.add("a.ints", ValueType::Array, gguf_array(ValueType::I32, 2, le<int32_t>(5) + le<int32_t>(-6)));
  b.add("a.bools", ValueType::Array, gguf_array(ValueType::Bool, 3, std::string("\1\0\1", 3)));
  b.add("a.floats", ValueType::Array, gguf_array(ValueType::F32, 2, le(0.5f) + le(-1.0f)));
  b.add("a.strings", ValueType::Array,
        gguf_array(ValueType::String, 3, gguf_string("one") + gguf_string("") + gguf_string("\xff")));
  b.add("a.empty", ValueType::Array, gguf_array(ValueType::String, 0, ""));
  b.f32("norm.weight", {8}).f32("matrix.weight", {4, 3});
  b.tensor({.name = "q8.weight", .shape = {64, 2}, .type = 8, .n_bytes = 136, .offset = {}, .n_dims = {}});
  return b;
}

// A file with one tensor of the given description.
std::string one_tensor(testing::TensorSpec spec) { return GgufBuilder().tensor(std::move(spec)).build(); }

TEST_CASE("gguf: a right file gives its values") {
  const auto file = open_image(sample().build());
  CHECK(file->version() == 3);
  CHECK(file->alignment() == 32);
  CHECK(file->data_offset() % 32 == 0);
  CHECK(file->entries().size() == 18);
  CHECK(file->entries()[1].first == "a.u8");
  CHECK(file->get_string("general.architecture") == "gemma3");
  CHECK(file->get_int("a.u8") == 200);
  CHECK(file->get_int("a.i8") == -7);
  CHECK(file->get_int("a.u16") == 60000);
  CHECK(file->get_int("a.i16") == -300);
  CHECK(file->get_int("a.u32") == 4000000000);
  CHECK(file->get_int("a.i32") == -70000);
  CHECK(file->get_int("a.u64") == int64_t{1} << 40);
  CHECK(file->get_int("a.i64") == -1);
  CHECK(file->get_float("a.f32") == 1.5);
  CHECK(file->get_float("a.f64") == 2.25);
  CHECK(file->get_bool("a.true"));
  CHECK_FALSE(file->get_bool("a.false"));
  CHECK(file->get_ints("a.ints") == std::vector<int64_t>{5, -6});
  CHECK(file->get_ints("a.bools") == std::vector<int64_t>{1, 0, 1});
  CHECK(file->get_floats("a.floats") == std::vector<double>{0.5, -1.0});
  CHECK(file->get_strings("a.strings") == std::vector<std::string_view>{"one", "", "\xff"});
  CHECK(file->get_strings("a.empty").empty());
  CHECK(file->find("a.strings")->count == 3);
  CHECK(file->find("a.strings")->element == ValueType::String);
  CHECK(file->find("nothing") == nullptr);
}

TEST_CASE("gguf: fallbacks are used only for absent keys") {
  const auto file = open_image(sample().build());
  CHECK(file->int_or("none", 3) == 3);
  CHECK(file->float_or("none", 0.5) == 0.5);
  CHECK(file->bool_or("none", true));
  CHECK(file->string_or("none", "x") == "x");
  CHECK(file->int_or("a.u8", 3) == 200);
  CHECK(file->float_or("a.f32", 3) == 1.5);
  CHECK_FALSE(file->bool_or("a.false", true));
  CHECK(file->string_or("general.architecture", "x") == "gemma3");
  expect_refused<FormatError>([&] { file->int_or("a.f32", 3); }, "'a.f32'");
}

TEST_CASE("gguf: a right file gives its tensors") {
  const auto file = open_image(sample().build());
  REQUIRE(file->tensors().size() == 3);
  const GgufTensor* matrix = file->find_tensor("matrix.weight");
  REQUIRE(matrix != nullptr);
  CHECK(matrix->shape == std::vector<int64_t>{4, 3});
  CHECK(matrix->n_bytes == 48);
  CHECK(matrix->offset == file->data_offset() + 32);
  CHECK(file->data(*matrix)[1] == 17);
  const Tensor view = file->view(*file->find_tensor("q8.weight"));
  CHECK(view.dtype == DType::Q8_0);
  CHECK(view.cols == 64);
  CHECK(view.rows == 2);
  CHECK(view.size_bytes() == 136);
  CHECK(view.row(1)[67] == static_cast<uint8_t>(32 + 135));
  CHECK(file->find_tensor("none") == nullptr);
}

TEST_CASE("gguf: a vector is one row and a 3-d tensor folds into rows") {
  const auto file = open_image(GgufBuilder().f32("v", {5}).f32("m", {2, 3, 4}).build());
  CHECK(file->view(file->tensors()[0]).rows == 1);
  CHECK(file->view(file->tensors()[1]).rows == 12);
}

TEST_CASE("gguf: version 2 is read") {
  GgufBuilder b = sample();
  b.version = 2;
  CHECK(open_image(b.build())->version() == 2);
}

TEST_CASE("gguf: every supported tensor type has its size") {
  for (const DTypeInfo& info : kDTypes) {
    CAPTURE(info.name);
    const uint64_t n_bytes = static_cast<uint64_t>(256 / info.block_size * info.block_bytes);
    const auto file = open_image(one_tensor({.name = "t",
                                             .shape = {256},
                                             .type = static_cast<uint32_t>(info.dtype),
                                             .n_bytes = n_bytes,
                                             .offset = {},
                                             .n_dims = {}}));
    CHECK(file->tensors()[0].n_bytes == n_bytes);
    CHECK(file->tensors()[0].dtype == info.dtype);
  }
}

TEST_CASE("gguf: bytes after the last tensor and gaps between tensors are allowed") {
  GgufBuilder b;
  b.tail = "trailing section";
  b.f32("a", {8}).tensor({.name = "b", .shape = {8}, .type = 0, .n_bytes = 96, .offset = 96, .n_dims = {}});
  CHECK(open_image(b.build())->tensors()[1].n_bytes == 32);
}

TEST_CASE("gguf: tensors may be stored in another order than listed") {
  GgufBuilder b;
  b.tensor({.name = "a", .shape = {8}, .type = 0, .n_bytes = 32, .offset = 32, .n_dims = {}});
  b.tensor({.name = "b", .shape = {8}, .type = 0, .n_bytes = 32, .offset = 0, .n_dims = {}});
  const auto file = open_image(b.build());
  CHECK(file->find_tensor("b")->offset == file->data_offset());
}

TEST_CASE("gguf: an alignment from the file is used") {
  GgufBuilder b;
  b.alignment = 256;
  b.scalar<uint32_t>("general.alignment", ValueType::U32, 256).f32("a", {8}).f32("b", {8});
  const auto file = open_image(b.build());
  CHECK(file->alignment() == 256);
  CHECK(file->data_offset() % 256 == 0);
  CHECK(file->tensors()[1].offset == file->data_offset() + 256);
}

TEST_CASE("gguf: a file without tensors is read") {
  CHECK(open_image(GgufBuilder().string("general.architecture", "x").build())->tensors().empty());
}

TEST_CASE("gguf: nested arrays are skipped and not given out") {
  const std::string inner = gguf_array(ValueType::U8, 2, "ab");
  const std::string two = gguf_array(ValueType::Array, 2, inner + inner);
  GgufBuilder b;
  b.add("nested", ValueType::Array, gguf_array(ValueType::Array, 1, two)).string("after", "x");
  const auto file = open_image(b.build());
  CHECK(file->get_string("after") == "x");
  CHECK(file->find("nested")->count == 1);
  CHECK(file->find("nested")->n_bytes == two.size());
  expect_refused<FormatError>([&] { file->get_ints("nested"); }, "array of array");
}

TEST_CASE("gguf: an image inside a larger file is read") {
  const std::string image = sample().build();
  const TempFile temp(std::string(64, 'x') + image + "after");
  const auto mapped = std::make_shared<const MappedFile>(temp.path());
  const GgufFile file(mapped, 64, image.size());
  CHECK(file.size() == image.size());
  CHECK(file.data(*file.find_tensor("matrix.weight"))[1] == 17);
  expect_refused<FormatError>([&] { GgufFile(mapped, 64, image.size() - 1); }, "cut short");
}

TEST_CASE("gguf refuses: an image outside its file or unaligned") {
  const TempFile temp(std::string(64, 'x') + sample().build());
  const auto mapped = std::make_shared<const MappedFile>(temp.path());
  const uint64_t size = static_cast<uint64_t>(mapped->size());
  const uint64_t most = std::numeric_limits<uint64_t>::max();
  expect_refused<FormatError>([&] { GgufFile(mapped, 64, size); }, "section");
  expect_refused<FormatError>([&] { GgufFile(mapped, size + 64, 0); }, "section");
  expect_refused<FormatError>([&] { GgufFile(mapped, most - 31, 64); }, "section");
  expect_refused<FormatError>([&] { GgufFile(mapped, 64, most); }, "section");
  expect_refused<FormatError>([&] { GgufFile(mapped, 8, 64); }, "section");
}

TEST_CASE("gguf refuses: every cut of a right file, from the header and the length alone") {
  const std::string image = sample().build();
  for (size_t n = 1; n < image.size(); ++n) {
    CAPTURE(n);
    CHECK_THROWS_AS(open_image(image.substr(0, n)), FormatError);
  }
}

TEST_CASE("gguf refuses: other files, and says what they seem to be") {
  expect_image_refused("GG", "too short");
  expect_image_refused("GGUF\3\0", "version");
  expect_image_refused("version https://git-lfs.github.com/spec/v1\n", "Git LFS");
  expect_image_refused("PK\3\4 and more of it", "zip");
  expect_image_refused(le<uint64_t>(2) + "{}" + "data", "safetensors");
  expect_image_refused("<!DOCTYPE html><html>", "web page");
  expect_image_refused("{\"error\": \"not found\"}", "JSON");
  expect_image_refused("\x1f\x8b\x08 compressed", "compressed");
  expect_image_refused("tjgg\3\0\0\0 old file", "GGML");
  expect_image_refused(std::string(100, '\0'), "not a GGUF file");
}

TEST_CASE("gguf refuses: versions other than 2 and 3") {
  const auto with_version = [](uint32_t version) {
    GgufBuilder b = sample();
    b.version = version;
    return b.build();
  };
  expect_image_refused(with_version(0), "version is 0");
  expect_image_refused<UnsupportedError>(with_version(1), "version 1");
  expect_image_refused<UnsupportedError>(with_version(4), "version 4");
  expect_image_refused<UnsupportedError>(with_version(0x03000000), "big-endian");
}

TEST_CASE("gguf refuses: a header that is too short") {
  expect_image_refused("GGUF" + le(3u) + le(0u), "too short");
}

TEST_CASE("gguf refuses: lying counts") {
  for (const uint64_t count : {uint64_t{1} << 20, uint64_t{1} << 31, uint64_t{1} << 63, ~uint64_t{0}}) {
    CAPTURE(count);
    GgufBuilder tensors = sample();
    tensors.n_tensors = count;
    expect_image_refused(tensors.build(), "tensors");
    GgufBuilder keys = sample();
    keys.n_keys = count;
    expect_image_refused(keys.build(), "keys");
  }
  GgufBuilder b = sample();
  b.n_tensors = 4;
  CHECK_THROWS_AS(open_image(b.build()), Error);
}

TEST_CASE("gguf refuses: a key without a name, one too long, one that is not UTF-8") {
  expect_image_refused(GgufBuilder().string("", "x").build(), "name of key 0 has 0 bytes");
  expect_image_refused(GgufBuilder().string(std::string(65537, 'k'), "x").build(), "65537 bytes");
  expect_image_refused(GgufBuilder().string("bad\xff", "x").build(), "bad\\xff");
  CHECK(open_image(GgufBuilder().string(std::string(65536, 'k'), "x").build())->entries().size() == 1);
}

TEST_CASE("gguf refuses: a key length beyond the file") {
  std::string image = GgufBuilder().string("key", "value").build();
  const std::string length = le<uint64_t>(60000);
  image.replace(24, 8, length);
  expect_image_refused(image, "ends inside the name of key 0");
}

TEST_CASE("gguf refuses: a string length beyond the file") {
  for (const uint64_t n : {uint64_t{100}, uint64_t{1} << 63, ~uint64_t{0}})
    expect_image_refused(GgufBuilder().add("text", ValueType::String, le(n) + "abc").build(), "'text'");
}

TEST_CASE("gguf refuses: an unknown value type") {
  expect_image_refused(GgufBuilder().raw("key", 13, le(0u)).build(), "unknown value type 13");
  expect_image_refused(GgufBuilder().raw("key", ~0u, le(0u)).build(), "unknown value type");
  expect_image_refused(GgufBuilder().add("key", ValueType::Array, le(77u) + le<uint64_t>(0)).build(),
                       "unknown value type 77");
}

TEST_CASE("gguf refuses: lying array counts") {
  for (const ValueType element : {ValueType::U8, ValueType::F64, ValueType::String, ValueType::Array})
    for (const uint64_t n : {uint64_t{100}, uint64_t{1} << 61, uint64_t{1} << 63, ~uint64_t{0}})
      expect_image_refused(GgufBuilder().add("list", ValueType::Array, gguf_array(element, n, "")).build(),
                           "'list'");
}

TEST_CASE("gguf refuses: arrays nested too deep") {
  std::string value = gguf_array(ValueType::U8, 0, "");
  for (int depth = 2; depth <= 4; ++depth) value = gguf_array(ValueType::Array, 1, value);
  CHECK_NOTHROW(open_image(GgufBuilder().add("deep", ValueType::Array, value).build()));
  value = gguf_array(ValueType::Array, 1, value);
  expect_image_refused(GgufBuilder().add("deep", ValueType::Array, value).build(), "more than 4 deep");
}

TEST_CASE("gguf refuses: a bool that is neither 0 nor 1") {
  expect_image_refused(GgufBuilder().scalar<uint8_t>("flag", ValueType::Bool, 2).build(), "'flag'");
  expect_image_refused(
      GgufBuilder().add("flags", ValueType::Array, gguf_array(ValueType::Bool, 2, "\1\xff")).build(),
      "'flags'");
}

TEST_CASE("gguf refuses: duplicate keys and duplicate tensors") {
  expect_image_refused(GgufBuilder().string("twice", "x").string("other", "x").string("twice", "y").build(),
                       "key 'twice' occurs twice");
  expect_image_refused(GgufBuilder().f32("twice", {8}).f32("other", {8}).f32("twice", {8}).build(),
                       "tensor 'twice' occurs twice");
}

TEST_CASE("gguf refuses: a wrong alignment") {
  for (const uint32_t alignment : {0u, 1u, 4u, 24u, 33u, 1u << 21, 1u << 31, ~0u})
    expect_image_refused(
        GgufBuilder().scalar<uint32_t>("general.alignment", ValueType::U32, alignment).f32("t", {8}).build(),
        "'general.alignment'");
  expect_image_refused(GgufBuilder().string("general.alignment", "32").build(), "'general.alignment'");
}

TEST_CASE("gguf refuses: tensor names that are empty, too long or not UTF-8") {
  expect_image_refused(GgufBuilder().f32("", {8}).build(), "name of tensor 0");
  expect_image_refused(GgufBuilder().f32(std::string(65537, 't'), {8}).build(), "name of tensor 0");
  expect_image_refused(GgufBuilder().f32("\xc0\x80", {8}).build(), "not UTF-8");
}

TEST_CASE("gguf refuses: a wrong number of dimensions") {
  for (const uint32_t n_dims : {0u, 5u, ~0u})
    expect_image_refused(
        one_tensor({.name = "t", .shape = {8}, .type = 0, .n_bytes = 32, .offset = {}, .n_dims = n_dims}),
        "'t' has");
}

TEST_CASE("gguf refuses: a dimension of zero") {
  expect_image_refused(GgufBuilder().f32("t", {8, 0}).build(), "no elements in dimension 1");
}

TEST_CASE("gguf refuses: element and byte counts that overflow") {
  const uint64_t big = uint64_t{1} << 32;
  for (const std::vector<uint64_t>& shape : std::vector<std::vector<uint64_t>>{
           {big, big}, {~uint64_t{0}}, {uint64_t{1} << 63}, {big, big, big, big}, {uint64_t{1} << 62}})
    expect_image_refused(
        one_tensor({.name = "t", .shape = shape, .type = 0, .n_bytes = 32, .offset = {}, .n_dims = {}}),
        "more than 2^63");
}

TEST_CASE("gguf refuses: an unknown tensor type, by name and number") {
  for (const uint32_t type : {4u, 9u, 15u, 31u, 39u, ~0u})
    expect_image_refused<UnsupportedError>(
        one_tensor({.name = "t", .shape = {256}, .type = type, .n_bytes = 32, .offset = {}, .n_dims = {}}),
        "'t' has the type number " + std::to_string(type));
}

// A file of layout `layout` with one tensor of data that starts at a multiple of 64.
GgufBuilder packed_file(std::string_view layout, testing::TensorSpec spec) {
  GgufBuilder b;
  b.alignment = 64;
  b.scalar<uint32_t>("general.alignment", ValueType::U32, 64).string("gemmule.layout", layout);
  b.tensor(std::move(spec));
  return b;
}
testing::TensorSpec packed_spec(DType dtype, std::vector<uint64_t> shape) {
  uint64_t n = 1;
  for (const uint64_t dim : shape) n *= dim;
  const DTypeInfo& info = dtype_info(dtype);
  n = n / static_cast<uint64_t>(info.block_size) * static_cast<uint64_t>(info.block_bytes);
  return {.name = "t",
          .shape = std::move(shape),
          .type = kPackedTypes + static_cast<uint32_t>(dtype),
          .n_bytes = n,
          .offset = {},
          .n_dims = {}};
}

TEST_CASE("gguf: packed tensors are seen as such, next to others") {
  for (const DType dtype : {DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q2_K,
                            DType::Q3_K, DType::Q4_K, DType::Q5_K, DType::Q6_K})
    for (const std::vector<uint64_t>& shape : {std::vector<uint64_t>{256, 8}, {512, 72}, {256, 64, 3}}) {
      GgufBuilder b = packed_file("r8p64", packed_spec(dtype, shape));
      b.f32("norm", {8});
      const auto file = open_image(b.build());
      CHECK(file->layout() == Layout::R8P64);
      const GgufTensor& tensor = *file->find_tensor("t");
      CHECK(tensor.dtype == dtype);
      CHECK(tensor.layout == Layout::R8P64);
      const Tensor view = file->view(tensor);
      CHECK(view.layout == Layout::R8P64);
      CHECK(static_cast<uint64_t>(view.size_bytes()) == tensor.n_bytes);
      CHECK(reinterpret_cast<uintptr_t>(view.data) % 32 == 0);
      CHECK(file->find_tensor("norm")->layout == Layout::Rows);
      CHECK(file->view(*file->find_tensor("norm")).layout == Layout::Rows);
    }
  const auto plain = open_image(GgufBuilder().string("gemmule.layout", "gguf").f32("t", {8}).build());
  CHECK(plain->layout() == Layout::Rows);
  CHECK(open_image(GgufBuilder().f32("t", {8}).build())->layout() == Layout::Rows);
}

TEST_CASE("gguf refuses: packed tensors in a file of another layout") {
  const std::string words = "'t' is packed Q4_K, but key 'gemmule.layout' is not 'r8p64'";
  expect_image_refused(packed_file("gguf", packed_spec(DType::Q4_K, {256, 64})).build(), words);
  expect_image_refused(one_tensor(packed_spec(DType::Q4_K, {256, 64})), words);
}

TEST_CASE("gguf refuses: packed tensors of types and shapes without a packed form") {
  const auto refused = [](DType dtype, std::vector<uint64_t> shape, const std::string& words) {
    expect_image_refused(packed_file("r8p64", packed_spec(dtype, std::move(shape))).build(), words);
  };
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16})
    refused(dtype, {256, 64}, "this type has no packed form");
  refused(DType::Q8_0, {256}, "its 1 rows are not a multiple of 8");
  refused(DType::Q8_0, {256, 12}, "its 12 rows are not a multiple of 8");
  refused(DType::Q4_K, {256, 72, 2}, "its matrices have 72 rows, not a multiple of 64");
  refused(DType::Q4_K, {256, 8, 8}, "its matrices have 8 rows, not a multiple of 64");
  refused(DType::Q4_K, {128, 64}, "multiple of the 256");
  for (const uint32_t type : {kPackedTypes + 4, kPackedTypes + 31, kPackedTypes + kPackedTypes}) {
    testing::TensorSpec spec = packed_spec(DType::Q4_K, {256, 64});
    spec.type = type;
    expect_image_refused<UnsupportedError>(packed_file("r8p64", std::move(spec)).build(),
                                           "'t' has the type number " + std::to_string(type));
  }
}

TEST_CASE("gguf refuses: layouts it does not know, and packed files that are not aligned") {
  const auto with = [](std::string_view layout) {
    return GgufBuilder().string("gemmule.layout", layout).f32("t", {8}).build();
  };
  expect_image_refused<UnsupportedError>(with("r4"), "'gemmule.layout' is 'r4'");
  expect_image_refused<UnsupportedError>(with(""), "'gemmule.layout' is ''");
  expect_image_refused(with("r8p64"), "'general.alignment' is 32");
  expect_image_refused(GgufBuilder().scalar<uint32_t>("gemmule.layout", ValueType::U32, 1).build(),
                       "gemmule.layout");
}

TEST_CASE("gguf refuses: a row that is not a multiple of the block") {
  expect_image_refused(
      one_tensor({.name = "t", .shape = {48, 2}, .type = 8, .n_bytes = 102, .offset = {}, .n_dims = {}}),
      "multiple of the 32");
  expect_image_refused(
      one_tensor({.name = "t", .shape = {128, 2}, .type = 12, .n_bytes = 144, .offset = {}, .n_dims = {}}),
      "multiple of the 256");
}

TEST_CASE("gguf refuses: an offset off the alignment or beyond the file") {
  const auto with_offset = [](uint64_t offset) {
    return one_tensor({.name = "t", .shape = {8}, .type = 0, .n_bytes = 32, .offset = offset, .n_dims = {}});
  };
  expect_image_refused(with_offset(16), "alignment");
  expect_image_refused(with_offset(32), "cut short");
  expect_image_refused(with_offset(uint64_t{1} << 63), "cut short");
  expect_image_refused(with_offset(~uint64_t{31}), "cut short");
}

TEST_CASE("gguf refuses: overlapping tensors") {
  GgufBuilder b;
  b.f32("a", {16}).tensor({.name = "b", .shape = {8}, .type = 0, .n_bytes = 32, .offset = 32, .n_dims = {}});
  expect_image_refused(b.build(), "'a' and tensor 'b' overlap");
  GgufBuilder same;
  same.f32("a", {8}).tensor({.name = "b", .shape = {8}, .type = 0, .n_bytes = 32, .offset = 0, .n_dims = {}});
  expect_image_refused(same.build(), "overlap");
}

TEST_CASE("gguf getters refuse: missing keys and values of another kind, naming file and key") {
  const TempFile temp(sample().build());
  const auto file = GgufFile::open(temp.path());
  expect_refused<FormatError>([&] { file->get_int("none"); }, temp.path() + ": key 'none' is missing");
  expect_refused<FormatError>([&] { file->get_float("none"); }, "missing");
  expect_refused<FormatError>([&] { file->get_bool("none"); }, "missing");
  expect_refused<FormatError>([&] { file->get_string("none"); }, "missing");
  expect_refused<FormatError>([&] { file->get_ints("none"); }, "missing");
  expect_refused<FormatError>([&] { file->get_floats("none"); }, "missing");
  expect_refused<FormatError>([&] { file->get_strings("none"); }, "missing");
  expect_refused<FormatError>([&] { file->get_int("a.f32"); }, "'a.f32' is of type f32");
  expect_refused<FormatError>([&] { file->get_int("a.true"); }, "bool");
  expect_refused<FormatError>([&] { file->get_int("a.ints"); }, "array of i32");
  expect_refused<FormatError>([&] { file->get_float("a.u32"); }, "a float");
  expect_refused<FormatError>([&] { file->get_bool("a.u8"); }, "a bool");
  expect_refused<FormatError>([&] { file->get_string("a.strings"); }, "a string");
  expect_refused<FormatError>([&] { file->get_ints("a.u32"); }, "an array of integers");
  expect_refused<FormatError>([&] { file->get_ints("a.floats"); }, "an array of integers");
  expect_refused<FormatError>([&] { file->get_floats("a.ints"); }, "an array of floats");
  expect_refused<FormatError>([&] { file->get_floats("a.f32"); }, "an array of floats");
  expect_refused<FormatError>([&] { file->get_strings("general.architecture"); }, "an array of strings");
}

TEST_CASE("gguf getters refuse: integers of 2^63 and more") {
  GgufBuilder b;
  b.scalar<uint64_t>("big", ValueType::U64, uint64_t{1} << 63);
  b.add("bigs", ValueType::Array, gguf_array(ValueType::U64, 1, le(~uint64_t{0})));
  const auto file = open_image(b.build());
  expect_refused<FormatError>([&] { file->get_int("big"); }, "2^63");
  expect_refused<FormatError>([&] { file->get_ints("bigs"); }, "2^63");
}

TEST_CASE("gguf getters refuse: NaN and infinity") {
  const float nan = std::nanf("");
  GgufBuilder b;
  b.scalar<float>("nan", ValueType::F32, nan);
  b.scalar<double>("inf", ValueType::F64, -std::numeric_limits<double>::infinity());
  b.add("nans", ValueType::Array, gguf_array(ValueType::F32, 2, le(1.0f) + le(nan)));
  const auto file = open_image(b.build());
  expect_refused<FormatError>([&] { file->get_float("nan"); }, "finite");
  expect_refused<FormatError>([&] { file->get_float("inf"); }, "finite");
  expect_refused<FormatError>([&] { file->get_floats("nans"); }, "item 1");
}

TEST_CASE("gguf getters refuse: text that is not UTF-8") {
  const auto file = open_image(GgufBuilder().string("text", "a\xed\xa0\x80").build());
  expect_refused<FormatError>([&] { file->get_string("text"); }, "not UTF-8");
}

TEST_CASE("gguf getters refuse: arrays of more than 2^24 items") {
  const uint64_t n = (uint64_t{1} << 24) + 1;
  const auto file = open_image(
      GgufBuilder().add("huge", ValueType::Array, gguf_array(ValueType::U8, n, std::string(n, 'x'))).build());
  expect_refused<FormatError>([&] { file->get_ints("huge"); }, "at most");
}

TEST_CASE("gguf: names that hold control characters stay on one line of the message") {
  expect_image_refused(GgufBuilder().f32("a\nb\x1b[31m", {8, 0}).build(), "a\\x0ab\\x1b[31m");
}

TEST_CASE("gguf: value types have names") {
  CHECK(std::string(value_type_name(ValueType::U8)) == "u8");
  CHECK(std::string(value_type_name(ValueType::F64)) == "f64");
  CHECK(std::string(value_type_name(static_cast<ValueType>(99))) == "unknown");
}

}  // namespace
}  // namespace gemmule
