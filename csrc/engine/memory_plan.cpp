#include "engine/memory_plan.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "engine/loaded_model.h"
#include "model/drafter.h"

namespace gemmule {
namespace {

// The table of per-layer embeddings: a step reads one row per token of it, so it never has to be in memory.
constexpr const char* kLazyTable = "per_layer_token_embd.weight";

constexpr int64_t kImageRows = 280;  // of an image of the usual detail

int64_t meminfo_available() {
  std::ifstream meminfo("/proc/meminfo");
  std::string name;
  int64_t kib = 0;
  while (meminfo >> name >> kib) {
    if (name == "MemAvailable:") return kib * 1024;
    meminfo.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

// Bytes of files that the control group holds in memory: counted as used, but given back when needed.
int64_t cgroup_file_cache(const char* stat_file) {
  std::ifstream stat(stat_file);
  std::string name;
  int64_t n_bytes = 0, sum = 0;
  while (stat >> name >> n_bytes)
    if (name == "inactive_file" || name == "active_file") sum += n_bytes;
  return sum;
}

// The control group this process is in (version 2, or version 1 at its usual place); 0: no limit.
int64_t cgroup_available() {
  const char* const places[][3] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
       "/sys/fs/cgroup/memory/memory.stat"}};
  for (const auto& [limit_file, usage_file, stat_file] : places) {
    int64_t limit = 0, usage = 0;
    if ((std::ifstream(limit_file) >> limit) && (std::ifstream(usage_file) >> usage) &&
        limit < (int64_t{1} << 60))
      return std::max<int64_t>(1, limit - usage + cgroup_file_cache(stat_file));
  }
  return 0;
}

// What a session keeps of its sliding layers at most: nothing while their rings hold the whole context.
int64_t snapshot_bytes(const Config& config, int64_t n_ctx, KvTypes kv_types, int64_t n_ubatch, int64_t limit,
                       int64_t available) {
  constexpr int64_t kStep = 256, kFar = kMaxContext;
  const auto kv = [&](int64_t n) { return KvCache::plan_bytes(config, n, kv_types, n_ubatch); };
  // Bytes of a position, in global and in sliding layers.
  const int64_t global = (kv(kFar) - kv(kFar - kStep)) / kStep, sliding = kv(kStep) / kStep - global;
  const int64_t ring = sliding > 0 ? (kv(kFar) - kFar * global) / sliding : kFar;
  if (n_ctx <= ring || limit == 0) return 0;
  if (limit == kAutoSnapshots) limit = auto_snapshot_bytes(sliding * (config.window + kStep), available);
  return std::min(limit, sliding * n_ctx);
}

}  // namespace

int64_t image_bytes(const Config& config, int64_t n_ctx, KvTypes kv_types, int64_t n_ubatch, int64_t n_rows) {
  if (n_rows <= n_ubatch) return 0;
  const auto kv = [&](int64_t step) { return KvCache::plan_bytes(config, n_ctx, kv_types, step); };
  return Gemma4::scratch_bytes(config, n_rows, 1) + kv(n_rows) - kv(n_ubatch);
}

int64_t auto_snapshot_bytes(int64_t window_bytes, int64_t available) {
  const int64_t wanted = std::max(int64_t{256} << 20, window_bytes);
  return available > 0 ? std::min(wanted, available / 8) : wanted;
}

int64_t available_memory() {
  int64_t available = meminfo_available();
  const int64_t group = cgroup_available();
  if (group > 0) available = available > 0 ? std::min(available, group) : group;
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    available = std::min(available, static_cast<int64_t>(limit.rlim_cur));
  return available;
}

MemoryPlan plan_memory(const GgufFile& file, int64_t n_ctx, KvTypes kv_types, int64_t n_ubatch,
                       const GgufFile* mmproj, const GgufFile* drafter, int64_t snapshot_limit,
                       bool packing) {
  check_ubatch(n_ubatch);
  const Config config = Config::from_gguf(file);
  MemoryPlan plan;
  int64_t largest = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.name == kLazyTable) continue;
    plan.weights += static_cast<int64_t>(tensor.n_bytes);
    if (tensor.layout == Layout::Rows) largest = std::max(largest, static_cast<int64_t>(tensor.n_bytes));
  }
  plan.kv = KvCache::plan_bytes(config, n_ctx, kv_types, n_ubatch);
  // One row of logits: of the others, which scores need, memory is taken only as they are used.
  plan.scratch = Gemma4::scratch_bytes(config, n_ubatch, 1) + (packing ? std::min(largest, kRepackPiece) : 0);
  if (mmproj != nullptr) {
    for (const GgufTensor& tensor : mmproj->tensors()) plan.media += static_cast<int64_t>(tensor.n_bytes);
    plan.media += image_bytes(config, n_ctx, kv_types, n_ubatch, kImageRows);
  }
  if (drafter != nullptr) {
    const DrafterConfig drafts = DrafterConfig::from_gguf(*drafter, config);
    for (const GgufTensor& tensor : drafter->tensors()) plan.drafter += static_cast<int64_t>(tensor.n_bytes);
    plan.drafter += Gemma4::scratch_bytes(drafts.stack, 1, 1);
  }
  plan.available = available_memory();
  plan.snapshots = snapshot_bytes(config, n_ctx, kv_types, n_ubatch, snapshot_limit, plan.available);
  plan.total = plan.weights + plan.kv + plan.scratch + plan.media + plan.drafter + plan.snapshots;
  return plan;
}

}  // namespace gemmule
