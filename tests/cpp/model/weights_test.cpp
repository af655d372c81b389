// Files of the family with one tensor changed: absent, of another shape, or of a variant that cannot run.
#include "model/weights.h"

#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/error.h"
#include "engine/session.h"
#include "gguf/edited_file.h"

using namespace gemmule;
using gemmule::testing::TempFile;

namespace {

using Edited = gemmule::testing::EditedTensor;
using Edit = std::function<bool(Edited& tensor)>;  // false drops it

// The file with its tensors passed through `edit`, loaded and run for a token: the logits.
std::vector<float> logits_of(const char* source, const Edit& edit, const std::vector<Edited>& more = {}) {
  const TempFile on_disk(
      gemmule::testing::edited_file(std::string(GEMMULE_GOLDEN_DIR) + "/" + source, {edit, {}, more}));
  const auto model = std::make_shared<LoadedModel>(GgufFile::open(on_disk.path()), LoadOptions{1, "", 16});
  Session session(model, 32, DType::F32);
  const std::vector<int32_t> tokens = {2, 100, 7, 33};
  session.append(tokens, nullptr, {});
  const auto logits = session.logits();
  return {logits.begin(), logits.end()};
}

bool keep(Edited&) { return true; }

// The error of a file without the tensor, or with another shape of it.
template <class E>
void refused(const char* source, const std::string& name, const Edit& edit) {
  bool seen = false;
  try {
    logits_of(source, [&](Edited& t) {
      if (t.name != name) return true;
      seen = true;
      return edit(t);
    });
    FAIL("accepted: ", name);
  } catch (const E& e) {
    CHECK(seen);
    CHECK_MESSAGE(std::string(e.what()).find(name) != std::string::npos, e.what());
  }
}

const char* const kE2b = "tiny-gemma4-e2b-f16.gguf";
const char* const k26b = "tiny-gemma4-26b-f16.gguf";

}  // namespace

TEST_CASE("tensors of layers that share keys and values may be absent and hold anything") {
  const std::vector<float> expected = logits_of(kE2b, keep);
  const auto unread = [](const Edited& t) {
    return (t.name.find("attn_k") != std::string::npos || t.name.find("attn_v") != std::string::npos) &&
           t.name[4] >= '3';
  };
  CHECK(logits_of(kE2b, [&](Edited& t) { return !unread(t); }) == expected);
  CHECK(logits_of(kE2b, [&](Edited& t) {
          if (unread(t)) std::memset(t.data.data(), 0xff, t.data.size());
          return true;
        }) == expected);
  refused<FormatError>(kE2b, "blk.4.attn_k.weight", [](Edited& t) {
    --t.shape[1];
    return true;
  });
  refused<FormatError>(kE2b, "blk.2.attn_k.weight", [](Edited&) { return false; });
  refused<FormatError>(kE2b, "blk.1.attn_v.weight", [](Edited&) { return false; });
}

TEST_CASE("gate and up of the experts may lie in one tensor or in two") {
  const std::vector<float> expected = logits_of(k26b, keep);
  std::vector<Edited> halves;
  const auto split = [&](Edited& t) {
    const size_t at = t.name.find("ffn_gate_up_exps");
    if (at == std::string::npos) return true;
    const size_t half = t.data.size() / t.shape[2] / 2;  // bytes of one expert's gate
    for (const size_t part : {0, 1}) {
      Edited out{t.name.substr(0, at) + (part == 0 ? "ffn_gate_exps.weight" : "ffn_up_exps.weight"),
                 {t.shape[0], t.shape[1] / 2, t.shape[2]},
                 t.dtype,
                 {}};
      for (size_t e = 0; e < t.shape[2]; ++e) out.data += t.data.substr((2 * e + part) * half, half);
      halves.push_back(out);
    }
    return false;
  };
  // The first pass collects the halves, the second replaces the tensors by them.
  CHECK_THROWS_AS(logits_of(k26b, split), FormatError);
  const std::vector<Edited> found = halves;
  CHECK(logits_of(k26b, split, found) == expected);
}

TEST_CASE("missing and misshapen tensors of the family are refused by name") {
  const Edit drop = [](Edited&) { return false; };
  const Edit narrow = [](Edited& t) {
    --t.shape.back();
    return true;
  };
  for (const char* name :
       {"per_layer_token_embd.weight", "per_layer_model_proj.weight", "per_layer_proj_norm.weight",
        "blk.0.inp_gate.weight", "blk.4.proj.weight", "blk.5.post_norm.weight"}) {
    refused<FormatError>(kE2b, name, drop);
    refused<FormatError>(kE2b, name, narrow);
  }
  for (const char* name :
       {"blk.0.ffn_gate_inp.weight", "blk.1.ffn_gate_inp.scale", "blk.2.ffn_down_exps.weight",
        "blk.3.ffn_down_exps.scale", "blk.4.pre_ffw_norm_2.weight", "blk.0.post_ffw_norm_1.weight",
        "blk.0.post_ffw_norm_2.weight"}) {
    refused<FormatError>(k26b, name, drop);
    refused<FormatError>(k26b, name, narrow);
  }
  refused<FormatError>(k26b, "blk.0.ffn_gate_up_exps.weight", narrow);
  refused<FormatError>(k26b, "blk.2.ffn_down_exps.weight", [](Edited& t) {
    t.shape = {t.shape[0], t.shape[1] * t.shape[2]};  // the right size, but not a stack
    return true;
  });
}

TEST_CASE("a joined query, key and value matrix is refused with its name") {
  const Edited joined{"blk.0.attn_qkv.weight", {32, 64}, DType::F32, std::string(32 * 64 * 4, '\0')};
  try {
    logits_of(k26b, [](Edited& t) { return t.name.find("blk.0.attn_q.") == std::string::npos; }, {joined});
    FAIL("accepted");
  } catch (const UnsupportedError& e) {
    CHECK(std::string(e.what()).find("blk.0.attn_qkv.weight") != std::string::npos);
  }
}
