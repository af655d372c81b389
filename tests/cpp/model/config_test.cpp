#include "model/config.h"

#include <doctest/doctest.h>

#include <limits>

#include "core/error.h"
#include "gguf/gguf_builder.h"

using namespace gemmule;
using gemmule::testing::gguf_array;
using gemmule::testing::GgufBuilder;
using gemmule::testing::le;
using gemmule::testing::TempFile;

namespace {

// The metadata of a Gemma 4 text model of 6 layers, the last one global, with one change.
struct Gemma4Header {
  uint32_t block_count = 6, n_heads = 16, window = 1024, key_length = 512, key_length_swa = 256,
           context = 262144;
  uint32_t expert_count = 0, experts_used = 0, expert_width = 0, shared_layers = 0, per_layer_input = 0;
  std::vector<int32_t> d_ff = {96};  // one: a plain number
  float eps = 1e-6f, attn_softcap = 0;
  std::vector<int32_t> kv_heads = {8, 8, 8, 8, 8, 1};
  std::vector<uint8_t> pattern = {1, 1, 1, 1, 1, 0};
  std::vector<int32_t> suppress;
  std::string architecture = "gemma4";

  Config read() const {
    std::string kv, flags, ids, widths;
    for (const int32_t n : d_ff) widths += le(n);
    for (const int32_t n : kv_heads) kv += le(n);
    for (const uint8_t flag : pattern) flags += le(flag);
    for (const int32_t id : suppress) ids += le(id);
    const auto key = [](const char* name) { return std::string("gemma4.") + name; };
    GgufBuilder file;
    file.string("general.architecture", architecture)
        .scalar(key("block_count"), ValueType::U32, block_count)
        .scalar(key("embedding_length"), ValueType::U32, 64u)
        .scalar(key("context_length"), ValueType::U32, context)
        .scalar(key("attention.head_count"), ValueType::U32, n_heads)
        .add(key("attention.head_count_kv"), ValueType::Array,
             gguf_array(ValueType::I32, kv_heads.size(), kv))
        .scalar(key("attention.key_length"), ValueType::U32, key_length)
        .scalar(key("attention.key_length_swa"), ValueType::U32, key_length_swa)
        .scalar(key("attention.sliding_window"), ValueType::U32, window)
        .add(key("attention.sliding_window_pattern"), ValueType::Array,
             gguf_array(ValueType::Bool, pattern.size(), flags))
        .scalar(key("attention.shared_kv_layers"), ValueType::U32, shared_layers)
        .scalar(key("attention.layer_norm_rms_epsilon"), ValueType::F32, eps)
        .scalar(key("rope.freq_base"), ValueType::F32, 1e6f)
        .scalar(key("rope.freq_base_swa"), ValueType::F32, 1e4f)
        .scalar(key("final_logit_softcapping"), ValueType::F32, 30.0f)
        .scalar(key("embedding_length_per_layer_input"), ValueType::U32, per_layer_input)
        .scalar(key("attn_logit_softcapping"), ValueType::F32, attn_softcap)
        .scalar(key("expert_count"), ValueType::U32, expert_count)
        .scalar(key("expert_used_count"), ValueType::U32, experts_used)
        .scalar(key("expert_feed_forward_length"), ValueType::U32, expert_width);
    if (d_ff.size() == 1)
      file.scalar(key("feed_forward_length"), ValueType::I32, d_ff[0]);
    else
      file.add(key("feed_forward_length"), ValueType::Array, gguf_array(ValueType::I32, d_ff.size(), widths));
    if (!suppress.empty())
      file.add("tokenizer.ggml.suppress_tokens", ValueType::Array,
               gguf_array(ValueType::I32, suppress.size(), ids));
    file.f32("token_embd.weight", {64, 10});
    const TempFile on_disk(file.build());
    return Config::from_gguf(*GgufFile::open(on_disk.path()));
  }
};

template <class E>
void refused(const Gemma4Header& header, const char* key) {
  try {
    header.read();
    FAIL("accepted in spite of ", key);
  } catch (const E& e) {
    const std::string message = e.what();
    CHECK_MESSAGE(message.find(key) != std::string::npos, message);
    CHECK(message.find('\n') == std::string::npos);
  }
}

}  // namespace

TEST_CASE("a Gemma 4 header becomes layers of two kinds") {
  const Config c = Gemma4Header{.suppress = {7, 8}}.read();
  CHECK(c.n_vocab == 10);
  CHECK(c.window == 1024);
  CHECK(c.attn_scale == 1.0f);
  CHECK(c.final_softcap == 30.0f);
  CHECK(c.embed_scale == 8.0f);
  CHECK(c.v_norm);
  REQUIRE(c.layers.size() == 6);
  CHECK(c.layers[0].is_sliding);
  CHECK(c.layers[0].head_dim == 256);
  CHECK(c.layers[0].n_kv_heads == 8);
  CHECK_FALSE(c.layers[5].is_sliding);
  CHECK(c.layers[5].head_dim == 512);
  CHECK(c.layers[5].n_kv_heads == 1);
  CHECK(c.suppress_tokens == std::vector<int32_t>{7, 8});
}

