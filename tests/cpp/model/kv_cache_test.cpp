#include "model/kv_cache.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

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

TEST_CASE("each kind of layer has its own number format") {
  const Config c = two_layers(64);
  const KvTypes types(DType::Q8_0, DType::F16);
  const KvCache kv(c, 4096, types, 16);
  CHECK(kv.layer(0).dtype == DType::F16);
  CHECK(kv.layer(1).dtype == DType::Q8_0);
  CHECK(kv.planes(0)[0].row_bytes == 64);
  CHECK(kv.planes(1)[1].row_bytes == 68);
  CHECK(kv.size_bytes() == 2 * (256 * 2 * 64 + 4096 * 68));
  CHECK(KvCache::plan_bytes(c, 4096, types, 16) == kv.size_bytes());
}

TEST_CASE("a block of a row that is no multiple of 32 takes a whole block") {
  Config c = two_layers(64);
  c.layers = {{false, 4, 1, 40}};
  CHECK(KvCache::plan_bytes(c, 256, DType::Q8_0, 16) == 2 * 256 * 2 * 34);
}

TEST_CASE("keys that are part of the values keep their turned numbers only") {
  Config c = two_layers(64);
  c.layers = {{false, 16, 1, 512}};
  c.layers[0].n_turned = 64;
  for (const auto& [dtype, bytes] : {std::pair(DType::F16, 1280), {DType::F32, 2560}, {DType::Q8_0, 680}}) {
    const KvCache kv(c, 4096, dtype, 16);
    CHECK(kv.size_bytes() == 4096 * bytes);
    CHECK(kv.layer(0).n_turned == 64);
    CHECK(kv.layer(0).v == kv.layer(0).k + 4096 * bytes / 5);
    CHECK(kv.planes(0)[0].row_bytes + kv.planes(0)[1].row_bytes == bytes);
  }
}

namespace {

// The shape of Gemma 4 12B.
Config twelve_b() {
  Config c;
  c.n_layers = 48;
  c.window = 1024;
  for (int i = 0; i < 48; ++i) {
    c.layers.push_back(i % 6 < 5 ? LayerConfig{true, 16, 8, 256} : LayerConfig{false, 16, 1, 512});
    if (i % 6 == 5) c.layers.back().n_turned = 64;
  }
  return c;
}

#if defined(__linux__)
int64_t resident_bytes(const KvCache& kv) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  int64_t n_bytes = 0;
  for (int64_t i = 0; i < kv.n_layers(); ++i)
    for (const KvPlane& plane : kv.planes(i)) {
      const auto begin = reinterpret_cast<intptr_t>(plane.data) / page * page;
      const auto end = reinterpret_cast<intptr_t>(plane.data) + plane.n_heads * plane.ring * plane.row_bytes;
      std::vector<unsigned char> pages(static_cast<size_t>((end - begin + page - 1) / page));
      REQUIRE(mincore(reinterpret_cast<void*>(begin), static_cast<size_t>(end - begin), pages.data()) == 0);
      n_bytes += page * std::count_if(pages.begin(), pages.end(), [](unsigned char p) { return p & 1; });
    }
  return n_bytes;
}

void touch(const KvCache& kv, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < kv.n_layers(); ++i)
    for (const KvPlane& plane : kv.planes(i))
      for (int64_t head = 0; head < plane.n_heads; ++head)
        for (int64_t p = begin; p < end; ++p)
          std::fill_n(plane.data + (head * plane.ring + p % plane.ring) * plane.row_bytes, plane.row_bytes,
                      1);
}
#endif

}  // namespace

TEST_CASE("the cache of 262,144 positions of Gemma 4 12B") {
  const Config c = twelve_b();
  constexpr int64_t kPositions = 262144;
  const int64_t rings_f16 = 40 * 8 * 1280 * 256 * 4;
  CHECK(KvCache::plan_bytes(c, kPositions, DType::F16, 256) == rings_f16 + 8 * kPositions * 1280);
  const KvTypes types(DType::Q8_0, DType::F16);
  CHECK(KvCache::plan_bytes(c, kPositions, types, 256) == rings_f16 + 8 * kPositions * 680);
  CHECK(KvCache::plan_bytes(c, kPositions, types, 256) == 1845493760);
  CHECK(KvCache::plan_bytes(c, kPositions, DType::Q8_0, 256) == 1648885760);
#if defined(__linux__)
  KvCache kv(c, kPositions, types, 256);
  CHECK(kv.size_bytes() == 1845493760);
  CHECK(kv.used_bytes() == 0);
  CHECK(resident_bytes(kv) < 1 << 20);
  kv.will_write(300);
  touch(kv, 0, 300);
  CHECK(kv.used_bytes() >= resident_bytes(kv) - (1 << 20));
  CHECK(kv.used_bytes() <= resident_bytes(kv) + (1 << 20));
  // What is far behind is given back, what is kept stays, and a few positions are not worth it.
  kv.will_write(20000);
  touch(kv, 300, 20000);
  const int64_t full = resident_bytes(kv);
  CHECK(kv.used_bytes() <= full + (1 << 20));
  CHECK(full <= kv.used_bytes() + (1 << 20));
  kv.give_up(19000);
  CHECK(resident_bytes(kv) == full);
  kv.give_up(5000);
  CHECK(full - resident_bytes(kv) > 8 * 15000 * 680 - (1 << 20));
  CHECK(kv.used_bytes() <= resident_bytes(kv) + (1 << 20));
  for (const KvPlane& plane : kv.planes(5))
    for (int64_t at = 0; at < 5000 * plane.row_bytes; ++at) REQUIRE(plane.data[at] == 1);
#endif
}
