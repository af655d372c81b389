// The weights of a text model as named members, bound once from the tensor table of a file.
// Names and shapes: docs/MODEL.md. In comments a matrix is [rows, cols] = [outputs, inputs].
#pragma once

#include <vector>

#include "backend/backend.h"
#include "core/tensor.h"
#include "gguf/gguf_reader.h"
#include "model/config.h"

namespace gemmule {

struct LayerWeights {
  Tensor attn_norm;       // [d_model]
  Tensor wq;              // [n_heads * head_dim, d_model]
  Tensor wk;              // [n_kv_heads * head_dim, d_model]
  Tensor wv;              // [n_kv_heads * head_dim, d_model]; empty where V is K before its norm and rope
  Tensor q_norm, k_norm;  // [head_dim]
  Tensor wo;              // [d_model, n_heads * head_dim]
  Tensor attn_post_norm;  // [d_model]
  Tensor ffn_norm;        // [d_model]
  Tensor gate, up;        // [d_ff, d_model]
  Tensor down;            // [d_model, d_ff]
  Tensor ffn_post_norm;   // [d_model]
  float out_scale = 1;
};

struct Weights {
  Tensor embed;        // [n_vocab, d_model]
  Tensor output;       // [n_vocab, d_model]; the same as embed unless the file holds a head of its own
  Tensor output_norm;  // [d_model]
  std::vector<float> rope_factors;  // [head_dim / 2] divisors of the global angles; empty: all 1
  std::vector<LayerWeights> layers;

  // Checks every tensor's shape and type and refuses tensors nobody asked for. Throws FormatError or
  // UnsupportedError naming file and tensor.
  static Weights bind(const GgufFile& file, const Config& config, Backend& backend);
};

}  // namespace gemmule
