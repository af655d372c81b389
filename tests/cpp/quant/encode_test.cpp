// The encoder: equal bytes and sums for every number of threads, instruction set and cutting of the rows;
// sums against a direct computation; bad, extreme and empty input; what importance does.
#include "quant/encode.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "quant/codec.h"

namespace gemmule {
namespace {

std::vector<std::string> levels() {
  std::vector<std::string> usable;
  for (const char* isa : {"scalar", "avx2", "avx512"}) {
    try {
      const Encoder encoder(1, isa);
      usable.emplace_back(encoder.isa());
    } catch (const DeviceError&) {
    }
  }
  return usable;
}

// Numbers of many magnitudes, from a fixed linear congruential generator.
std::vector<float> numbers(int64_t n, uint32_t seed, float heavy = 1.0f) {
  std::vector<float> x(static_cast<size_t>(n));
  uint64_t state = seed;
  const auto next = [&state] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state >> 40) * 0x1p-24f;
  };
  for (float& value : x) {
    float sum = -6.0f;
    for (int i = 0; i < 12; ++i) sum += next();
    value = sum * std::exp(heavy * (next() - 0.5f));
  }
  return x;
}

struct Encoded {
  std::vector<uint8_t> bytes;
  EncodeStats stats;
};

Encoded encode(Encoder& encoder, const void* src, DType src_type, DType dst_type, int64_t n_rows,
               int64_t n_cols, const float* importance = nullptr) {
  Encoded made;
  made.bytes.resize(static_cast<size_t>(n_rows * row_bytes(dst_type, n_cols)));
  made.stats = encoder.encode(
      {static_cast<const uint8_t*>(src), src_type, made.bytes.data(), dst_type, n_rows, n_cols, importance},
      nullptr);
  return made;
}
Encoded encode(Encoder& encoder, const std::vector<float>& x, DType dst_type, int64_t n_cols,
               const float* importance = nullptr) {
  return encode(encoder, x.data(), DType::F32, dst_type, static_cast<int64_t>(x.size()) / n_cols, n_cols,
                importance);
}

void check_equal(const Encoded& a, const Encoded& b) {
  CHECK(a.bytes == b.bytes);
  CHECK(a.stats.error2 == b.stats.error2);
  CHECK(a.stats.norm2 == b.stats.norm2);
  CHECK(a.stats.weighted_error2 == b.stats.weighted_error2);
  CHECK(a.stats.weighted_norm2 == b.stats.weighted_norm2);
  CHECK(a.stats.first_bad == b.stats.first_bad);
}

// The four sums, directly.
EncodeStats direct_sums(const std::vector<float>& x, const Encoded& made, DType type, int64_t n_cols,
                        const float* importance) {
  std::vector<float> y(x.size());
  codec(type).dequantize_row(made.bytes.data(), y.data(), static_cast<int64_t>(x.size()));
  EncodeStats sums;
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = static_cast<double>(x[i]);
    const double diff = value - static_cast<double>(y[i]);
    const double w =
        importance != nullptr ? static_cast<double>(importance[static_cast<int64_t>(i) % n_cols]) : 1.0;
    sums.error2 += diff * diff;
    sums.norm2 += value * value;
    sums.weighted_error2 += w * diff * diff;
    sums.weighted_norm2 += w * value * value;
  }
  return sums;
}

bool close(double a, double b) { return std::fabs(a - b) <= 2e-6 * std::max(std::fabs(a), std::fabs(b)); }

}  // namespace

