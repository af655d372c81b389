#include "backend/cpu/kernel_select.h"

#include <doctest/doctest.h>

#include <string>

#include "core/dtype.h"
#include "core/error.h"

using namespace gemmule;

TEST_CASE("the best supported level is chosen, and any supported one can be forced") {
  const CpuFeatures none{}, all{.avx2 = true,
                                .avx_vnni = true,
                                .avx512_vnni = true,
                                .neon = true,
                                .neon_dotprod = true,
                                .neon_i8mm = true};
  CHECK(std::string(select_kernels(none, "").name) == "scalar");
  CHECK(std::string(select_kernels(all, "").name) == kernel_levels(all).front().table->name);
  CHECK(std::string(select_kernels(all, "scalar").name) == "scalar");
}

TEST_CASE("a level this machine lacks is refused by name, with those that would work") {
  for (const char* isa : {"avx2", "riscv"}) {
    try {
      select_kernels(CpuFeatures{}, isa);
      FAIL("accepted");
    } catch (const DeviceError& e) {
      const std::string message = e.what();
      CHECK(message.find(isa) != std::string::npos);
      CHECK(message.find("scalar") != std::string::npos);
    }
  }
}

TEST_CASE("every level has a kernel for every tensor type") {
  for (const KernelLevel& level : kernel_levels(detect_cpu_features()))
    for (const DTypeInfo& info : kDTypes) {
      const bool has_kernel = level.table->matmul[static_cast<size_t>(info.dtype)] != nullptr;
      CHECK(has_kernel);
    }
}

TEST_CASE("there is at least one core") { CHECK(physical_cores() >= 1); }
