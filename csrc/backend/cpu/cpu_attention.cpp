// The cache and attention on the CPU. With few rows a job is one chunk of 256 positions for the query heads
// of one key/value head, so that keys and values are read once and all threads have work; the chunks are then
// combined in ascending order. With many rows a job is a tile of rows that goes through its chunks itself,
// some thousand positions of them at a time. Both add the same numbers in the same order.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "core/half.h"
#include "quant/blocks.h"

namespace gemmule {
namespace {

constexpr int64_t kPartBytes = 8 << 20;  // results of chunks that wait to be combined
constexpr int64_t kFewHeads = 4;         // with fewer query heads a job, the cache would be widened too often
constexpr int64_t kJobProducts = 1 << 29;  // multiply-adds of a job at most, some 20 ms
constexpr int64_t kSerialParts = 128;      // so many are combined before a second thread would be awake

KvKind kind_of(DType dtype) {
  return dtype == DType::F16 ? KvKind::F16 : dtype == DType::F32 ? KvKind::F32 : KvKind::Q8_0;
}

// n numbers as blocks; the codes of the last one that have no number are 0. The rule of quantized
// activations, with the scale rounded to f16 afterwards.
void store_q8_0(const KernelTable& kernels, const float* x, int64_t n, uint8_t* to) {
  constexpr int64_t kBlock = 32;
  for (int64_t i = 0; i < n; i += kBlock, to += sizeof(BlockQ8_0)) {
    float numbers[kBlock] = {};
    std::memcpy(numbers, x + i, static_cast<size_t>(std::min(kBlock, n - i)) * sizeof(float));
    BlockQ8_0 block;
    float d = 0;
    int16_t sum = 0;
    kernels.quantize_q8_32(numbers, kBlock, block.q, &d, &sum);
    block.d = f32_to_f16(d);
    std::memcpy(to, &block, sizeof(block));
  }
}

}  // namespace

void CpuBackend::reserve_attention(int64_t max_head_dim, size_t& scratch_bytes) {
  // The need does not grow steadily with the head size, and layers differ in it.
  for (int64_t head_dim = 8; head_dim <= max_head_dim; head_dim += 8)
    scratch_bytes = std::max(scratch_bytes, kernels_.attend_scratch_bytes(head_dim, kAttendRows));
  if (max_head_dim > 0 && parts_.size() == 0) {
    parts_ = Arena(kPartBytes);
    sums_ = Arena(kMaxSums * 2 * static_cast<int64_t>(sizeof(float)));
  }
}

void CpuBackend::store_row(const KvView& kv, const float* x, int64_t n, uint8_t* to) const {
  if (kv.dtype == DType::F16)
    kernels_.f32_to_f16(x, reinterpret_cast<uint16_t*>(to), n);
  else if (kv.dtype == DType::F32)
    std::memcpy(to, x, static_cast<size_t>(n) * sizeof(float));
  else
    store_q8_0(kernels_, x, n, to);
}

void CpuBackend::kv_append(std::span<const KvRun> runs, Rows k, Rows v, std::span<const int64_t> pos) {
  for (const KvRun& run : runs) {
    const KvView& kv = run.kv;
    each_row(run.n_rows, [&](int64_t i) {
      const int64_t row = run.row + i, slot = pos[static_cast<size_t>(row)] % kv.ring;
      for (int64_t h = 0; h < kv.n_kv_heads; ++h) {
        const float* key = k.data + row * k.cols + h * kv.head_dim;
        float turned[kMaxTurned];
        if (kv.n_turned > 0) {
          std::copy_n(key, kv.n_turned, turned);
          std::copy_n(key + kv.head_dim / 2, kv.n_turned, turned + kv.n_turned);
          key = turned;
        }
        store_row(kv, key, kv.k_dim(), kv.k + (h * kv.ring + slot) * kv.k_row());
        store_row(kv, v.data + row * v.cols + h * kv.head_dim, kv.head_dim,
                  kv.v + (h * kv.ring + slot) * kv.v_row());
      }
    });
  }
}

// The rows [token, token + n_tokens) of a run and the query heads [head, head + n_heads).
AttendArgs CpuBackend::attend_args(const Attention& a, int64_t token, int64_t n_tokens, int64_t head,
                                   int64_t n_heads, int thread) {
  const KvView& kv = a.run->kv;
  const int64_t row = a.run->row + token, kv_head = head / a.group;
  AttendArgs args{};
  args.q = a.q.data + row * a.q.cols;
  args.q_stride = a.q.cols;
  args.out = a.y.data + row * a.y.cols;
  args.out_stride = a.y.cols;
  args.n_tokens = static_cast<int32_t>(n_tokens);
  args.head_begin = static_cast<int32_t>(head);
  args.head_end = static_cast<int32_t>(head + n_heads);
  args.head_dim = static_cast<int32_t>(kv.head_dim);
  args.n_turned = static_cast<int32_t>(kv.n_turned);
  args.kind = kind_of(kv.dtype);
  args.k_row = kv.k_row();
  args.v_row = kv.v_row();
  args.k = kv.k + kv_head * kv.ring * args.k_row;
  args.v = kv.v + kv_head * kv.ring * args.v_row;
  args.ring = kv.ring;
  args.lo = a.lo + row;
  args.hi = a.hi + row;
  args.scratch = scratch(thread);
  return args;
}

void CpuBackend::attend(Rows y, Rows q, std::span<const KvRun> runs, std::span<const int64_t> lo,
                        std::span<const int64_t> hi) {
  for (const KvRun& run : runs) {
    const int64_t n_heads = q.cols / run.kv.head_dim, most = std::max<int64_t>(1, kMaxSums / n_heads);
    for (int64_t row = 0; row < run.n_rows; row += most) {
      const KvRun part{run.row + row, std::min(most, run.n_rows - row), run.kv};
      attend_run({&part, y, q, lo.data(), hi.data(), n_heads, n_heads / run.kv.n_kv_heads});
    }
  }
}

void CpuBackend::attend_run(const Attention& a) {
  const int64_t row = a.run->row, n_rows = a.run->n_rows;
  const int64_t first = *std::min_element(a.lo + row, a.lo + row + n_rows) / kAttendChunk;
  const int64_t end = (*std::max_element(a.hi + row, a.hi + row + n_rows) - 1) / kAttendChunk + 1;
  const int64_t chunk_bytes = n_rows * a.n_heads * kernels_.attend_part_floats(a.run->kv.head_dim) *
                              static_cast<int64_t>(sizeof(float));
  std::fill_n(sums_.as<float>(), 2 * n_rows * a.n_heads, 0.0f);
  if (n_rows * a.group <= kAttendRows && chunk_bytes <= kPartBytes && first + 1 < end)
    attend_chunks(a, first, end, kPartBytes / chunk_bytes);
  else
    attend_tiles(a, first, end);
}

// Tiles of query rows that share a key/value head, all of them as far as a job may go, then the next
// positions: so a job, and with it a call that is cancelled, does not take long, and the threads read the
// same keys.
void CpuBackend::attend_tiles(const Attention& a, int64_t first, int64_t end) {
  const int64_t n_rows = a.run->n_rows;
  const int64_t heads = n_rows * a.group <= kFewRows ? 1 : std::min(a.group, kAttendRows);
  const int64_t tokens = std::max<int64_t>(1, kAttendRows / heads);
  const int64_t jobs_per_group = (a.group + heads - 1) / heads;
  const int64_t head_jobs = a.run->kv.n_kv_heads * jobs_per_group;
  const int64_t tiles = (n_rows + tokens - 1) / tokens;
  const int64_t chunk_products = 2 * heads * tokens * a.run->kv.head_dim * kAttendChunk;
  const int64_t per_round = std::max<int64_t>(1, kJobProducts / chunk_products);
  for (int64_t begin = first; begin < end; begin += per_round) {
    pool_.run(head_jobs * tiles, [&](int64_t job, int thread) {
      const int64_t kv_head = job % head_jobs / jobs_per_group;
      const int64_t head = kv_head * a.group + job % jobs_per_group * heads;
      const int64_t count = std::min(heads, (kv_head + 1) * a.group - head);
      // The last tokens see the most keys: they go first, so that no long job is left for the end.
      const int64_t token = (tiles - 1 - job / head_jobs) * tokens;
      AttendArgs args = attend_args(a, token, std::min(tokens, n_rows - token), head, count, thread);
      args.begin = begin * kAttendChunk;
      args.end = (begin + per_round) * kAttendChunk;
      args.sums = sums_.as<float>() + 2 * (n_rows * head + token * count);
      kernels_.attend(args);
    });
  }
}

// Chunk by chunk, `per_round` at a time, and then every row through its chunks.
void CpuBackend::attend_chunks(const Attention& a, int64_t first, int64_t end, int64_t per_round) {
  const int64_t n_rows = a.run->n_rows, dim = a.run->kv.head_dim, part = kernels_.attend_part_floats(dim);
  // Splitting the heads of a group helps only where there are more threads than chunks.
  int64_t heads = a.group;
  while (heads > kFewHeads &&
         (end - first) * a.run->kv.n_kv_heads * ((a.group + heads - 1) / heads) < n_threads())
    heads = (heads + 1) / 2;
  const int64_t jobs_per_group = (a.group + heads - 1) / heads;
  const int64_t head_jobs = a.run->kv.n_kv_heads * jobs_per_group;
  const int64_t chunk_parts = n_rows * a.n_heads;  // of all rows: [head jobs][n_rows][heads of the job]
  float* const parts = parts_.as<float>();
  float* const sums = sums_.as<float>();
  for (int64_t begin = first; begin < end; begin += per_round) {
    const int64_t n = std::min(per_round, end - begin);
    pool_.run(n * head_jobs, [&](int64_t job, int thread) {
      const int64_t chunk = job / head_jobs, kv_head = job % head_jobs / jobs_per_group;
      const int64_t head = kv_head * a.group + job % jobs_per_group * heads;
      const int64_t count = std::min(heads, (kv_head + 1) * a.group - head);
      kernels_.attend_chunk(attend_args(a, 0, n_rows, head, count, thread), (begin + chunk) * kAttendChunk,
                            parts + (chunk * chunk_parts + n_rows * head) * part);
    });
    const auto join = [&](int64_t row, int64_t head) {
      const int64_t first_head = head / a.group * a.group + head % a.group / heads * heads;
      const int64_t count = std::min(heads, (head / a.group + 1) * a.group - first_head);
      const int64_t place = n_rows * first_head + row * count + head - first_head;
      kernels_.attend_join(a.y.data + (a.run->row + row) * a.y.cols + head * dim, sums + 2 * place,
                           parts + place * part, chunk_parts * part, n, dim, begin + n == end);
    };
    if (n * chunk_parts <= kSerialParts) {
      for (int64_t i = 0; i < chunk_parts; ++i) join(i / a.n_heads, i % a.n_heads);
    } else {
      pool_.run(chunk_parts, [&](int64_t i, int) { join(i / a.n_heads, i % a.n_heads); });
    }
  }
}

}  // namespace gemmule
