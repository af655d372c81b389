// Where products find their weights. A matrix starts in the order of its file and is brought into panels
// (quant/packed.h) piece by piece while products use it: a piece is packed, then its bytes of the file are
// given back, so there are never two resident copies. Both orders give the same bits, so nobody can tell when
// it happens. Matrices of a packed file are in panels from the start.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"
#include "core/arena.h"
#include "core/thread_pool.h"

namespace gemmule {

class PackedWeights {
 public:
  // A matrix as a product sees it: rows [0, n_packed) are in `panels`, the others in GGUF's order in `rows`.
  struct View {
    Tensor rows;
    const uint8_t* panels = nullptr;
    int64_t n_packed = 0;
  };

  // More matrices that may be packed; those without a kernel for it are left out. They and what `repacking`
  // refers to must outlive this.
  void allow(std::span<const Tensor> matrices, Repacking repacking, const KernelTable& kernels);

  View view(const Tensor& w) const;

  // A new step may pack its share, in the matrices that it comes to first: one after the other, because pages
  // of 2 MiB with a little of every matrix in them would take hundreds of megabytes meanwhile.
  void begin_step() { step_bytes_ = (all_bytes_ + kShare - 1) / kShare; }

  // Packs what is due of the matrix that a step of n_tokens rows is about to read: all that is left of it
  // when there are many rows, for then the reading is a small part of the work, else what is left of the
  // step's share.
  void advance(const Tensor& w, int64_t n_tokens, const KernelTable& kernels, ThreadPool& pool);

  int64_t packed_bytes() const { return packed_bytes_.load(std::memory_order_relaxed); }  // from any thread

 private:
  static constexpr int64_t kShare = 50;  // a step of few rows packs one part in so many of all matrices

  // Matrices of one file. Their panels lie one after the other: an end of a large page for each would add up
  // to hundreds of megabytes.
  struct File {
    Repacking repacking;
    Arena memory;
  };
  struct Matrix {
    Tensor file;
    const Repacking* repacking = nullptr;
    uint8_t* panels = nullptr;
    int64_t n_packed = 0;  // rows, whole panels
    bool is_begun = false, is_refused = false;
  };
  const Matrix* find(const Tensor& w) const;  // null where w has no panels of its own
  void pack_piece(Matrix& matrix, int64_t row_end, const KernelTable& kernels, ThreadPool& pool);

  std::vector<Matrix> matrices_;  // by address in the file
  std::vector<std::unique_ptr<File>> files_;
  int64_t all_bytes_ = 0;       // of all matrices
  int64_t step_bytes_ = 0;      // that this step may still pack, when it has few rows
  int64_t promised_bytes_ = 0;  // of matrices that were begun: what is not packed yet
  std::atomic<int64_t> packed_bytes_{0};
};

}  // namespace gemmule
