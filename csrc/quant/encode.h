// Encodes the rows of a matrix from any type gemmule knows into any other, on several threads.
// The bytes and the error sums are the same for any number of threads, instruction set and cutting of the
// rows. The methods: kernels/*.inl.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/stop_token.h"
#include "core/thread_pool.h"

namespace gemmule {

struct EncodeKernels;

struct EncodeRequest {
  const uint8_t* src;  // n_rows rows of n_cols elements, stored as src_type, at any address
  DType src_type;
  uint8_t* dst;  // the same rows as dst_type
  DType dst_type;
  int64_t n_rows;
  int64_t n_cols;  // a multiple of both block sizes
  // [n_cols], finite, >= 0: how much the square of each column's error counts. What lies below 2^-40 of the
  // largest counts as that much.
  const float* importance = nullptr;
};
inline constexpr int64_t kMaxCols = int64_t{1} << 40;

// Sums over all elements, in row order: (x - round trip)^2, x^2, and both times the importance of the column
// (equal to the plain sums without importance, or where it is zero everywhere).
struct EncodeStats {
  double error2 = 0;
  double norm2 = 0;
  double weighted_error2 = 0;
  double weighted_norm2 = 0;
  // The first element that is NaN or infinite, or that a cast to F16 or BF16 would make so; -1 for none. If
  // there is one, `dst` and the sums are unspecified.
  int64_t first_bad = -1;
};

class Encoder {
 public:
  // isa "" takes the best level of this machine; throws DeviceError for one it does not have and
  // std::invalid_argument for a number of threads outside 1..kMaxThreads.
  Encoder(int n_threads, const std::string& isa);

  int n_threads() const { return pool_.n_threads(); }
  const char* isa() const;

  // Throws std::invalid_argument where n_cols is not a number of whole blocks, 1 to kMaxCols elements.
  static void check_row(DType type, int64_t n_cols);

  // One caller at a time. Throws Cancelled (`dst` is then incomplete) and std::invalid_argument for wrong
  // sizes and where `src` and `dst` overlap.
  EncodeStats encode(const EncodeRequest& request, const StopToken* stop);

  // The share of the blocks of 32 of src [n elements] that lattice.h can store in Q4_0 without loss.
  // src_type: F32, F16 or BF16; n: a multiple of 32.
  double lattice_q4_0(const uint8_t* src, DType src_type, int64_t n);

 private:
  ThreadPool pool_;
  const EncodeKernels& kernels_;
};

// One row to a block type without importance, by the best level of this machine. src [n] finite.
void encode_plain_row(DType dtype, const float* src, uint8_t* dst, int64_t n);

}  // namespace gemmule
