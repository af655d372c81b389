#include "engine/imatrix.h"

#include <cmath>

#include "core/error.h"

namespace gemmule {
namespace {

// Which tap shows the input of which matrix.
struct Input {
  const char* tap;
  const char* matrix;
  bool experts = false;  // one matrix per expert
  bool keys = false;     // exists, but is not used, in layers that read another layer's keys and values
};

constexpr Input kInputs[] = {
    {"attn_in", "attn_q"},
    {"attn_in", "attn_k", false, true},
    {"attn_in", "attn_v", false, true},
    {"attn_heads", "attn_output"},
    {"ffn_in", "ffn_gate"},
    {"ffn_in", "ffn_up"},
    {"ffn_act", "ffn_down"},
    {"router_in", "ffn_gate_inp"},
    {"expert_in", "ffn_gate_up_exps", true},
    {"expert_in", "ffn_gate_exps", true},
    {"expert_in", "ffn_up_exps", true},
    {"expert_act", "ffn_down_exps", true},
    {"ple_in", "inp_gate"},
    {"ple_act", "proj"},
};

}  // namespace

ImportanceCollector::ImportanceCollector(const GgufFile& file, const Config& config, bool with_head) {
  for (int64_t i = 0; i < config.n_layers; ++i) {
    for (const Input& input : kInputs) {
      if (input.keys && !config.layers[static_cast<size_t>(i)].owns_kv()) continue;
      const GgufTensor* tensor = file.find_tensor(cat("blk.", i, ".", input.matrix, ".weight"));
      if (tensor != nullptr) listen(input.tap, i, *tensor, input.experts ? config.n_experts : 1);
    }
  }
  if (!with_head) return;
  const GgufTensor* head = file.find_tensor("output.weight");
  if (head == nullptr) head = file.find_tensor("token_embd.weight");
  if (head != nullptr) listen("output_norm", -1, *head, 1);
}

void ImportanceCollector::listen(std::string_view tap, int64_t layer, const GgufTensor& tensor,
                                 int64_t n_matrices) {
  Sums& sums = sums_[{tap, layer}];
  if (sums.sum2.empty()) {
    sums.n_matrices = n_matrices;
    sums.n_cols = tensor.shape[0];
    sums.sum2.resize(static_cast<size_t>(n_matrices * sums.n_cols));
    sums.counts.resize(static_cast<size_t>(n_matrices));
  }
  entries_.push_back({tensor.name, &sums});
}

Tap ImportanceCollector::tap() {
  return Tap([this](const char* name, int64_t layer, Rows values) { add(name, layer, 0, values); },
             [this](const char* name, int64_t layer, int64_t expert, Rows values) {
               add(name, layer, expert, values);
             });
}

void ImportanceCollector::add(std::string_view tap, int64_t layer, int64_t matrix, Rows values) {
  const auto found = sums_.find({tap, layer});
  if (found == sums_.end()) return;
  Sums& sums = found->second;
  if (values.cols != sums.n_cols || matrix >= sums.n_matrices)
    throw Error(
        cat("layer ", layer, ": ", tap, " has ", values.cols, " columns, its matrices have ", sums.n_cols));
  double* total = sums.sum2.data() + matrix * sums.n_cols;
  for (int64_t row = 0; row < values.n; ++row) {
    const float* x = values.data + row * values.cols;
    for (int64_t c = 0; c < values.cols; ++c) total[c] += static_cast<double>(x[c]) * x[c];
  }
  sums.counts[static_cast<size_t>(matrix)] += values.n;
}

void ImportanceCollector::check() const {
  for (const Entry& entry : entries_)
    for (const double sum : entry.sums->sum2)
      if (!std::isfinite(sum))
        throw Error(cat(entry.tensor, ": its inputs are not finite on this text; the weights are damaged"));
}

}  // namespace gemmule
