#include "model/binder.h"

#include <cmath>

#include "core/error.h"
#include "core/utf8.h"

namespace gemmule {
namespace {

std::string joined(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t dim : shape) text += cat(text.empty() ? "" : ", ", dim);
  return text;
}

}  // namespace

Tensor Binder::host_vector(const std::string& name, int64_t n) {
  const GgufTensor& tensor = need(name, {n});
  if (tensor.dtype != DType::F32)
    throw UnsupportedError(cat(file_.path(), ": tensor ", name, " is ", dtype_name(tensor.dtype),
                               "; norms, scales and biases must be F32"));
  const Tensor view = file_.view(tensor);
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(view.f32()[i]))
      throw FormatError(cat(file_.path(), ": tensor ", name, " holds a number that is not finite at ", i,
                            "; the file is damaged"));
  return view;
}

void Binder::ignore(const std::string& name, int64_t rows, int64_t cols) {
  if (!has(name)) return;
  if (rows == 1)
    need(name, {cols});
  else
    need(name, {cols, rows});
}

void Binder::refuse(const std::string& name, const char* why) const {
  if (has(name)) throw UnsupportedError(cat(file_.path(), ": tensor ", name, " ", why));
}

void Binder::refuse_unused() const {
  for (const GgufTensor& tensor : file_.tensors())
    if (!used_.contains(tensor.name))
      throw UnsupportedError(cat(file_.path(), ": tensor ", printable(tensor.name),
                                 " belongs to a variant this version cannot run"));
}

const GgufTensor& Binder::need(const std::string& name, const std::vector<int64_t>& shape) {
  const GgufTensor* tensor = file_.find_tensor(name);
  if (tensor == nullptr)
    throw FormatError(cat(file_.path(), ": tensor ", name, " is missing; the file is incomplete"));
  if (tensor->shape != shape)
    throw FormatError(cat(file_.path(), ": tensor ", name, " has shape [", joined(tensor->shape),
                          "], the metadata asks for [", joined(shape), "]"));
  used_.insert(name);
  return *tensor;
}

}  // namespace gemmule