TEST_CASE("absurd hyper-parameters are refused by key") {
  refused<FormatError>({.block_count = 0}, "gemma4.block_count");
  refused<FormatError>({.block_count = 1u << 31}, "gemma4.block_count");
  refused<FormatError>({.n_heads = 0}, "attention.head_count");
  refused<FormatError>({.n_heads = 12}, "attention.head_count");  // not a multiple of 8 key/value heads
  refused<FormatError>({.window = 0}, "attention.sliding_window");
  refused<FormatError>({.key_length = 1u << 20}, "attention.key_length");
  refused<UnsupportedError>({.key_length = 100}, "attention.key_length");
  refused<FormatError>({.context = 0}, "context_length");
  refused<FormatError>({.eps = 0}, "layer_norm_rms_epsilon");
  refused<FormatError>({.eps = std::numeric_limits<float>::quiet_NaN()}, "layer_norm_rms_epsilon");
  refused<FormatError>({.kv_heads = {8, 8}}, "attention.head_count_kv");
  refused<FormatError>({.kv_heads = {8, 8, 8, 8, 8, -1}}, "attention.head_count_kv");
  refused<FormatError>({.pattern = {1, 0}}, "sliding_window_pattern");
  refused<FormatError>({.suppress = {10}}, "suppress_tokens");
  refused<FormatError>({.d_ff = {96, 96}}, "feed_forward_length");
  refused<FormatError>({.d_ff = {96, 96, 96, 96, 96, 0}}, "feed_forward_length");
}

TEST_CASE("layers that share read the last earlier layer of their kind") {
  const Config c = Gemma4Header{
      .shared_layers = 3,
      .d_ff = {96, 96, 96, 192, 192, 192},
      .kv_heads = {2, 2, 1, 2, 2, 1},
      .pattern = {1, 1, 0, 1, 1,
                  0}}.read();
  const int64_t from[] = {-1, -1, -1, 1, 1, 2};
  for (size_t i = 0; i < 6; ++i) {
    CHECK(c.layers[i].kv_from == from[i]);
    CHECK(c.layers[i].owns_kv() == (i < 3));
    CHECK(c.layers[i].d_ff == (i < 3 ? 96 : 192));
  }
  refused<FormatError>({.shared_layers = 6}, "attention.shared_kv_layers");
  refused<FormatError>({.shared_layers = 1u << 31}, "attention.shared_kv_layers");
  refused<FormatError>({.shared_layers = 1}, "attention.shared_kv_layers");  // no other global layer
  refused<FormatError>({.shared_layers = 1, .kv_heads = {8, 8, 2, 8, 8, 1}, .pattern = {1, 1, 0, 1, 1, 0}},
                       "attention.head_count_kv");
}

TEST_CASE("per-layer embeddings and experts are read with their limits") {
  const Config plain = Gemma4Header{}.read();
  CHECK(plain.d_ple == 0);
  CHECK(plain.n_experts == 0);
  CHECK(Gemma4Header{.per_layer_input = 256}.read().d_ple == 256);
  refused<FormatError>({.per_layer_input = (1u << 20) / 6 + 1}, "embedding_length_per_layer_input");
  refused<FormatError>({.per_layer_input = 1u << 31}, "embedding_length_per_layer_input");

  const Config c = Gemma4Header{.expert_count = 128, .experts_used = 8, .expert_width = 704}.read();
  CHECK(c.n_experts == 128);
  CHECK(c.n_experts_used == 8);
  CHECK(c.layers[5].d_ff_expert == 704);
  CHECK(c.layers[5].d_ff == 96);
  refused<FormatError>({.expert_count = 1025, .experts_used = 8, .expert_width = 704}, "expert_count");
  refused<FormatError>({.expert_count = 128, .experts_used = 129, .expert_width = 704}, "expert_used_count");
  refused<FormatError>({.expert_count = 128, .experts_used = 0, .expert_width = 704}, "expert_used_count");
  refused<FormatError>({.expert_count = 128, .experts_used = 8, .expert_width = 0},
                       "expert_feed_forward_length");
}

TEST_CASE("variants that cannot run yet are refused by name") {
  refused<UnsupportedError>({.attn_softcap = 50.0f}, "attn_logit_softcapping");
  refused<UnsupportedError>({.architecture = "llama"}, "general.architecture");
}
