// XXH64 against published values, and the independence of the cutting of the input.
#include "core/xxh64.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string_view>
#include <vector>

namespace gemmule {
namespace {

uint64_t hash(std::string_view text) {
  Xxh64 state;
  state.update(text.data(), text.size());
  return state.digest();
}

}  // namespace

TEST_CASE("nothing may be added, from nowhere") {
  Xxh64 hash;
  hash.update("abc", 3);
  const uint64_t before = hash.digest();
  hash.update(nullptr, 0);
  CHECK(hash.digest() == before);
}

TEST_CASE("XXH64 of published strings") {
  CHECK(hash("") == 0xef46db3751d8e999u);
  CHECK(hash("a") == 0xd24ec4f1a98c6e5bu);
  CHECK(hash("abc") == 0x44bc2cf5ad770999u);
  CHECK(hash("Nobody inspects the spammish repetition") == 0xfbcea83c8a378bf1u);
}

TEST_CASE("XXH64 does not depend on how the input is cut") {
  std::vector<char> data(331);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * i * 7 + i);
  for (const size_t n : {0ul, 1ul, 31ul, 32ul, 33ul, 64ul, 100ul, 331ul}) {
    const uint64_t whole = hash({data.data(), n});
    for (const size_t step : {1ul, 3ul, 31ul, 32ul, 33ul, 97ul}) {
      Xxh64 state;
      for (size_t i = 0; i < n; i += step) {
        state.digest();  // looking does not disturb
        state.update(data.data() + i, std::min(step, n - i));
      }
      CAPTURE(n);
      CAPTURE(step);
      CHECK(state.digest() == whole);
    }
  }
}

}  // namespace gemmule
