// What this machine can do, as the denominators of every efficiency figure; some seconds of all cores.
//   clock: dependent additions; read bandwidth of 1 .. all threads over 4 KB pages, huge pages and a mapped
//   file (each thread reads its own slice, best of several ways and passes); peaks of the multiply
//   instructions (thread CPU time, one core, and all cores at once); an empty run of the thread pool;
//   V(T) of the best level's kernels on packed weights: the time of a pass of T tokens by that of one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gemmule {

struct RooflineResult {
  std::string name;
  int threads;
  double value;
  std::string unit;
  std::string note;
};

inline constexpr int64_t kRooflineBytes = int64_t{256} << 20;

// n_threads 0: all physical cores. A path adds reading from that file's mapping. n_bytes are read, more than
// the caches hold.
std::vector<RooflineResult> measure_roofline(int n_threads, const std::string& path,
                                             int64_t n_bytes = kRooflineBytes);

}  // namespace gemmule
