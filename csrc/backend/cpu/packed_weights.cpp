#include "backend/cpu/packed_weights.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "quant/packed.h"

namespace gemmule {
namespace {

constexpr int64_t kManyTokens = 64;  // from here on a matrix is packed at once
constexpr int64_t kCacheLine = 64;

}  // namespace

void PackedWeights::allow(std::span<const Tensor> matrices, Repacking repacking, const KernelTable& kernels) {
  std::vector<Matrix> found;
  for (const Tensor& w : matrices) {
    const auto type = static_cast<size_t>(w.dtype);
    if (w.layout == Layout::Rows && can_pack(w.dtype, w.rows, w.cols) && kernels.pack[type] &&
        kernels.matmul_packed[type])
      found.push_back({w, nullptr, nullptr, 0, false, false});
  }
  const auto by_address = [](const Matrix& a, const Matrix& b) { return a.file.data < b.file.data; };
  std::sort(found.begin(), found.end(), by_address);
  const auto lines = [](const Matrix& m) {
    return (m.file.size_bytes() + kCacheLine - 1) / kCacheLine * kCacheLine;
  };
  int64_t n_bytes = 0;
  for (const Matrix& matrix : found) n_bytes += lines(matrix);
  if (found.empty()) return;
  try {
    files_.push_back(std::make_unique<File>(File{std::move(repacking), Arena::huge(n_bytes)}));
  } catch (const NotEnoughMemoryError&) {
    return;  // the order of the file is slower, not wrong
  }
  uint8_t* panels = files_.back()->memory.data();  // addresses; pages are taken as panels are written
  for (Matrix& matrix : found) {
    matrix.repacking = &files_.back()->repacking;
    matrix.panels = panels;
    panels += lines(matrix);
  }
  all_bytes_ += n_bytes;
  matrices_.insert(matrices_.end(), found.begin(), found.end());
  std::sort(matrices_.begin(), matrices_.end(), by_address);
}

const PackedWeights::Matrix* PackedWeights::find(const Tensor& w) const {
  const auto after = std::upper_bound(matrices_.begin(), matrices_.end(), w.data,
                                      [](const uint8_t* p, const Matrix& m) { return p < m.file.data; });
  if (after == matrices_.begin()) return nullptr;
  const Matrix& matrix = *std::prev(after);
  if (w.data >= matrix.file.data + matrix.file.size_bytes()) return nullptr;
  // Some rows of a matrix (an expert of many, or its gate) lie at the same offset in both orders, and in
  // panels of their own, only if they begin and end where panels do.
  const int64_t first = (w.data - matrix.file.data) / w.row_size(), end = first + w.rows;
  const bool has_panels = first % kPanelRows == 0 && (end % kPanelRows == 0 || end == matrix.file.rows);
  return has_panels ? &matrix : nullptr;
}

PackedWeights::View PackedWeights::view(const Tensor& w) const {
  if (w.layout == Layout::R8P64) return {w, w.data, w.rows};
  const Matrix* matrix = find(w);
  if (matrix == nullptr || matrix->n_packed == 0) return {w, nullptr, 0};
  const int64_t offset = w.data - matrix->file.data, first = offset / w.row_size();
  return {w, matrix->panels + offset, std::clamp<int64_t>(matrix->n_packed - first, 0, w.rows)};
}

void PackedWeights::advance(const Tensor& w, int64_t n_tokens, const KernelTable& kernels, ThreadPool& pool) {
  const Matrix* const found = find(w);
  if (found == nullptr) return;
  Matrix& matrix = matrices_[static_cast<size_t>(found - matrices_.data())];
  const bool at_once = n_tokens >= kManyTokens;
  if (matrix.is_refused || matrix.n_packed == matrix.file.rows || (!at_once && step_bytes_ <= 0)) return;
  if (!matrix.is_begun) {
    // Matrices that were begun will take the rest of their memory too.
    matrix.is_refused = !matrix.repacking->may_take(promised_bytes_ + matrix.file.size_bytes());
    if (matrix.is_refused) return;
    matrix.is_begun = true;  // before its first piece, which may be cancelled
    promised_bytes_ += matrix.file.size_bytes();
  }
  const int64_t rows = matrix.file.rows, panel_bytes = kPanelRows * matrix.file.row_size();
  const int64_t due = at_once ? rows : (step_bytes_ + panel_bytes - 1) / panel_bytes * kPanelRows;
  const int64_t end = std::min(rows, matrix.n_packed + due);
  step_bytes_ -= (end - matrix.n_packed) * matrix.file.row_size();
  while (matrix.n_packed < end) pack_piece(matrix, end, kernels, pool);
}

void PackedWeights::pack_piece(Matrix& matrix, int64_t row_end, const KernelTable& kernels,
                               ThreadPool& pool) {
  const Tensor& file = matrix.file;
  const PackFn pack = kernels.pack[static_cast<size_t>(file.dtype)];
  const int64_t panel_bytes = kPanelRows * file.row_size();
  const int64_t begin = matrix.n_packed;
  const int64_t n_panels = std::min((row_end - begin + kPanelRows - 1) / kPanelRows,
                                    std::max<int64_t>(1, kRepackPiece / panel_bytes));
  pool.run(n_panels, [&](int64_t job, int) {
    const int64_t row = begin + job * kPanelRows;
    pack(file.row(row), std::min(kPanelRows, file.rows - row), file.cols,
         matrix.panels + row * file.row_size());
  });
  const int64_t end = std::min(row_end, begin + n_panels * kPanelRows);
  matrix.n_packed = end;
  promised_bytes_ -= (end - begin) * file.row_size();
  packed_bytes_.fetch_add((end - begin) * file.row_size(), std::memory_order_relaxed);
  // From the start: the page that this piece shares with the one before it can go only now.
  matrix.repacking->release(file.data, file.row(end) - file.data);
}

}  // namespace gemmule
