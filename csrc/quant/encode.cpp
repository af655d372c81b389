// Jobs of whole rows: widen to f32, look for NaN and infinity, encode. The kernels add up the errors of each
// row; the rows are added in order.
#include "quant/encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "core/error.h"
#include "core/half.h"
#include "quant/codec.h"
#include "quant/encode_kernels.h"
#include "quant/row_codecs.h"

namespace gemmule {

namespace {

constexpr int64_t kJobElements = 16384;       // enough work for a job to hide the cost of taking it
constexpr int64_t kSliceElements = 1 << 19;   // of one thread between two looks at the stop token
constexpr float kLeastImportance = 0x1p-40f;  // keeps the sums of a group of zeros from vanishing

// The levels this build has and this machine runs, the best first.
std::vector<const EncodeKernels*> usable_levels() {
  std::vector<const EncodeKernels*> levels;
#if defined(GEMMULE_HAVE_ENCODE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    levels.push_back(&encode_kernels_avx512());
#endif
#if defined(GEMMULE_HAVE_ENCODE_AVX2)
  if (__builtin_cpu_supports("avx2")) levels.push_back(&encode_kernels_avx2());
#endif
  levels.push_back(&encode_kernels_scalar());
  return levels;
}

const EncodeKernels& select_level(const std::string& isa) {
  std::string usable;
  for (const EncodeKernels* level : usable_levels()) {
    if (isa.empty() || isa == level->name) return *level;
    usable += (usable.empty() ? "" : ", ") + std::string(level->name);
  }
  throw DeviceError(cat("isa=\"", isa, "\" cannot run here; this build and machine offer: ", usable));
}

// The kernel of a block type; nullptr for the float types.
void (*kernel_of(const EncodeKernels& kernels, DType dtype))(const EncodeJob&) {
  switch (dtype) {
    case DType::Q8_0:
      return kernels.q8_0;
    case DType::Q4_0:
      return kernels.q4_0;
    case DType::Q4_1:
      return kernels.q4_1;
    case DType::Q5_0:
      return kernels.q5_0;
    case DType::Q5_1:
      return kernels.q5_1;
    case DType::Q2_K:
      return kernels.q2_k;
    case DType::Q3_K:
      return kernels.q3_k;
    case DType::Q4_K:
      return kernels.q4_k;
    case DType::Q5_K:
      return kernels.q5_k;
    case DType::Q6_K:
      return kernels.q6_k;
    default:
      return nullptr;
  }
}

// The importance divided by a power of two near its maximum, and that power.
struct Importance {
  std::vector<float> values;  // [n_cols] in [kLeastImportance, 2), or empty: all columns count the same
  double unit = 1;
};

Importance normalize(const float* importance, int64_t n_cols) {
  Importance made;
  if (importance == nullptr) return made;
  const float peak = *std::max_element(importance, importance + n_cols);
  if (!(peak > 0)) return made;
  int exponent = 0;
  std::frexp(peak, &exponent);
  made.unit = std::ldexp(1.0, exponent);
  made.values.resize(static_cast<size_t>(n_cols));
  for (int64_t i = 0; i < n_cols; ++i)
    made.values[static_cast<size_t>(i)] = std::max(std::ldexp(importance[i], -exponent), kLeastImportance);
  return made;
}

// x, y [n] -> the four sums of one row.
void add_row(const float* x, const float* y, const float* importance, int64_t n, double* row) {
  for (int64_t i = 0; i < n; ++i) {
    const double value = static_cast<double>(x[i]);
    const double diff = value - static_cast<double>(y[i]);
    const double w = importance != nullptr ? static_cast<double>(importance[i]) : 1.0;
    row[0] += diff * diff;
    row[1] += value * value;
    row[2] += w * (diff * diff);
    row[3] += w * (value * value);
  }
}

float root_mean_square(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return static_cast<float>(std::sqrt(sum / static_cast<double>(n)));
}

int checked_threads(int n_threads) {
  if (n_threads < 1 || n_threads > kMaxThreads)
    throw std::invalid_argument(cat("n_threads is ", n_threads, "; choose 1 to ", kMaxThreads));
  return n_threads;
}

void check_stop(const StopToken* stop) {
  if (stop == nullptr) return;
  try {
    stop->check();
  } catch (const Cancelled&) {
    throw Cancelled("the encoding was cancelled; its output is incomplete");
  }
}

// One call of Encoder::encode: what its jobs share.
struct Task {
  const EncodeRequest& request;
  const EncodeKernels& kernels;
  const float* importance;  // normalized, or null
  int64_t src_row;          // bytes
  int64_t dst_row;

