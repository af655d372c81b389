// The weights of a text model as named members, bound once from the tensor table of a file.
// Names and shapes: docs/MODEL.md. In comments a matrix is [rows, cols] = [outputs, inputs].
#pragma once

#include <vector>

#include "backend/backend.h"
#include "core/tensor.h"
#include "gguf/gguf_reader.h"
#include "model/binder.h"
#include "model/config.h"

namespace gemmule {

struct LayerWeights {
  Tensor attn_norm;       // [d_model]
  Tensor wq;              // [n_heads * head_dim, d_model]
  Tensor wk;              // [n_kv_heads * head_dim, d_model]; empty where keys and values are shared
  Tensor wv;              // [n_kv_heads * head_dim, d_model]; also empty where V is K before norm and rope
  Tensor q_norm, k_norm;  // [head_dim]; where keys are part of the values, q_norm holds their weight, too
  Tensor wo;              // [d_model, n_heads * head_dim]
  Tensor attn_post_norm;  // [d_model]
  Tensor ffn_norm;        // [d_model]
  Tensor gate, up;        // [d_ff, d_model]; d_ff may differ between layers
  Tensor down;            // [d_model, d_ff]
  Tensor ffn_post_norm;   // [d_model]
  float out_scale = 1;

  // The mixture of experts that some models have beside the dense feed-forward.
  Tensor router;                   // [n_experts, d_model]
  Tensor router_scale;             // [d_model]
  Experts expert_gate, expert_up;  // each [d_ff_expert, d_model]
  Experts expert_down;             // each [d_model, d_ff_expert]
  Tensor expert_scale;             // [n_experts]
  Tensor expert_norm;              // [d_model] before the experts
  Tensor dense_post_norm;          // [d_model] after the dense half
  Tensor expert_post_norm;         // [d_model] after the experts

  // The layer's share of the second embedding (PLE).
  Tensor ple_gate;       // [d_ple, d_model]
  Tensor ple_proj;       // [d_model, d_ple]
  Tensor ple_post_norm;  // [d_model]
};

struct Weights {
  Tensor embed;        // [n_vocab, d_model]
  Tensor output;       // [n_vocab, d_model]; the same as embed unless the file holds a head of its own
  Tensor output_norm;  // [d_model]
  Tensor ple_embed;    // [n_vocab, n_layers * d_ple]; only the rows of a step's tokens are ever read
  Tensor ple_in;       // [n_layers * d_ple, d_model]
  Tensor ple_norm;     // [d_ple]
  std::vector<float> rope_factors;  // [head_dim / 2] divisors of the global angles; empty: all 1
  std::vector<LayerWeights> layers;

  // Checks every tensor's shape and type and refuses tensors nobody asked for. Throws FormatError or
  // UnsupportedError naming file and tensor.
  static Weights bind(const GgufFile& file, const Config& config, Backend& backend);

  // The same, leaving other tensors to the caller. keys: the file of the layers that `kv_from` names.
  static Weights bind(Binder& file, Binder& keys, const Config& config, Backend& backend);
};

}  // namespace gemmule
