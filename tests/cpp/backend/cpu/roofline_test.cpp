#include <doctest/doctest.h>

#include <cstdint>
#include <set>
#include <string>

#include "backend/cpu/peaks.h"
#include "backend/cpu/read_memory.h"

using namespace gemmule::bench;

TEST_CASE("every way of reading memory reads all of it") {
  Pages memory(size_t{64} << 10, PageSize::Small);
  for (size_t i = 0; i < memory.size(); ++i) memory.data()[i] = static_cast<uint8_t>(i * 131 >> 3);
  std::set<uint64_t> sums;
  for (const ReadWay way : kReadWays) sums.insert(read_memory(memory.data(), memory.size(), way));
  CHECK(sums.size() == 1);
  memory.data()[memory.size() - 1] ^= 1;
  for (const ReadWay way : kReadWays) CHECK(sums.count(read_memory(memory.data(), memory.size(), way)) == 0);
}

TEST_CASE("peaks run and have names of their own") {
  std::set<std::string> names;
  for (const Peak& peak : peaks()) {
    peak.run(10);
    CHECK(peak.macs > 0);
    CHECK(names.insert(peak.name).second);
  }
}