  // The smallest magnitude that becomes infinite in the destination.
  float limit() const {
    if (request.dst_type == DType::F16) return 65520.0f;
    if (request.dst_type == DType::BF16) return 0x1.ffp127f;
    return HUGE_VALF;
  }

  // The first element of x [n] that cannot be encoded; -1 for none.
  int64_t find_bad(const float* x, int64_t n) const {
    const float limit = request.dst_type == request.src_type ? HUGE_VALF : this->limit();
    if (limit == HUGE_VALF && kernels.all_finite(x, n)) return -1;
    for (int64_t i = 0; i < n; ++i)
      if (!(std::fabs(x[i]) < limit)) return i;
    return -1;
  }

  // Rows [first, first + n) -> sums [n * 4]; returns the first bad element within them or -1. x, y: scratch
  // of n * n_cols; rms [n].
  int64_t encode_rows(int64_t first, int64_t n, float* x, float* y, float* rms, double* sums) const {
    const int64_t n_cols = request.n_cols;
    const uint8_t* src = request.src + first * src_row;
    uint8_t* dst = request.dst + first * dst_row;
    if (request.src_type == DType::BF16) {
      kernels.widen_bf16(src, x, n * n_cols);
    } else {
      codec(request.src_type).dequantize_row(src, x, n * n_cols);
    }
    const int64_t bad = find_bad(x, n * n_cols);
    if (bad >= 0) return bad;
    std::fill(sums, sums + 4 * n, 0.0);
    if (request.src_type == request.dst_type) {
      std::memcpy(dst, src, static_cast<size_t>(n * src_row));
      for (int64_t r = 0; r < n; ++r)
        add_row(x + r * n_cols, x + r * n_cols, importance, n_cols, sums + 4 * r);
      return -1;
    }
    const auto kernel = kernel_of(kernels, request.dst_type);
    if (kernel == nullptr) {
      const Codec& to = codec(request.dst_type);
      to.quantize_row(x, dst, n * n_cols);
      to.dequantize_row(dst, y, n * n_cols);
      for (int64_t r = 0; r < n; ++r)
        add_row(x + r * n_cols, y + r * n_cols, importance, n_cols, sums + 4 * r);
      return -1;
    }
    if (importance != nullptr)
      for (int64_t r = 0; r < n; ++r) rms[r] = root_mean_square(x + r * n_cols, n_cols);
    kernel({x, importance, rms, dst, sums, n, n_cols, static_cast<uint32_t>(request.src_type)});
    return -1;
  }
};

}  // namespace

void encode_plain_row(DType dtype, const float* src, uint8_t* dst, int64_t n) {
  if (n == 0) return;
  static const EncodeKernels& kernels = select_level("");
  double sums[4] = {};
  kernel_of(kernels, dtype)({src, nullptr, nullptr, dst, sums, 1, n, static_cast<uint32_t>(DType::F32)});
}

Encoder::Encoder(int n_threads, const std::string& isa)
    : pool_(checked_threads(n_threads)), kernels_(select_level(isa)) {}

const char* Encoder::isa() const { return kernels_.name; }

void Encoder::check_row(DType type, int64_t n_cols) {
  const DTypeInfo& info = dtype_info(type);
  if (n_cols <= 0 || n_cols % info.block_size != 0)
    throw std::invalid_argument(
        cat("rows of ", n_cols, " elements are not whole ", info.name, " blocks of ", info.block_size));
  if (n_cols > kMaxCols)
    throw std::invalid_argument(cat("rows of ", n_cols, " elements are too long; choose at most ", kMaxCols));
}

EncodeStats Encoder::encode(const EncodeRequest& request, const StopToken* stop) {
  const int64_t n_cols = request.n_cols;
  check_row(request.src_type, n_cols);
  check_row(request.dst_type, n_cols);
  if (request.n_rows < 0)
    throw std::invalid_argument(cat("n_rows is ", request.n_rows, "; it must not be negative"));
  if (request.n_rows == 0) return {};
  const Importance importance = normalize(request.importance, n_cols);
  const Task task{request, kernels_, importance.values.empty() ? nullptr : importance.values.data(),
                  row_bytes(request.src_type, n_cols), row_bytes(request.dst_type, n_cols)};
  const std::less<const uint8_t*> before;
  if (before(request.src, request.dst + request.n_rows * task.dst_row) &&
      before(request.dst, request.src + request.n_rows * task.src_row))
    throw std::invalid_argument("the source and the destination overlap; encode into memory of its own");
  const int64_t job_rows = std::max<int64_t>(1, kJobElements / n_cols);
  const int64_t slice_rows =
      std::max<int64_t>(1, kSliceElements * pool_.n_threads() / (job_rows * n_cols)) * job_rows;
  const auto scratch_size = static_cast<size_t>(job_rows * n_cols);
  std::vector<std::vector<float>> scratch(
      static_cast<size_t>(pool_.n_threads()),
      std::vector<float>(2 * scratch_size + static_cast<size_t>(job_rows)));
  const int64_t held_rows = std::min(slice_rows, request.n_rows);
  std::vector<double> sums(static_cast<size_t>(4 * held_rows));
  std::vector<int64_t> bad(static_cast<size_t>((held_rows + job_rows - 1) / job_rows));
  EncodeStats stats;
  for (int64_t first = 0; first < request.n_rows; first += slice_rows) {
    const int64_t n_rows = std::min(slice_rows, request.n_rows - first);
    const int64_t n_jobs = (n_rows + job_rows - 1) / job_rows;
    check_stop(stop);
    pool_.run(n_jobs, [&](int64_t job, int thread) {
      float* x = scratch[static_cast<size_t>(thread)].data();
      const int64_t row = job * job_rows;
      bad[static_cast<size_t>(job)] =
          task.encode_rows(first + row, std::min(job_rows, n_rows - row), x, x + scratch_size,
                           x + 2 * scratch_size, sums.data() + 4 * row);
    });
    for (int64_t job = 0; job < n_jobs; ++job) {
      if (bad[static_cast<size_t>(job)] < 0) continue;
      stats.first_bad = (first + job * job_rows) * n_cols + bad[static_cast<size_t>(job)];
      return stats;
    }
    for (int64_t row = 0; row < n_rows; ++row) {
      const double* sum = sums.data() + 4 * row;
      stats.error2 += sum[0];
      stats.norm2 += sum[1];
      stats.weighted_error2 += sum[2];
      stats.weighted_norm2 += sum[3];
    }
  }
  stats.weighted_error2 *= importance.unit;
  stats.weighted_norm2 *= importance.unit;
  return stats;
}

double Encoder::lattice_q4_0(const uint8_t* src, DType src_type, int64_t n) {
  const int64_t src_block = row_bytes(src_type, 256) / 8;
  const int64_t n_blocks = n / 32;
  constexpr int64_t kJobBlocks = kJobElements / 32;
  std::vector<int64_t> found(static_cast<size_t>((n_blocks + kJobBlocks - 1) / kJobBlocks));
  pool_.run(static_cast<int64_t>(found.size()), [&](int64_t job, int) {
    for (int64_t i = job * kJobBlocks; i < std::min(n_blocks, (job + 1) * kJobBlocks); ++i) {
      float x[32];
      uint8_t block[18];
      codec(src_type).dequantize_row(src + i * src_block, x, 32);
      if (kernels_.all_finite(x, 32) && encode_lattice_q4_0(x, static_cast<uint32_t>(src_type), block))
        ++found[static_cast<size_t>(job)];
    }
  });
  int64_t total = 0;
  for (const int64_t count : found) total += count;
  return n_blocks > 0 ? static_cast<double>(total) / static_cast<double>(n_blocks) : 0.0;
}

}  // namespace gemmule
