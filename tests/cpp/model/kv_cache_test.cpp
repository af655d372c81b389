#include "model/kv_cache.h"

#include <doctest/doctest.h>

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
  CHECK(b.k == a.v + a_half);
  CHECK(b.v == b.k + b_half);
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
  const KvCache kv(two_layers(64), 4096, DType::F16, 16);  // ring of 256
  CHECK(kv.can_rewind(10, 256));
  CHECK_FALSE(kv.can_rewind(10, 257));  // position 0 was needed and is gone
  CHECK(kv.can_rewind(1000, 1193));     // needs 937.., the oldest held
  CHECK_FALSE(kv.can_rewind(1000, 1194));
  CHECK(kv.can_rewind(0, 200));
}
