// What the tests of sessions share: small random models, tokens, media and comparison by bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/session.h"

namespace gemmule {

inline const char* const kModels[] = {"tiny-gemma3-f32.gguf", "tiny-gemma4-f32.gguf",
                                      "tiny-gemma4-e2b-f16.gguf", "tiny-gemma4-26b-f16.gguf"};

inline std::shared_ptr<LoadedModel> load(const char* name, LoadOptions options = {}) {
  return std::make_shared<LoadedModel>(GgufFile::open(std::string(GEMMULE_GOLDEN_DIR) + "/" + name), options);
}

inline std::vector<int32_t> some_tokens(const LoadedModel& model, int64_t n, uint32_t seed = 1) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(model.config().n_vocab)));
  }
  return tokens;
}

// Hidden states of all tokens, appended `step` at a time.
inline std::vector<float> hidden_states(Session& session, std::span<const int32_t> tokens, size_t step) {
  std::vector<float> all;
  for (size_t i = 0; i < tokens.size(); i += step) {
    const auto piece = tokens.subspan(i, std::min(step, tokens.size() - i));
    session.append(piece, nullptr, {}, nullptr, [&](Gemma4&, int64_t, Rows hidden) {
      all.insert(all.end(), hidden.data, hidden.data + hidden.n * hidden.cols);
    });
  }
  return all;
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

// Vectors of about the size of scaled embeddings.
inline MediaRows some_media(const LoadedModel& model, int64_t first, int64_t n_rows, bool is_block = true) {
  const int64_t size = n_rows * model.config().d_model;
  const std::shared_ptr<float[]> vectors(new float[static_cast<size_t>(size)]);
  for (int64_t i = 0; i < size; ++i)
    vectors[static_cast<size_t>(i)] = std::sin(static_cast<float>(i * i + 37 * first));
  return {first, n_rows, vectors, is_block};
}

// Those that lie in the tokens [begin, end), by index into these. Sound may be cut.
inline std::vector<MediaRows> media_within(const LoadedModel& model, std::span<const MediaRows> media,
                                           int64_t begin, int64_t end) {
  std::vector<MediaRows> out;
  for (const MediaRows& m : media) {
    const int64_t from = std::max(begin, m.first), to = std::min(end, m.end());
    if (from >= to) continue;
    const std::shared_ptr<const float[]> rest(m.vectors,
                                              m.vectors.get() + (from - m.first) * model.config().d_model);
    out.push_back({from - begin, to - from, rest, m.is_block});
  }
  return out;
}

// Appends [begin, end) of the tokens; the hidden states.
inline std::vector<float> append_part(Session& session, std::span<const int32_t> tokens,
                                      std::span<const MediaRows> media, int64_t begin, int64_t end) {
  std::vector<float> all;
  session.append(tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)),
                 media_within(session.model(), media, begin, end), nullptr, {}, nullptr,
                 [&](Gemma4&, int64_t, Rows hidden) {
                   all.insert(all.end(), hidden.data, hidden.data + hidden.n * hidden.cols);
                 });
  return all;
}

inline std::vector<float> copy(std::span<const float> x) { return {x.begin(), x.end()}; }

}  // namespace gemmule
