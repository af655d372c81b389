// The operations of a mixture of experts. Each (row, expert) pair is an input row of its own, and the pairs
// of an expert are consecutive, so that a product is the ordinary one on a slice of the rows: its bits cannot
// depend on which other rows chose the same expert. Jobs cut experts and output rows, never a sum.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"

namespace gemmule {

Routes CpuBackend::alloc_routes(int64_t n_rows, int64_t n_experts, int64_t n_used) {
  const int64_t n_pairs = n_rows * n_used;
  const auto numbers = [&](int64_t n) {
    buffers_.emplace_back(n * static_cast<int64_t>(sizeof(int32_t)));
    return buffers_.back().as<int32_t>();
  };
  Routes routes;
  routes.n_experts = n_experts;
  routes.n_used = n_used;
  routes.expert = numbers(n_pairs);
  routes.weight = alloc(n_rows, n_used).data;
  routes.place = numbers(n_pairs);
  routes.row = numbers(n_pairs);
  routes.first = numbers(n_experts + 1);
  routes.busy = numbers(n_experts);
  return routes;
}

void CpuBackend::route(Routes& routes, Rows scores, const Tensor& scale) {
  routes.n = scores.n;
  each_row(scores.n, [&](int64_t i) {
    kernels_.route(scores.data + i * scores.cols, scores.cols, scale.f32(), routes.n_used,
                   routes.expert + i * routes.n_used, routes.weight + i * routes.n_used);
  });
  // A counting sort by expert; pairs are visited row by row, so rows ascend within an expert.
  const int64_t n_pairs = routes.n_places();
  std::fill_n(routes.first, routes.n_experts + 1, 0);
  for (int64_t i = 0; i < n_pairs; ++i) ++routes.first[routes.expert[i] + 1];
  routes.n_busy = 0;
  for (int32_t e = 0; e < routes.n_experts; ++e) {
    if (routes.first[e + 1] > 0) routes.busy[routes.n_busy++] = e;
    routes.first[e + 1] += routes.first[e];
  }
  for (int64_t i = 0; i < n_pairs; ++i) {
    routes.place[i] = routes.first[routes.expert[i]]++;
    routes.row[routes.place[i]] = static_cast<int32_t>(i / routes.n_used);
  }
  // Each entry has moved to where the next one was.
  for (int64_t e = routes.n_experts; e > 0; --e) routes.first[e] = routes.first[e - 1];
  routes.first[0] = 0;
}

void CpuBackend::gather(Rows y, Rows x, const Routes& routes) {
  each_row(routes.n_places(), [&](int64_t place) {
    std::memcpy(y.data + place * y.cols, x.data + routes.row[place] * x.cols,
                static_cast<size_t>(x.cols) * sizeof(float));
  });
}

CpuBackend::Inputs CpuBackend::Inputs::rows(int64_t first, int64_t n) const {
  const auto slice = [&](const ActRows& all, int64_t per_scale, int64_t per_sum) {
    ActRows some = all;
    const int64_t at = first * all.k;
    some.n = n;
    if (all.f32 != nullptr) some.f32 += at;
    if (all.q != nullptr) some.q += at, some.d += at / per_scale, some.sums += at / per_sum;
    return some;
  };
  return {slice(f32, 1, 1), slice(q8_32, 32, 32), slice(q8_256, 256, 16)};
}

// fn(expert, first place, number of places, first output row, end of output rows, thread)
template <class Fn>
void CpuBackend::each_expert_job(const Experts& w, const Routes& routes, Fn&& fn) {
  const int64_t rows = job_rows(w.first, routes.n_places() / std::max<int64_t>(1, routes.n_busy));
  const int64_t jobs_per_expert = (w.first.rows + rows - 1) / rows;
  pool_.run(routes.n_busy * jobs_per_expert, [&](int64_t job, int thread) {
    const int64_t expert = routes.busy[job / jobs_per_expert];
    const int64_t first = routes.first[expert], n = routes.first[expert + 1] - first;
    const int64_t begin = job % jobs_per_expert * rows;
    fn(expert, first, n, begin, std::min(begin + rows, w.first.rows), thread);
  });
}

void CpuBackend::expert_matmul(Rows y, const Experts& w, Rows x, const Routes& routes) {
  weights_.advance(w.first, routes.n_places(), kernels_, pool_);
  const Inputs in = prepare(x, {w.first.dtype});
  each_expert_job(
      w, routes, [&](int64_t expert, int64_t first, int64_t n, int64_t begin, int64_t end, int thread) {
        multiply(y.from(first, n), weights_.view(w.of(expert)), in.rows(first, n), begin, end, thread);
      });
}

void CpuBackend::expert_gated_gelu(Rows y, Rows tmp, const Experts& gate, const Experts& up, Rows x,
                                   const Routes& routes) {
  weights_.advance(gate.first, routes.n_places(), kernels_, pool_);
  weights_.advance(up.first, routes.n_places(), kernels_, pool_);
  const Inputs in = prepare(x, {gate.first.dtype, up.first.dtype});
  each_expert_job(gate, routes,
                  [&](int64_t expert, int64_t first, int64_t n, int64_t begin, int64_t end, int thread) {
                    multiply_gated(y.from(first, n), tmp.from(first, n), weights_.view(gate.of(expert)),
                                   weights_.view(up.of(expert)), in.rows(first, n), begin, end, thread);
                  });
}

void CpuBackend::expert_sum(Rows y, Rows x, const Routes& routes) {
  each_row(y.n, [&](int64_t i) {
    float* const out = y.data + i * y.cols;
    std::fill_n(out, y.cols, 0.0f);
    for (int64_t r = i * routes.n_used; r < (i + 1) * routes.n_used; ++r)
      kernels_.add_scaled(out, x.data + routes.place[r] * x.cols, routes.weight[r], y.cols);
  });
}

}  // namespace gemmule
