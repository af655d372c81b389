// The roofline of this machine (csrc/backend/cpu/roofline.h), as `gemmule bench roofline` measures it.
// Run: roofline_bench [--json] [--file MODEL.gguf] [--threads N]
#include "backend/cpu/roofline.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

int main(int argc, char** argv) {
  bool json = false;
  std::string file;
  int n_threads = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--json") {
      json = true;
    } else if (option == "--file" && i + 1 < argc) {
      file = argv[++i];
    } else if (option == "--threads" && i + 1 < argc) {
      n_threads = std::max(1, std::atoi(argv[++i]));
    } else {
      std::fprintf(stderr, "usage: roofline_bench [--json] [--file MODEL.gguf] [--threads N]\n");
      return 2;
    }
  }
  const char* const line =
      json ? "{\"name\": \"%s\", \"threads\": %d, \"value\": %.4g, \"unit\": \"%s\", \"note\": \"%s\"}\n"
           : "%-30s %d threads %9.2f %-7s %s\n";
  try {
    for (const gemmule::RooflineResult& r : gemmule::measure_roofline(n_threads, file))
      std::printf(line, r.name.c_str(), r.threads, r.value, r.unit.c_str(), r.note.c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
