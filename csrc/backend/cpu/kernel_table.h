// The only thing an instruction-set object exports: a table of kernels. All tables implement the numeric
// contract of docs/DESIGN.md ("Numbers") and give the same bits. Kernels are noexcept, allocate nothing and
// cannot fail. Included by kernel bodies, so only <cstddef> and <cstdint> may appear here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemmule {

// How a weight type wants its activations: as they are, or quantized to int8 with one scale per 32 or per
// 256.
enum class ActKind : uint8_t { F32, Q8_32, Q8_256 };

// n activation rows of k numbers in one of the three forms; the pointers of the other forms are null.
//   F32     f32 [n][k]
//   Q8_32   q [n][k], d [n][k/32],  sums [n][k/32]: sum of each 32 codes      (k a multiple of 32)
//   Q8_256  q [n][k], d [n][k/256], sums [n][k/16]: sum of each 16 codes      (k a multiple of 256)
struct ActRows {
  int64_t n;
  int64_t k;
  const float* f32;
  const int8_t* q;
  const float* d;
  const int16_t* sums;
};

// y[t * y_stride + r] = dot(weight row r, activation row t) for r in [row_begin, row_end) and t in [0, x.n).
// `w` is row 0 of the matrix, `w_stride` its bytes per row. `scratch` is private to the thread and 64-byte
// aligned.
using MatmulFn = void (*)(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end,
                          const ActRows& x, float* y, int64_t y_stride, void* scratch) noexcept;

// The packed layout r8p64: see quant/packed.h. A panel holds 64 rows (the last of a matrix: 8 to 56) in as
// many bytes as the same rows have in GGUF's layout, so panel p starts p * 64 * row size bytes into the
// matrix.

// Packs one panel: n_rows (8 to 64, a multiple of 8) consecutive GGUF rows of k elements.
using PackFn = void (*)(const uint8_t* rows, int64_t n_rows, int64_t k, uint8_t* panel) noexcept;
// As MatmulFn, for a packed matrix of n_rows rows whose first panel is at w; row_begin and row_end are
// multiples of 8.
using PackedMatmulFn = void (*)(const uint8_t* w, int64_t n_rows, int64_t row_begin, int64_t row_end,
                                const ActRows& x, float* y, int64_t y_stride, void* scratch) noexcept;

// How the cache holds numbers. Q8_0: blocks of 32 along the row (quant/blocks.h), the last one filled with 0.
enum class KvKind : uint8_t { F32, F16, Q8_0 };

// Attention of some query heads that share one key/value head, for n_tokens rows of one sequence.
//   q    [n_tokens][q_stride] f32: head h of token t starts at t * q_stride + h * head_dim; scale already
//        applied
//   out  [n_tokens][out_stride] f32, heads placed as in q
//   k, v [ring][row] of this key/value head, rows k_row and v_row bytes apart; position p lives in slot
//        p % ring. With n_turned > 0, k holds only the numbers [0, n_turned) and [head_dim / 2,
//        head_dim / 2 + n_turned) of a key; the others are those of v.
//   lo, hi [n_tokens]: token t sees the positions lo[t] <= p < hi[t]; lo < hi
// Positions are cut in chunks of 256 anchored at absolute position 0 and combined in ascending order,
// whatever the ring, so that the result does not depend on the cache layout or on the company of other rows.
struct AttendArgs {
  const float* q;
  int64_t q_stride;
  float* out;
  int64_t out_stride;
  int32_t n_tokens;
  int32_t head_begin, head_end;
  int32_t head_dim;  // a multiple of 8; of 16 with n_turned, itself a multiple of 8
  int32_t n_turned;
  KvKind kind;
  const uint8_t* k;
  const uint8_t* v;
  int64_t k_row, v_row;
  int64_t ring;  // a multiple of 256
  const int64_t* lo;
  const int64_t* hi;
  // `attend` alone: the part of the positions that this call is for, in whole chunks, and f32 [n_rows][2]
  // that begin with zeros and carry a row from one part to the next.
  int64_t begin, end;
  float* sums;
  void* scratch;  // attend_scratch_bytes(head_dim, rows), 64-byte aligned
};
inline constexpr int kAttendChunk = 256;

struct KernelTable {
  const char* name;         // "scalar", "avx2"
  const char* description;  // one line for `gemmule doctor`

  // Indexed by DType; null for a type that has no kernel. kActKind says which form of x it wants.
  MatmulFn matmul[31];
  size_t (*matmul_scratch_bytes)(int64_t n_tokens, int64_t k) noexcept;  // of both layouts
  PackFn pack[31];  // indexed by DType; null for a type without a packed form
  PackedMatmulFn matmul_packed[31];

  void (*quantize_q8_32)(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept;
  void (*quantize_q8_256)(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept;

  // y = x / sqrt(mean(x^2) + eps) * w, with w null for a norm without weight. y may be x.
  void (*rms_norm)(float* y, const float* x, const float* w, int64_t n, float eps) noexcept;
  // x += rms_norm(y, w)
  void (*add_rms_norm)(float* x, const float* y, const float* w, int64_t n, float eps) noexcept;
  // y = (x - mean(x)) / sqrt(variance(x) + eps) * w + b. y may be x.
  void (*layer_norm)(float* y, const float* x, const float* w, const float* b, int64_t n, float eps) noexcept;
  // For i < n_rot: (x[i], x[i + d/2]) turned by the angle whose cosine and sine are cos[i], sin[i]; the rest
  // stays.
  void (*rope)(float* x, const float* cos, const float* sin, int64_t n_rot, int64_t d) noexcept;
  // y[i] = gelu_tanh(gate[i]) * up[i]. y may be gate or up.
  void (*gelu_mul)(float* y, const float* gate, const float* up, int64_t n) noexcept;
  void (*scale)(float* x, float s, int64_t n) noexcept;
  void (*add_scaled)(float* x, const float* y, float s, int64_t n) noexcept;  // x = fma(y, s, x)
  void (*softcap)(float* x, float cap, int64_t n) noexcept;                   // x = cap * tanh(x / cap)
  void (*f32_to_f16)(const float* x, uint16_t* y, int64_t n) noexcept;

  // The n_used largest of n scores, best first and the lower number first among equals, with
  // weight[r] = exp(score_r) / sum of exp over the n_used * scale[expert[r]]. If any score is not finite, the
  // weights are NaN and the experts 0, 1, ...
  void (*route)(const float* scores, int64_t n, const float* scale, int64_t n_used, int32_t* expert,
                float* weight) noexcept;

  // A row is done when the part that holds the last hi of all rows is.
  void (*attend)(const AttendArgs& args) noexcept;
  // What the chunk of positions [base, base + 256) adds to every row: parts [n_rows][attend_part_floats], in
  // the order of tokens, then heads; 64-byte aligned. `out` is not used.
  void (*attend_chunk)(const AttendArgs& args, int64_t base, float* parts) noexcept;
  // Adds n parts of one row, `step` floats apart and in ascending order, to out [head_dim] and its sums [2],
  // which begin with zeros; `last` makes out the result. Together the same bits as `attend`.
  void (*attend_join)(float* out, float* sums, const float* parts, int64_t step, int64_t n, int64_t head_dim,
                      bool last) noexcept;
  int64_t (*attend_part_floats)(int64_t head_dim) noexcept;
  size_t (*attend_scratch_bytes)(int64_t head_dim,
                                 int64_t n_rows) noexcept;  // n_rows = tokens * heads of one call
};

}  // namespace gemmule