TEST_CASE("threads, instruction sets and the cutting of the rows do not change a bit") {
  constexpr int64_t kRows = 37;
  constexpr int64_t kCols = 768;
  const std::vector<float> x = numbers(kRows * kCols, 1, 4.0f);
  std::vector<float> importance = numbers(kCols, 2);
  for (float& w : importance) w = std::fabs(w) < 0.2f ? 0.0f : std::fabs(w);
  Encoder reference(1, "scalar");
  for (const DTypeInfo& info : kDTypes) {
    for (const float* w :
         {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())}) {
      CAPTURE(info.name);
      CAPTURE(w != nullptr);
      const Encoded want = encode(reference, x, info.dtype, kCols, w);
      for (const std::string& isa : levels()) {
        for (const int n_threads : {1, 2, 3}) {
          CAPTURE(isa);
          Encoder encoder(n_threads, isa);
          check_equal(encode(encoder, x, info.dtype, kCols, w), want);
        }
        Encoder encoder(1, isa);
        std::vector<uint8_t> pieces;
        for (int64_t row = 0; row < kRows;) {
          const int64_t n = std::min<int64_t>(1 + row % 5, kRows - row);
          const Encoded piece = encode(encoder, x.data() + row * kCols, DType::F32, info.dtype, n, kCols, w);
          pieces.insert(pieces.end(), piece.bytes.begin(), piece.bytes.end());
          row += n;
        }
        CHECK(pieces == want.bytes);
      }
    }
  }
}

TEST_CASE("the sums do not depend on the cutting where some blocks are too small to store") {
  constexpr int64_t kRows = 64;
  constexpr int64_t kCols = 768;
  std::vector<float> x = numbers(kRows * kCols, 10, 2.0f);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= (i / 256) % 7 < 3 ? 0x1p-24f : 0x1p-28f;
  const std::vector<float> importance(kCols, 0.7f);
  Encoder encoder(1, "");
  for (const DTypeInfo& info : kDTypes) {
    for (const float* w :
         {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())}) {
      CAPTURE(info.name);
      const Encoded whole = encode(encoder, x, info.dtype, kCols, w);
      EncodeStats sums;
      for (int64_t row = 0; row < kRows; ++row) {
        const EncodeStats one =
            encode(encoder, x.data() + row * kCols, DType::F32, info.dtype, 1, kCols, w).stats;
        sums.error2 += one.error2;
        sums.norm2 += one.norm2;
        sums.weighted_error2 += one.weighted_error2;
        sums.weighted_norm2 += one.weighted_norm2;
      }
      CHECK(whole.stats.error2 == sums.error2);
      CHECK(whole.stats.norm2 == sums.norm2);
      CHECK(whole.stats.weighted_error2 == sums.weighted_error2);
      CHECK(whole.stats.weighted_norm2 == sums.weighted_norm2);
    }
  }
}

TEST_CASE("the sums are those of the stored numbers") {
  constexpr int64_t kCols = 512;
  for (const float magnitude : {1.0f, 1e-3f, 1e-7f, 1e4f}) {
    std::vector<float> x = numbers(8 * kCols, 3, 3.0f);
    for (float& value : x) value *= magnitude;
    std::fill(x.begin() + 256, x.begin() + 512, 0.0f);
    std::vector<float> importance = numbers(kCols, 4);
    for (float& w : importance) w = 1000.0f * std::fabs(w);
    Encoder encoder(2, "");
    for (const DTypeInfo& info : kDTypes) {
      if (info.dtype == DType::F16 && magnitude > 1) continue;
      for (const float* w :
           {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())}) {
        CAPTURE(info.name);
        CAPTURE(magnitude);
        const Encoded made = encode(encoder, x, info.dtype, kCols, w);
        const EncodeStats want = direct_sums(x, made, info.dtype, kCols, w);
        CHECK(made.stats.first_bad == -1);
        CHECK(close(made.stats.error2, want.error2));
        CHECK(close(made.stats.norm2, want.norm2));
        CHECK(close(made.stats.weighted_error2, want.weighted_error2));
        CHECK(close(made.stats.weighted_norm2, want.weighted_norm2));
      }
    }
  }
}

TEST_CASE("every type is a source") {
  constexpr int64_t kCols = 512;
  const std::vector<float> x = numbers(4 * kCols, 5);
  Encoder encoder(2, "");
  for (const DTypeInfo& from : kDTypes) {
    const Encoded source = encode(encoder, x, from.dtype, kCols);
    std::vector<float> widened(x.size());
    codec(from.dtype).dequantize_row(source.bytes.data(), widened.data(), static_cast<int64_t>(x.size()));
    for (const DTypeInfo& to : kDTypes) {
      CAPTURE(from.name);
      CAPTURE(to.name);
      const Encoded made = encode(encoder, source.bytes.data(), from.dtype, to.dtype, 4, kCols);
      if (from.dtype == to.dtype) {
        CHECK(made.bytes == source.bytes);
        CHECK(made.stats.error2 == 0);
      } else if (to.dtype != DType::Q4_0) {  // where a lattice depends on the type of the source
        CHECK(made.bytes == encode(encoder, widened, to.dtype, kCols).bytes);
      }
      CHECK(close(made.stats.norm2, direct_sums(widened, made, to.dtype, kCols, nullptr).norm2));
    }
  }
}

