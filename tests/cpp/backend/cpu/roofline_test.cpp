#include "backend/cpu/roofline.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <set>
#include <string>

#include "backend/cpu/kernel_select.h"
#include "backend/cpu/peaks.h"
#include "backend/cpu/read_memory.h"
#include "backend/cpu/roofline_product.h"
#include "core/error.h"
#include "quant/packed.h"

using namespace gemmule;
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

TEST_CASE("the products of the roofline give numbers, on packed weights those of the same kernel family") {
  std::vector<uint8_t> weights(size_t{3} << 20);
  fill_weights(weights.data(), weights.size());
  CHECK(weights[5] == weights[5 + (size_t{1} << 20)]);
  ThreadPool pool(2);
  for (const KernelLevel& level : kernel_levels(detect_cpu_features())) {
    if (!level.supported) continue;
    for (const DType dtype : {DType::Q8_0, DType::Q4_K}) {
      const Matrix matrix{*level.table, dtype, true, 3 * kPanelRows, 512, weights.data()};
      if (!matrix.has_kernel()) continue;
      const Activations x(*level.table, dtype, 3, matrix.k);
      const Arena scratch(static_cast<int64_t>(level.table->matmul_scratch_bytes(3, matrix.k)));
      std::vector<float> y(static_cast<size_t>(3 * matrix.rows), 0.0f);
      matrix.multiply(0, matrix.rows, x.rows(), y.data(), scratch.data());
      for (const float value : y) CHECK(std::isfinite(value));
      CHECK(Pass(matrix, 3, pool).seconds() > 0);
    }
  }
}

TEST_CASE("a roofline has every kind of result, and V(T) of one token is 1") {
  std::set<std::string> names;
  for (const RooflineResult& result : measure_roofline(2, "", 1)) {
    CHECK(result.value > 0);
    CHECK(names.insert(cat(result.name, ' ', result.threads)).second);
    if (result.name.starts_with("V(1)")) CHECK(result.value == 1);
  }
  for (const char* name : {"clock 1", "read 4 KB pages 1", "read huge pages 2", "V(1) Q4_K 2", "V(13) Q4_K 2",
                           "V(2) Q8_0 2", "V(2) Q4_0 2", "V(4) Q6_K 2"})
    CHECK(names.count(name) == 1);
}
