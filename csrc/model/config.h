// The shape of a Gemma text model, read from GGUF metadata. One struct for Gemma 3 and Gemma 4: what differs
// between them is data here, so that the forward pass needs no switch on the architecture.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gguf/gguf_reader.h"

namespace gemmule {

// Limits on what a file may ask for; docs/FORMAT.md lists them.
inline constexpr int64_t kMaxLayers = 1024;
inline constexpr int64_t kMaxHeads = 1024;
inline constexpr int64_t kMaxHeadDim = 1024;
inline constexpr int64_t kMaxWidth = 1 << 20;  // d_model, d_ff, n_layers * d_ple
inline constexpr int64_t kMaxExperts = 1024;
inline constexpr int64_t kMaxVocab = 1 << 21;
inline constexpr int64_t kMaxContext = 1 << 24;

struct LayerConfig {
  bool is_sliding = false;  // sees the last `window` positions only
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t d_ff = 0;         // width of the dense feed-forward
  int64_t d_ff_expert = 0;  // width of each expert; 0: none
  int64_t kv_from = -1;  // the layer whose keys and values it reads, of the target in a drafter; -1: its own
  // Pairs of a key that the cache keeps beside the values, where the rest of the key is a weight times those:
  // the pairs that turn, rounded up to eights; 0: keys are kept whole.
  int64_t n_turned = 0;

  bool owns_kv() const { return kv_from < 0; }
  int64_t q_width() const { return n_heads * head_dim; }
  int64_t kv_width() const { return n_kv_heads * head_dim; }
};

// Rotary frequencies of one layer kind: pair i of a head turns by pos * freq[i]; pairs past n_rot stay.
struct RopeConfig {
  double base = 0;
  int64_t head_dim = 0;
  double position_scale = 1;  // Gemma 3 from 4B up divides the positions of global layers by 8
};

struct Config {
  std::string architecture;  // "gemma3" or "gemma4"; "gemma4-assistant" is a drafter
  int64_t n_layers = 0;
  int64_t d_model = 0;
  int64_t d_ple = 0;           // E2B, E4B: numbers per layer of the second embedding; 0: none
  int64_t n_experts = 0;       // 26B-A4B; 0: none
  int64_t n_experts_used = 0;  // experts of one token in one layer
  int64_t n_vocab = 0;
  int64_t n_ctx_train = 0;
  int64_t window = 0;  // positions a sliding layer sees, the query included
  float rms_eps = 0;
  float embed_scale = 0;          // sqrt(d_model), in f32
  float attn_scale = 0;           // Gemma 4: 1, the q and k norms replace it
  float final_softcap = 0;        // 0: none
  bool v_norm = false;            // Gemma 4 normalises values too, without a weight
  bool has_out_scale = false;     // Gemma 4: one number per layer scales the whole stream
  bool has_rope_factors = false;  // Gemma 4: rope_freqs.weight says which pairs of global layers turn
  RopeConfig rope_sliding, rope_global;
  std::vector<LayerConfig> layers;
  std::vector<int32_t> suppress_tokens;  // ids whose logits have no meaning; never to be sampled

  // Throws FormatError or UnsupportedError naming file and key.
  static Config from_gguf(const GgufFile& file);

  // The stack of a drafter ("gemma4-assistant") for the model `target`: every layer reads the cache of one of
  // the target's (`kv_from`), so what shapes keys must be the same in both. Throws as from_gguf does.
  static Config drafter_from_gguf(const GgufFile& file, const Config& target);

  bool owns_kv() const;  // whether any layer does
};

}  // namespace gemmule
