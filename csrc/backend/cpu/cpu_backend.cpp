// Operations become runs of small jobs on the pool. A product is split over output rows only, never over a
// sum, so neither the number of threads nor the size of a job can change a bit.
#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/kernel_select.h"
#include "core/error.h"
#include "quant/codec.h"
#include "quant/packed.h"

namespace gemmule {
namespace {

// A job of a product with few rows reads about this many bytes, and at least the two panels that the kernels
// read side by side: long enough to stream, short enough that a preempted worker holds little.
constexpr int64_t kJobBytes = 256 * 1024;
constexpr int64_t kStreamRows = 2 * kPanelRows;
constexpr int64_t kManyTokens = 16;   // from here on the time of a job is in the products
constexpr int64_t kMaxPanels = 4;     // of such a job
constexpr int64_t kJobTokens = 2048;  // tokens times panels of a job, so that it takes milliseconds

}  // namespace

ActKind CpuBackend::act_kind(DType dtype) {
  switch (dtype) {
    case DType::F32:
    case DType::F16:
    case DType::BF16:
      return ActKind::F32;
    default:
      return dtype_info(dtype).block_size == 256 ? ActKind::Q8_256 : ActKind::Q8_32;
  }
}

int64_t CpuBackend::job_rows(const Tensor& w, int64_t n_tokens) const {
  const int64_t n = n_threads();
  if (n_tokens >= kManyTokens && w.rows >= n * kPanelRows) {
    // The kernels lay out the activations once for all panels of a job, which costs a quarter of a panel: the
    // number of panels with which all threads are done first.
    const int64_t panels = w.rows / kPanelRows;
    const auto cost = [&](int64_t each) { return ((panels + each - 1) / each + n - 1) / n * (4 * each + 1); };
    int64_t best = 1;
    for (int64_t each = 2; each <= std::min(kMaxPanels, kJobTokens / n_tokens); ++each)
      if (cost(each) < cost(best)) best = each;
    return best * kPanelRows;
  }
  // At least four jobs a thread, where the matrix has the rows.
  const int64_t wanted = std::min(std::max(kStreamRows, kJobBytes / w.row_size()), w.rows / (4 * n));
  const int64_t multiple = wanted >= kStreamRows  ? kStreamRows
                           : wanted >= kPanelRows ? kPanelRows
                                                  : kGroupRows;
  return std::max(kGroupRows, wanted / multiple * multiple);
}

std::unique_ptr<Backend> open_cpu(const std::string& isa, int n_threads, int decode_threads) {
  if (n_threads < 0 || n_threads > kMaxThreads)
    throw std::invalid_argument(
        cat("n_threads is ", n_threads, "; choose 1 to ", kMaxThreads, ", or 0 for all cores"));
  const KernelTable& kernels = select_kernels(detect_cpu_features(), isa);
  if (n_threads > 0) return std::make_unique<CpuBackend>(kernels, n_threads);
  const int n_cores = physical_cores();
  return std::make_unique<CpuBackend>(kernels, n_cores, ThreadTuner(n_cores, decode_threads));
}

void CpuBackend::begin_step(int64_t n_rows) {
  step_rows_ = n_rows;
  weights_.begin_step();
  is_tuned_step_ = n_rows == 1 && tuner_.n_threads() > 1;
  pool_.limit_threads(is_tuned_step_ ? tuner_.next() : pool_.n_threads());
  step_start_ = std::chrono::steady_clock::now();
}

void CpuBackend::end_step() {
  if (!is_tuned_step_) return;
  pool_.limit_threads(pool_.n_threads());
  tuner_.took(std::chrono::duration<double>(std::chrono::steady_clock::now() - step_start_).count());
}

Rows CpuBackend::alloc(int64_t n_rows, int64_t cols) {
  buffers_.emplace_back(n_rows * cols * static_cast<int64_t>(sizeof(float)));
  return {buffers_.back().as<float>(), n_rows, cols};
}

void CpuBackend::reserve(int64_t max_rows, int64_t max_cols, int64_t max_head_dim) {
  max_cols = (max_cols + 255) / 256 * 256;
  const size_t matmul = kernels_.matmul_scratch_bytes(max_rows, max_cols);
  size_t attend = 0;
  reserve_attention(max_head_dim, attend);
  const auto grow = [](Arena& arena, int64_t n_bytes) {
    if (n_bytes > arena.size()) arena = Arena(n_bytes);
  };
  const auto row = static_cast<size_t>(max_row_bytes_);
  const auto scratch_bytes = static_cast<int64_t>((std::max({matmul, attend, row}) + 4095) / 4096 * 4096);
  grow(scratch_, scratch_bytes * pool_.n_threads());
  scratch_bytes_ = std::max(scratch_bytes_, scratch_bytes);
  const int64_t n = max_rows * max_cols;
  grow(q32_, n);
  grow(q256_, n);
  grow(d32_, n / 32 * static_cast<int64_t>(sizeof(float)));
  grow(d256_, n / 256 * static_cast<int64_t>(sizeof(float)));
  grow(sums32_, n / 32 * static_cast<int64_t>(sizeof(int16_t)));
  grow(sums256_, n / 16 * static_cast<int64_t>(sizeof(int16_t)));
}

void CpuBackend::write(Rows y, const float* numbers) {
  std::memcpy(y.data, numbers, static_cast<size_t>(y.n * y.cols) * sizeof(float));
}

void CpuBackend::copy(Rows y, Rows x) {
  std::memcpy(y.data, x.data, static_cast<size_t>(x.n * x.cols) * sizeof(float));
}

void CpuBackend::add(Rows x, Rows y) {
  each_row(x.n,
           [&](int64_t i) { kernels_.add_scaled(x.data + i * x.cols, y.data + i * y.cols, 1.0f, x.cols); });
}

void CpuBackend::add_vector(Rows x, const Tensor& b) {
  each_row(x.n, [&](int64_t i) { kernels_.add_scaled(x.data + i * x.cols, b.f32(), 1.0f, x.cols); });
}

void CpuBackend::embed(Rows y, const Tensor& table, std::span<const int32_t> tokens, float scale) {
  const Codec& row_codec = codec(table.dtype);
  const PackedWeights::View w = weights_.view(table);
  Tensor panels = table;
  panels.data = w.panels;
  panels.layout = Layout::R8P64;
  pool_.run(y.n, [&](int64_t i, int thread) {
    const int64_t token = tokens[static_cast<size_t>(i)];
    float* const row = y.data + i * y.cols;
    if (token < w.n_packed) {
      auto* const blocks = static_cast<uint8_t*>(scratch(thread));
      unpack_row(panels, token, blocks);
      row_codec.dequantize_row(blocks, row, y.cols);
    } else {
      row_codec.dequantize_row(table.row(token), row, y.cols);
    }
    kernels_.scale(row, scale, y.cols);
  });
}

void CpuBackend::rms_norm(Rows y, Rows x, const Tensor& w, float eps) {
  each_row(x.n, [&](int64_t i) {
    kernels_.rms_norm(y.data + i * x.cols, x.data + i * x.cols, w ? w.f32() : nullptr, x.cols, eps);
  });
}

void CpuBackend::add_rms_norm(Rows x, Rows y, const Tensor& w, float eps) {
  each_row(x.n, [&](int64_t i) {
    kernels_.add_rms_norm(x.data + i * x.cols, y.data + i * x.cols, w.f32(), x.cols, eps);
  });
}

void CpuBackend::layer_norm(Rows y, Rows x, const Tensor& w, const Tensor& b, float eps) {
  each_row(x.n, [&](int64_t i) {
    kernels_.layer_norm(y.data + i * x.cols, x.data + i * x.cols, w.f32(), b.f32(), x.cols, eps);
  });
}

const ActRows& CpuBackend::Inputs::of(DType dtype) const {
  const ActKind kind = act_kind(dtype);
  return kind == ActKind::F32 ? f32 : kind == ActKind::Q8_32 ? q8_32 : q8_256;
}

CpuBackend::Inputs CpuBackend::prepare(Rows x, std::span<const DType> weights) {
  const int64_t k = x.cols;
  const auto needs = [&](ActKind kind) {
    return std::any_of(weights.begin(), weights.end(), [&](DType w) { return act_kind(w) == kind; });
  };
  const bool need_q8_32 = needs(ActKind::Q8_32), need_q8_256 = needs(ActKind::Q8_256);
  Inputs in{};
  in.f32 = {x.n, k, x.data, nullptr, nullptr, nullptr};
  in.q8_32 = {x.n, k, nullptr, q32_.as<int8_t>(), d32_.as<float>(), sums32_.as<int16_t>()};
  in.q8_256 = {x.n, k, nullptr, q256_.as<int8_t>(), d256_.as<float>(), sums256_.as<int16_t>()};
  if (need_q8_32 || need_q8_256) {
    each_row(x.n, [&](int64_t i) {
      const float* row = x.data + i * k;
      if (need_q8_32)
        kernels_.quantize_q8_32(row, k, q32_.as<int8_t>() + i * k, d32_.as<float>() + i * (k / 32),
                                sums32_.as<int16_t>() + i * (k / 32));
      if (need_q8_256)
        kernels_.quantize_q8_256(row, k, q256_.as<int8_t>() + i * k, d256_.as<float>() + i * (k / 256),
                                 sums256_.as<int16_t>() + i * (k / 16));
    });
  }
  return in;
}

void CpuBackend::multiply(Rows y, const PackedWeights::View& w, const Inputs& in, int64_t row_begin,
                          int64_t row_end, int thread) {
  const auto type = static_cast<size_t>(w.rows.dtype);
  const ActRows& x = in.of(w.rows.dtype);
  const int64_t split = std::clamp(w.n_packed, row_begin, row_end);
  if (row_begin < split)
    kernels_.matmul_packed[type](w.panels, w.rows.rows, row_begin, split, x, y.data, y.cols, scratch(thread));
  if (split < row_end)
    kernels_.matmul[type](w.rows.data, w.rows.row_size(), split, row_end, x, y.data, y.cols, scratch(thread));
}

void CpuBackend::matmul(std::span<const Product> products, Rows x) {
  constexpr size_t kMaxProducts = 4;
  std::array<int64_t, kMaxProducts> first_job{}, rows{};
  std::array<DType, kMaxProducts> types{};
  std::array<PackedWeights::View, kMaxProducts> w{};
  int64_t n_jobs = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    w[i] = weights(products[i].w, x.n);
    types[i] = products[i].w.dtype;
    first_job[i] = n_jobs;
    rows[i] = job_rows(products[i].w, x.n);
    n_jobs += (products[i].w.rows + rows[i] - 1) / rows[i];
  }
  const Inputs in = prepare(x, std::span<const DType>(types).first(products.size()));
  pool_.run(n_jobs, [&](int64_t job, int thread) {
    size_t i = products.size() - 1;
    while (job < first_job[i]) --i;
    const int64_t begin = (job - first_job[i]) * rows[i];
    multiply(products[i].y, w[i], in, begin, std::min(begin + rows[i], w[i].rows.rows), thread);
  });
}

