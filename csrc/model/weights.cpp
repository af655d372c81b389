#include "model/weights.h"

#include <cmath>
#include <set>
#include <string>

#include "core/error.h"
#include "core/utf8.h"

namespace gemmule {
namespace {

class Binder {
 public:
  Binder(const GgufFile& file, Backend& backend) : file_(file), backend_(backend) {}

  Tensor matrix(const std::string& name, int64_t rows, int64_t cols) {
    const GgufTensor& tensor = need(name);
    if (tensor.shape.size() != 2 || tensor.shape[0] != cols || tensor.shape[1] != rows)
      wrong_shape(tensor, cols, rows);
    return backend_.place(file_.view(tensor));
  }
  Tensor vector(const std::string& name, int64_t n) { return backend_.place(host_vector(name, n)); }
  // A small F32 vector, read on the host; its numbers must be finite: a NaN here would poison every later
  // result.
  Tensor host_vector(const std::string& name, int64_t n) {
    const GgufTensor& tensor = need(name);
    if (tensor.shape.size() != 1 || tensor.shape[0] != n) wrong_shape(tensor, n, 1);
    if (tensor.dtype != DType::F32)
      throw UnsupportedError(cat(file_.path(), ": tensor ", name, " is ", dtype_name(tensor.dtype),
                                 "; norms and scales must be F32"));
    const Tensor view = file_.view(tensor);
    for (int64_t i = 0; i < n; ++i)
      if (!std::isfinite(view.f32()[i]))
        throw FormatError(cat(file_.path(), ": tensor ", name, " holds a number that is not finite at ", i,
                              "; the file is damaged"));
    return view;
  }
  bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }

  void refuse_unused() const {
    for (const GgufTensor& tensor : file_.tensors())
      if (!used_.contains(tensor.name))
        throw UnsupportedError(cat(file_.path(), ": tensor ", printable(tensor.name),
                                   " belongs to a variant this version cannot run"));
  }

 private:
  const GgufTensor& need(const std::string& name) {
    const GgufTensor* tensor = file_.find_tensor(name);
    if (tensor == nullptr)
      throw FormatError(cat(file_.path(), ": tensor ", name, " is missing; the file is incomplete"));
    used_.insert(name);
    return *tensor;
  }
  [[noreturn]] void wrong_shape(const GgufTensor& tensor, int64_t cols, int64_t rows) const {
    std::string found;
    for (const int64_t dim : tensor.shape) found += cat(found.empty() ? "" : ", ", dim);
    throw FormatError(cat(file_.path(), ": tensor ", printable(tensor.name), " has shape [", found,
                          "], the metadata asks for [", cols, rows == 1 ? "" : cat(", ", rows), "]"));
  }

  const GgufFile& file_;
  Backend& backend_;
  std::set<std::string> used_;
};

}  // namespace

Weights Weights::bind(const GgufFile& file, const Config& c, Backend& backend) {
  Binder bind(file, backend);
  Weights w;
  w.embed = bind.matrix("token_embd.weight", c.n_vocab, c.d_model);
  w.output = bind.has("output.weight") ? bind.matrix("output.weight", c.n_vocab, c.d_model) : w.embed;
  w.output_norm = bind.vector("output_norm.weight", c.d_model);
  if (c.has_rope_factors) {
    const int64_t n_pairs = c.rope_global.head_dim / 2;
    const Tensor factors = bind.host_vector("rope_freqs.weight", n_pairs);
    w.rope_factors.assign(factors.f32(), factors.f32() + n_pairs);
  }
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const LayerConfig& layer = c.layers[i];
    const std::string block = cat("blk.", i, ".");
    const int64_t q_width = layer.n_heads * layer.head_dim, kv_width = layer.n_kv_heads * layer.head_dim;
    LayerWeights l;
    l.attn_norm = bind.vector(block + "attn_norm.weight", c.d_model);
    l.wq = bind.matrix(block + "attn_q.weight", q_width, c.d_model);
    l.wk = bind.matrix(block + "attn_k.weight", kv_width, c.d_model);
    const bool v_is_k = c.v_norm && !layer.is_sliding && !bind.has(block + "attn_v.weight");
    if (!v_is_k) l.wv = bind.matrix(block + "attn_v.weight", kv_width, c.d_model);
    l.q_norm = bind.vector(block + "attn_q_norm.weight", layer.head_dim);
    l.k_norm = bind.vector(block + "attn_k_norm.weight", layer.head_dim);
    l.wo = bind.matrix(block + "attn_output.weight", c.d_model, q_width);
    l.attn_post_norm = bind.vector(block + "post_attention_norm.weight", c.d_model);
    l.ffn_norm = bind.vector(block + "ffn_norm.weight", c.d_model);
    l.gate = bind.matrix(block + "ffn_gate.weight", c.d_ff, c.d_model);
    l.up = bind.matrix(block + "ffn_up.weight", c.d_ff, c.d_model);
    l.down = bind.matrix(block + "ffn_down.weight", c.d_model, c.d_ff);
    l.ffn_post_norm = bind.vector(block + "post_ffw_norm.weight", c.d_model);
    if (c.has_out_scale) l.out_scale = bind.host_vector(block + "layer_output_scale.weight", 1).f32()[0];
    w.layers.push_back(l);
  }
  bind.refuse_unused();
  return w;
}

}  // namespace gemmule
