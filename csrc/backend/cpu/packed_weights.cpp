#include "backend/cpu/packed_weights.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "quant/packed.h"

namespace gemmule {
namespace {

constexpr int64_t kManyTokens = 64;        // from here on a matrix is packed at once
constexpr int64_t kShare = 50;             // else one part in so many: 50 tokens later all is packed
constexpr int64_t kPieceBytes = 16 << 20;  // packed before its bytes of the file are given back

}  // namespace

void PackedWeights::allow(std::span<const Tensor> matrices, Repacking repacking, const KernelTable& kernels) {
  repacking_ = std::move(repacking);
  for (const Tensor& w : matrices) {
    const auto type = static_cast<size_t>(w.dtype);
    if (w.layout == Layout::Rows && can_pack(w.dtype, w.rows, w.cols) && kernels.pack[type] &&
        kernels.matmul_packed[type])
      matrices_.push_back({w, {}, 0, false});
  }
  std::sort(matrices_.begin(), matrices_.end(),
            [](const Matrix& a, const Matrix& b) { return a.file.data < b.file.data; });
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
  return {w, matrix->panels.data() + offset, std::clamp<int64_t>(matrix->n_packed - first, 0, w.rows)};
}

void PackedWeights::advance(const Tensor& w, int64_t n_tokens, const KernelTable& kernels, ThreadPool& pool) {
  const Matrix* const found = find(w);
  if (found == nullptr) return;
  Matrix& matrix = matrices_[static_cast<size_t>(found - matrices_.data())];
  if (matrix.is_refused || matrix.n_packed == matrix.file.rows) return;
  if (matrix.n_packed == 0) {
    try {
      // Matrices that were begun will take the rest of their memory too.
      if (repacking_.may_take(promised_bytes_ + matrix.file.size_bytes())) {
        matrix.panels = Arena::huge(matrix.file.size_bytes());
        promised_bytes_ += matrix.file.size_bytes();
      } else {
        matrix.is_refused = true;
      }
    } catch (const NotEnoughMemoryError&) {
      matrix.is_refused = true;  // the order of the file is slower, not wrong
    }
    if (matrix.is_refused) return;
  }
  const int64_t rows = matrix.file.rows, panels = (rows + kPanelRows - 1) / kPanelRows;
  const int64_t due = n_tokens >= kManyTokens ? panels : (panels + kShare - 1) / kShare;
  const int64_t end = std::min(rows, matrix.n_packed + due * kPanelRows);
  while (matrix.n_packed < end) pack_piece(matrix, end, kernels, pool);
}

void PackedWeights::pack_piece(Matrix& matrix, int64_t row_end, const KernelTable& kernels,
                               ThreadPool& pool) {
  const Tensor& file = matrix.file;
  const PackFn pack = kernels.pack[static_cast<size_t>(file.dtype)];
  const int64_t panel_bytes = kPanelRows * file.row_size();
  const int64_t begin = matrix.n_packed;
  const int64_t n_panels = std::min((row_end - begin + kPanelRows - 1) / kPanelRows,
                                    std::max<int64_t>(1, kPieceBytes / panel_bytes));
  pool.run(n_panels, [&](int64_t job, int) {
    const int64_t row = begin + job * kPanelRows;
    pack(file.row(row), std::min(kPanelRows, file.rows - row), file.cols,
         matrix.panels.data() + row * file.row_size());
  });
  const int64_t end = std::min(row_end, begin + n_panels * kPanelRows);
  matrix.n_packed = end;
  promised_bytes_ -= (end - begin) * file.row_size();
  packed_bytes_.fetch_add((end - begin) * file.row_size(), std::memory_order_relaxed);
  // From the start: the page that this piece shares with the one before it can go only now.
  repacking_.release(file.data, file.row(end) - file.data);
}

}  // namespace gemmule
