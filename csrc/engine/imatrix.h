// The importance matrix: how strongly each input column of each matrix is used, measured on a text.
//   sum2[m][c] = sum over the rows that matrix m saw of x[c]^2,  count[m] = number of those rows
// A plain linear is one matrix; a stack of experts is one matrix per expert, fed by the rows routed to it.
// Sums are float64 in row order, so they do not depend on threads or on how the text is cut into steps.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf/gguf_reader.h"
#include "model/config.h"
#include "model/gemma4.h"

namespace gemmule {

class ImportanceCollector {
 public:
  struct Sums {
    int64_t n_matrices = 0;
    int64_t n_cols = 0;
    std::vector<double> sum2;     // [n_matrices, n_cols]
    std::vector<int64_t> counts;  // [n_matrices]
  };
  struct Entry {
    std::string tensor;
    const Sums* sums;
  };

  // Every matrix of the layers that `file` has and the forward pass uses; with_head adds the output matrix.
  ImportanceCollector(const GgufFile& file, const Config& config, bool with_head);
  // The entries point into `sums_`.
  ImportanceCollector(const ImportanceCollector&) = delete;
  ImportanceCollector& operator=(const ImportanceCollector&) = delete;

  // For Session::append. It adds to this collector, which must outlive it.
  Tap tap();

  // Throws Error naming the first tensor whose inputs were not finite.
  void check() const;

  // In the order of the layers. Matrices that share their input share the sums.
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  using Key = std::pair<std::string_view, int64_t>;  // name of the tap and layer
  void listen(std::string_view tap, int64_t layer, const GgufTensor& tensor, int64_t n_matrices);
  void add(std::string_view tap, int64_t layer, int64_t matrix, Rows values);

  std::map<Key, Sums> sums_;  // a map: the entries point into it
  std::vector<Entry> entries_;
};

}  // namespace gemmule