TEST_CASE("the first bad element is reported") {
  constexpr int64_t kCols = 256;
  for (const int n_threads : {1, 3}) {
    Encoder encoder(n_threads, "");
    for (const DTypeInfo& info : kDTypes) {
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), HUGE_VALF, -HUGE_VALF}) {
        for (const int64_t at : {int64_t{0}, int64_t{255}, 200 * kCols + 17, 299 * kCols + 255}) {
          std::vector<float> x(300 * kCols, 0.5f);
          x[static_cast<size_t>(at)] = bad;
          x[x.size() - 1] = bad;
          CHECK(encode(encoder, x, info.dtype, kCols).stats.first_bad == at);
        }
      }
    }
    std::vector<float> large(2 * kCols, 65519.0f);
    CHECK(encode(encoder, large, DType::F16, kCols).stats.first_bad == -1);
    large[300] = -65520.0f;  // rounds to infinity
    CHECK(encode(encoder, large, DType::F16, kCols).stats.first_bad == 300);
    CHECK(encode(encoder, large, DType::BF16, kCols).stats.first_bad == -1);
    large[400] = 0x1.fefffep127f;
    CHECK(encode(encoder, large, DType::BF16, kCols).stats.first_bad == -1);
    large[400] = -0x1.ffp127f;  // rounds to infinity
    CHECK(encode(encoder, large, DType::BF16, kCols).stats.first_bad == 400);
    CHECK(encode(encoder, large, DType::F32, kCols).stats.first_bad == -1);
  }
}

TEST_CASE("extreme numbers and importance give finite blocks, equal on every level") {
  constexpr int64_t kCols = 256;
  Encoder reference(1, "scalar");
  for (const DTypeInfo& info : kDTypes) {
    if (info.block_size == 1) continue;
    for (const float peak :
         {3.4028235e38f, 1e20f, 65504.0f, 70000.0f, 1e-7f, 3e-8f, 1e-30f, 1e-38f, 1e-45f}) {
      for (const float heavy : {0.0f, 40.0f}) {
        std::vector<float> x = numbers(2 * kCols, 6);
        for (size_t i = 0; i < x.size(); ++i)
          x[i] *= 0.1f * peak * std::exp(-heavy * static_cast<float>(i % 7) / 7);
        x[5] = peak;
        x[6] = -peak;
        for (size_t i = 32; i < 64; ++i) x[i] = peak;
        for (size_t i = 64; i < 96; ++i) x[i] = -peak;
        for (size_t i = 96; i < 128; ++i) x[i] = 0;
        std::vector<float> importance = numbers(kCols, 7);
        for (size_t i = 0; i < importance.size(); ++i)
          importance[i] = i % 64 < 40 ? 0.0f : std::fabs(importance[i]) * (i % 3 == 0 ? 1e30f : 1e-30f);
        for (const float* w :
             {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())}) {
          CAPTURE(info.name);
          CAPTURE(peak);
          CAPTURE(heavy);
          const Encoded made = encode(reference, x, info.dtype, kCols, w);
          std::vector<float> y(x.size());
          codec(info.dtype).dequantize_row(made.bytes.data(), y.data(), static_cast<int64_t>(y.size()));
          CHECK(std::all_of(y.begin(), y.end(), [](float value) { return std::isfinite(value); }));
          CHECK(std::isfinite(made.stats.error2));
          CHECK(std::isfinite(made.stats.weighted_error2));
          for (const std::string& isa : levels()) {
            Encoder encoder(1, isa);
            check_equal(encode(encoder, x, info.dtype, kCols, w), made);
          }
        }
      }
    }
  }
}

