// The interface between the model and the hardware. One call per line of the forward pass; rows in, rows out.
// The model never learns which backend it has and a backend never learns the word "Gemma".
//
// Growth rules: an operation enters when the forward page needs a line for it; it takes any weight type; how
// the activations are stored for a product is the backend's business. Nothing here may fail except `place`
// and `alloc`, which throw, and operations that are cancelled (see `watch`); shapes are the caller's promise
// (the loader has checked them).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "core/stop_token.h"
#include "core/tensor.h"

namespace gemmule {

// A matrix of activations on the device: [rows][cols] f32, contiguous. A view; the backend owns the memory.
struct Rows {
  float* data = nullptr;
  int64_t n = 0;     // rows in use
  int64_t cols = 0;  // numbers per row

  Rows first(int64_t n_rows) const { return {data, n_rows, cols}; }
  Rows from(int64_t row, int64_t n_rows) const { return {data + row * cols, n_rows, cols}; }
  Rows as(int64_t n_rows, int64_t n_cols) const {
    return {data, n_rows, n_cols};
  }  // same memory, other shape
};

// Keys and values of one layer of one sequence. Position p lives in slot p % ring. A row is the numbers of
// one position and head; with Q8_0 in blocks of 32, the last one filled with zeros.
struct KvView {
  DType dtype = DType::F16;  // F16, F32 or Q8_0
  int64_t n_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t ring = 0;      // slots, a multiple of 256
  uint8_t* k = nullptr;  // [n_kv_heads][ring] rows of k_dim()
  uint8_t* v = nullptr;  // [n_kv_heads][ring] rows of head_dim
  // Above 0: k holds only the numbers [0, n_turned) and [head_dim / 2, head_dim / 2 + n_turned) of each key,
  // and attention takes the others from v.
  int64_t n_turned = 0;

  int64_t k_dim() const { return n_turned > 0 ? 2 * n_turned : head_dim; }
  int64_t k_row() const { return row_size(k_dim()); }
  int64_t v_row() const { return row_size(head_dim); }
  int64_t row_size(int64_t n) const {
    const int64_t block = dtype_info(dtype).block_size;
    return row_bytes(dtype, (n + block - 1) / block * block);
  }
};

// Consecutive rows of a step that belong to one sequence, with that sequence's cache for the layer at hand.
struct KvRun {
  int64_t row = 0;
  int64_t n_rows = 0;
  KvView kv;
};

// One product of a step: y = w x.
struct Product {
  Rows y;
  Tensor w;
};

// One matrix per expert, all of one shape, `stride` bytes apart.
struct Experts {
  Tensor first;
  int64_t stride = 0;

  Tensor of(int64_t expert) const {
    Tensor tensor = first;
    tensor.data += expert * stride;
    return tensor;
  }
};

// Which experts each row goes to. The pairs (row, expert) are sorted by expert, then row: the pairs of expert
// e have the places first[e] <= p < first[e + 1], so that a product reads each expert once however many rows
// it has. A view; the backend owns the memory.
struct Routes {
  int64_t n = 0;  // rows in use
  int64_t n_experts = 0;
  int64_t n_used = 0;         // experts of one row
  int32_t* expert = nullptr;  // [n][n_used] best first
  float* weight = nullptr;    // [n][n_used]
  int32_t* place = nullptr;   // [n][n_used]
  int32_t* row = nullptr;     // [n * n_used] of each place
  int32_t* first = nullptr;   // [n_experts + 1]
  int32_t* busy = nullptr;    // [n_busy] experts that have rows, ascending
  int64_t n_busy = 0;

  int64_t n_places() const { return n * n_used; }
};

// Bytes of a matrix that are in memory in both orders at a time, while a backend repacks it.
inline constexpr int64_t kRepackPiece = 16 << 20;

// What a backend that brings weights into an order of its own may do.
struct Repacking {
  std::function<bool(int64_t n_bytes)> may_take;  // whether so much more memory may be taken now
  std::function<void(const uint8_t* begin, int64_t n_bytes)> release;  // bytes of the file no longer needed
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const char* isa() const = 0;
  virtual int n_threads() const = 0;

  // Around the operations of a step of n_rows rows, so that the backend can learn from its time. A step that
  // an exception ends has no end_step.
  virtual void begin_step(int64_t n_rows) { static_cast<void>(n_rows); }
  virtual void end_step() {}

  // From now on an operation throws what stop->check() throws, milliseconds after `stop` was cancelled; what
  // it was to write is then undefined. Null: no operation is cancelled any more.
  virtual void watch(const StopToken* stop) { static_cast<void>(stop); }

