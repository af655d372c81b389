#include "model/kv_cache.h"

#include <doctest/doctest.h>

#include <algorithm>

using namespace gemmule;

namespace {

Config two_layers(int64_t window) {
  Config c;
  c.n_layers = 2;
  c.window = window;
  c.layers = {{true, 4, 2, 32}, {false, 4, 1, 64}};
  return c;
}

}  // namespace

TEST_CASE("sliding layers keep a ring, global layers the whole context") {
  const Config c = two_layers(512);
  const KvCache kv(c, 8192, DType::F16, 256);
  CHECK(kv.layer(0).ring == 768);  // 511 + 256, rounded up to chunks of 256
  CHECK(kv.layer(1).ring == 8192);
  CHECK(kv.size_bytes() == 2 * (768 * 2 * 32 + 8192 * 1 * 64) * 2);
  CHECK(KvCache::plan_bytes(c, 8192, DType::F16, 256) == kv.size_bytes());
  CHECK(KvCache::plan_bytes(c, 8192, DType::F32, 256) == 2 * kv.size_bytes());
}

TEST_CASE("a short context never takes more than itself") {
  const KvCache kv(two_layers(512), 100, DType::F16, 256);
  CHECK(kv.layer(0).ring == 256);
  CHECK(kv.layer(1).ring == 256);
}

TEST_CASE("keys and values of layers do not overlap") {
  const KvCache kv(two_layers(64), 1000, DType::F32, 16);
  const KvView& a = kv.layer(0);
  const KvView& b = kv.layer(1);
  const int64_t a_half = a.ring * a.n_kv_heads * a.head_dim * 4,
                b_half = b.ring * b.n_kv_heads * b.head_dim * 4;
  CHECK(a.v == a.k + a_half);
  CHECK(b.v == b.k + b_half);
  CHECK((b.k >= a.v + a_half || b.v + b_half <= a.k));
  CHECK(kv.size_bytes() == 2 * (a_half + b_half));
}

TEST_CASE("layers that share have no memory of their own and read that of their source") {
  Config c = two_layers(512);
  const int64_t alone = KvCache::plan_bytes(c, 4096, DType::F16, 256);
  c.layers.push_back({true, 4, 2, 32});
  c.layers.push_back({false, 4, 1, 64});
  c.layers[2].kv_from = 0;
  c.layers[3].kv_from = 1;
  const KvCache kv(c, 4096, DType::F16, 256);
  CHECK(kv.size_bytes() == alone);
  for (const int64_t i : {0, 1}) {
    CHECK(kv.layer(i + 2).k == kv.layer(i).k);
    CHECK(kv.layer(i + 2).v == kv.layer(i).v);
    CHECK(kv.layer(i + 2).ring == kv.layer(i).ring);
  }
}

TEST_CASE("a rewind is possible while the last window before it is still in the ring") {
  const auto can_rewind = [](int64_t n, int64_t written) {
    KvCache kv(two_layers(64), 4096, DType::F16, 16);  // ring of 256
    kv.will_write(written);
    return kv.can_rewind(n);
  };
  CHECK(can_rewind(10, 256));
  CHECK_FALSE(can_rewind(10, 257));  // position 0 was needed and is gone
  CHECK(can_rewind(1000, 1193));     // needs 937.., the oldest held
  CHECK_FALSE(can_rewind(1000, 1194));
  CHECK(can_rewind(0, 200));
  CHECK(can_rewind(0, 4000));  // nothing is needed
}

namespace {

// Writes the position itself, plus the head, as its key, and its negative as its value.
void fill(const KvView& kv, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p)
    for (int64_t h = 0; h < kv.n_kv_heads; ++h)
      for (int64_t d = 0; d < kv.head_dim; ++d) {
        const int64_t at = (h * kv.ring + p % kv.ring) * kv.head_dim + d;
        reinterpret_cast<float*>(kv.k)[at] = static_cast<float>(p + h * 10000);
        reinterpret_cast<float*>(kv.v)[at] = static_cast<float>(-p);
      }
}

bool holds(const KvView& kv, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p)
    for (int64_t h = 0; h < kv.n_kv_heads; ++h)
      for (int64_t d = 0; d < kv.head_dim; ++d) {
        const int64_t at = (h * kv.ring + p % kv.ring) * kv.head_dim + d;
        if (reinterpret_cast<const float*>(kv.k)[at] != static_cast<float>(p + h * 10000)) return false;
        if (reinterpret_cast<const float*>(kv.v)[at] != static_cast<float>(-p)) return false;
      }
  return true;
}

}  // namespace

TEST_CASE("rings that grow keep what they hold and forget nothing about what was lost") {
  Config c = two_layers(64);
  c.layers.push_back({true, 4, 2, 32});
  c.layers[2].kv_from = 0;
  for (const int64_t written : {0, 100, 256, 300, 1000}) {
    KvCache kv(c, 4096, DType::F32, 16);  // ring of 256
    const int64_t small = kv.size_bytes(), held = std::max<int64_t>(0, written - 256);
    kv.will_write(written);
    fill(kv.layer(0), 0, written);
    fill(kv.layer(1), 0, written);
    const uint8_t* global = kv.layer(1).k;
    CHECK(kv.bytes_for_rows(16) == small);
    kv.reserve_rows(16);
    CHECK(kv.size_bytes() == small);
    const int64_t larger = kv.bytes_for_rows(1120);
    kv.reserve_rows(1120);
    CHECK(kv.size_bytes() == larger);
    CHECK(larger - small == 2 * (1280 - 256) * 2 * 32 * 4);
    CHECK(kv.layer(0).ring == 1280);
    CHECK(kv.layer(1).k == global);  // global layers stay where they are
    CHECK(kv.layer(2).k == kv.layer(0).k);
    CHECK(kv.layer(2).ring == 1280);
    CHECK(holds(kv.layer(0), held, written));
    CHECK(holds(kv.layer(1), 0, written));
    // What was lost before the growth has not come back.
    CHECK(kv.can_rewind(held + 63));
    CHECK(kv.can_rewind(held + 62) == (held == 0));
    kv.will_write(written + 1120);
    CHECK(kv.can_rewind(written));
    kv.clear();
    CHECK(kv.can_rewind(62));
  }
}

TEST_CASE("rings never grow beyond the context") {
  KvCache kv(two_layers(64), 400, DType::F16, 16);
  kv.reserve_rows(1120);
  CHECK(kv.layer(0).ring == 512);
}