void CpuBackend::matmul_rows(Rows y, const Tensor& w, Rows x, std::span<const int32_t> rows) {
  constexpr int64_t kRowsPerJob = 128;
  const auto n_rows = static_cast<int64_t>(rows.size());
  const Inputs in = prepare(x, {w.dtype});
  pool_.run((n_rows + kRowsPerJob - 1) / kRowsPerJob, [&](int64_t job, int thread) {
    const int64_t end = std::min((job + 1) * kRowsPerJob, n_rows);
    for (int64_t i = job * kRowsPerJob; i < end; ++i) {
      const int64_t row = rows[static_cast<size_t>(i)];
      multiply(y, {w, nullptr, 0}, in, row, row + 1, thread);
    }
  });
}

void CpuBackend::gated_gelu(Rows y, Rows tmp, const Tensor& gate, const Tensor& up, Rows x) {
  const PackedWeights::View w_gate = weights(gate, x.n), w_up = weights(up, x.n);
  const Inputs in = prepare(x, {gate.dtype, up.dtype});
  const int64_t rows = job_rows(gate, x.n);
  pool_.run((gate.rows + rows - 1) / rows, [&](int64_t job, int thread) {
    multiply_gated(y, tmp, w_gate, w_up, in, job * rows, std::min((job + 1) * rows, gate.rows), thread);
  });
}

