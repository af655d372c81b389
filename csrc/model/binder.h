// Takes tensors of a file by name, with the shape that the metadata asks for, and in the end refuses those
// that nobody took. Every error names file and tensor.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/tensor.h"
#include "gguf/gguf_reader.h"

namespace gemmule {

class Binder {
 public:
  Binder(const GgufFile& file, Backend& backend) : file_(file), backend_(backend) {}

  Tensor matrix(const std::string& name, int64_t rows, int64_t cols) {
    return backend_.place(file_.view(need(name, {cols, rows})));
  }
  // n matrices as one of n * rows rows.
  Tensor stack(const std::string& name, int64_t n, int64_t rows, int64_t cols) {
    return backend_.place(file_.view(need(name, {cols, rows, n})));
  }
  Experts experts(const std::string& name, int64_t n, int64_t rows, int64_t cols) {
    Tensor first = stack(name, n, rows, cols);
    first.rows = rows;
    return {first, first.size_bytes()};
  }
  Tensor vector(const std::string& name, int64_t n) { return backend_.place(host_vector(name, n)); }
  // A small F32 vector, read on the host; its numbers must be finite: a NaN here would poison every later
  // result.
  Tensor host_vector(const std::string& name, int64_t n);

  // A tensor that may be there and is not read.
  void ignore(const std::string& name, int64_t rows, int64_t cols);

  bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }
  void refuse(const std::string& name, const char* why) const;
  void refuse_unused() const;

 private:
  // shape: the contiguous dimension first, as in the file.
  const GgufTensor& need(const std::string& name, const std::vector<int64_t>& shape);

  const GgufFile& file_;
  Backend& backend_;
  std::set<std::string> used_;
};

}  // namespace gemmule