  // Makes a weight usable by this backend: a view on the CPU, a copy elsewhere. The file outlives the
  // backend.
  virtual Tensor place(const Tensor& file_view) = 0;
  // Matrices of a mapped file that the backend may bring into an order of its own while it runs. Results stay
  // the same to the bit. Once for each file, which the functions of `repacking` may keep alive.
  virtual void allow_repacking(std::span<const Tensor> matrices, Repacking repacking) = 0;
  virtual int64_t repacked_bytes() const = 0;            // so far
  virtual Rows alloc(int64_t n_rows, int64_t cols) = 0;  // zeroed; lives as long as the backend
  virtual Routes alloc_routes(int64_t n_rows, int64_t n_experts, int64_t n_used) = 0;
  // Called before the first computation with the largest step, and again when something larger is to come:
  // reserves everything later calls need. No input of a product has more than max_rows * max_cols numbers.
  virtual void reserve(int64_t max_rows, int64_t max_cols, int64_t max_head_dim) = 0;

  virtual void write(Rows y, const float* numbers) = 0;  // [y.n, y.cols] from the caller's memory
  virtual void copy(Rows y, Rows x) = 0;
  virtual void add(Rows x, Rows y) = 0;                  // x += y
  virtual void add_vector(Rows x, const Tensor& b) = 0;  // every row of x += b
  // y[i] = row tokens[i] of table, times scale
  virtual void embed(Rows y, const Tensor& table, std::span<const int32_t> tokens, float scale) = 0;
  // y = x / rms(x) * w; y may be x; w empty: a norm without weight
  virtual void rms_norm(Rows y, Rows x, const Tensor& w, float eps) = 0;
  // x += rms_norm(y, w)
  virtual void add_rms_norm(Rows x, Rows y, const Tensor& w, float eps) = 0;
  // y = (x - mean(x)) / sqrt(variance(x) + eps) * w + b; y may be x
  virtual void layer_norm(Rows y, Rows x, const Tensor& w, const Tensor& b, float eps) = 0;
  // Several products of the same input, so that it is prepared once.
  virtual void matmul(std::span<const Product> products, Rows x) = 0;
  void matmul(Rows y, const Tensor& w, Rows x) {
    const Product product{y, w};
    matmul(std::span(&product, 1), x);
  }
  // Only the numbers y[i][r] of the rows r of w that are listed; the others stay. w must lie in rows.
  virtual void matmul_rows(Rows y, const Tensor& w, Rows x, std::span<const int32_t> rows) = 0;
  // y = gelu(gate x) * (up x); tmp is scratch of y's shape
  virtual void gated_gelu(Rows y, Rows tmp, const Tensor& gate, const Tensor& up, Rows x) = 0;
  // y = gelu(gate) * up, with up's columns from up_col on; y may be gate
  virtual void gelu_mul(Rows y, Rows gate, Rows up, int64_t up_col) = 0;
  // Every head of every row: x = scale * rope(rms_norm(x, w)); w empty: a norm without weight.
  // cos, sin: [x.n][n_rot]; n_rot 0: no rotation. x is [n][n_heads * head_dim].
  virtual void head_norm_rope(Rows x, int64_t head_dim, const Tensor& w, float eps, Rows cos, Rows sin,
                              float scale) = 0;
  // Stores rows k, v [n][n_kv_heads * head_dim] at their positions, in the form of the view.
  virtual void kv_append(std::span<const KvRun> runs, Rows k, Rows v, std::span<const int64_t> pos) = 0;
  // y [n][n_heads * head_dim]: softmax(q k) v over the positions lo[i] <= p < hi[i]; query head j reads
  // key/value head j / (n_heads / n_kv_heads). q is already scaled; where a key is part of the values, the
  // numbers of q that meet them carry the weight by which the key differs.
  virtual void attend(Rows y, Rows q, std::span<const KvRun> runs, std::span<const int64_t> lo,
                      std::span<const int64_t> hi) = 0;
  // The n_used largest scores of each row [n, n_experts], the lower number first among equals, and
  // weight = softmax over those n_used * scale[expert]. A row with a score that is not finite gets NaN.
  virtual void route(Routes& routes, Rows scores, const Tensor& scale) = 0;
  // y [n * n_used, cols]: the rows of x in the order of the places
  virtual void gather(Rows y, Rows x, const Routes& routes) = 0;
  // Row p of y is the product of row p of x with the matrix of the expert whose place p is.
  virtual void expert_matmul(Rows y, const Experts& w, Rows x, const Routes& routes) = 0;
  virtual void expert_gated_gelu(Rows y, Rows tmp, const Experts& gate, const Experts& up, Rows x,
                                 const Routes& routes) = 0;
  // y[i] = sum of weight * x[place] over the experts of row i, best first, from zero
  virtual void expert_sum(Rows y, Rows x, const Routes& routes) = 0;
  virtual void scale(Rows x, float s) = 0;
  virtual void softcap(Rows x, float cap) = 0;  // x = cap * tanh(x / cap)
};

// Opens the CPU backend. isa empty: the best level of this machine; n_threads 0: the physical cores, of which
// one-row steps use fewer where those are as fast; decode_threads are thought to be, 0: not known.
// Throws DeviceError when the level cannot run here, std::invalid_argument for a number of threads out of
// range.
std::unique_ptr<Backend> open_cpu(const std::string& isa, int n_threads, int decode_threads = 0);

}  // namespace gemmule