void CpuBackend::multiply_gated(Rows y, Rows tmp, const PackedWeights::View& gate,
                                const PackedWeights::View& up, const Inputs& in, int64_t row_begin,
                                int64_t row_end, int thread) {
  multiply(y, gate, in, row_begin, row_end, thread);
  multiply(tmp, up, in, row_begin, row_end, thread);
  for (int64_t t = 0; t < y.n; ++t) {
    float* out = y.data + t * y.cols + row_begin;
    kernels_.gelu_mul(out, out, tmp.data + t * tmp.cols + row_begin, row_end - row_begin);
  }
}

void CpuBackend::gelu_mul(Rows y, Rows gate, Rows up, int64_t up_col) {
  each_row(y.n, [&](int64_t i) {
    kernels_.gelu_mul(y.data + i * y.cols, gate.data + i * gate.cols, up.data + i * up.cols + up_col, y.cols);
  });
}

void CpuBackend::head_norm_rope(Rows x, int64_t head_dim, const Tensor& w, float eps, Rows cos, Rows sin,
                                float scale) {
  const int64_t n_heads = x.cols / head_dim;
  each_row(x.n, [&](int64_t i) {
    for (int64_t h = 0; h < n_heads; ++h) {
      float* head = x.data + i * x.cols + h * head_dim;
      kernels_.rms_norm(head, head, w ? w.f32() : nullptr, head_dim, eps);
      if (cos.cols > 0)
        kernels_.rope(head, cos.data + i * cos.cols, sin.data + i * sin.cols, cos.cols, head_dim);
      if (scale != 1.0f) kernels_.scale(head, scale, head_dim);
    }
  });
}

void CpuBackend::scale(Rows x, float s) {
  each_row(x.n, [&](int64_t i) { kernels_.scale(x.data + i * x.cols, s, x.cols); });
}

void CpuBackend::softcap(Rows x, float cap) {
  constexpr int64_t kPiece = 16384;  // the vocabulary is long even when the row is one
  const int64_t n = x.n * x.cols;
  pool_.run((n + kPiece - 1) / kPiece, [&](int64_t job, int) {
    kernels_.softcap(x.data + job * kPiece, cap, std::min(kPiece, n - job * kPiece));
  });
}

}  // namespace gemmule