TEST_CASE("a destination in the source is refused, one beside it is not") {
  constexpr int64_t kCols = 256;
  std::vector<float> x = numbers(2 * kCols, 11);
  uint8_t* bytes = reinterpret_cast<uint8_t*>(x.data());
  Encoder encoder(1, "");
  for (const int64_t at : {int64_t{0}, int64_t{880}, int64_t{1023}})
    CHECK_THROWS_AS(encoder.encode({bytes, DType::F32, bytes + at, DType::Q4_K, 1, kCols}, nullptr),
                    std::invalid_argument);
  CHECK_THROWS_AS(encoder.encode({bytes + 143, DType::F32, bytes, DType::Q4_K, 1, kCols}, nullptr),
                  std::invalid_argument);
  CHECK(encoder.encode({bytes, DType::F32, bytes + 1024, DType::Q4_K, 1, kCols}, nullptr).norm2 > 0);
}

TEST_CASE("importance that is zero everywhere is no importance") {
  constexpr int64_t kCols = 512;
  const std::vector<float> x = numbers(4 * kCols, 8);
  const std::vector<float> zeros(kCols, 0.0f);
  Encoder encoder(1, "");
  for (const DTypeInfo& info : kDTypes)
    check_equal(encode(encoder, x, info.dtype, kCols, zeros.data()), encode(encoder, x, info.dtype, kCols));
}

TEST_CASE("importance lowers the weighted error") {
  constexpr int64_t kCols = 1024;
  const std::vector<float> x = numbers(64 * kCols, 9, 2.0f);
  std::vector<float> importance(kCols);
  for (size_t i = 0; i < importance.size(); ++i) importance[i] = i % 8 == 0 ? 50.0f : 0.5f;
  Encoder encoder(2, "");
  for (const DTypeInfo& info : kDTypes) {
    if (info.block_size == 1 || info.dtype == DType::Q8_0) continue;
    CAPTURE(info.name);
    const Encoded with = encode(encoder, x, info.dtype, kCols, importance.data());
    const Encoded without = encode(encoder, x, info.dtype, kCols);
    const EncodeStats plain = direct_sums(x, without, info.dtype, kCols, importance.data());
    CHECK(with.stats.weighted_error2 < 0.95 * plain.weighted_error2);
    // Scaling it changes nothing.
    std::vector<float> scaled = importance;
    for (float& w : scaled) w *= 0x1p-30f;
    CHECK(encode(encoder, x, info.dtype, kCols, scaled.data()).bytes == with.bytes);
  }
}

TEST_CASE("sizes, levels and cancelling") {
  Encoder encoder(1, "");
  const std::vector<float> x(512, 1.0f);
  CHECK(encode(encoder, x.data(), DType::F32, DType::Q4_K, 0, 256).stats.norm2 == 0);
  CHECK_THROWS_AS(encode(encoder, x.data(), DType::F32, DType::Q4_K, 1, 128), std::invalid_argument);
  CHECK_THROWS_AS(encode(encoder, x.data(), DType::F32, DType::Q4_0, 1, 0), std::invalid_argument);
  for (const int64_t n_cols : {int64_t{1} << 61, int64_t{1} << 62, kMaxCols + 256})
    CHECK_THROWS_AS(encoder.encode({nullptr, DType::F32, nullptr, DType::F32, 0, n_cols}, nullptr),
                    std::invalid_argument);
  CHECK(encoder.encode({nullptr, DType::F32, nullptr, DType::F32, 0, kMaxCols}, nullptr).norm2 == 0);
  CHECK_THROWS_AS(Encoder(1, "none"), DeviceError);
  CHECK_THROWS_AS(Encoder(0, ""), std::invalid_argument);
  CHECK_THROWS_AS(Encoder(kMaxThreads + 1, ""), std::invalid_argument);
  StopToken stop;
  stop.cancel();
  std::vector<uint8_t> out(288);
  CHECK_THROWS_AS(encoder.encode({reinterpret_cast<const uint8_t*>(x.data()), DType::F32, out.data(),
                                  DType::Q4_K, 1, 512, nullptr},
                                 &stop),
                  Cancelled);
}

}  // namespace gemmule
