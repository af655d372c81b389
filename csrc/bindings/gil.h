// The rule of every long call: release the GIL, then lock; never wait for a lock while holding the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>

#include "core/stop_token.h"

namespace gemmule {

// The stop token of one call: follows the caller's token and, on the main thread, pending signals, so that
// Ctrl-C interrupts a long computation. Taking the GIL is rationed to every 20 ms.
class CallStop {
 public:
  explicit CallStop(const StopToken* user) : token_(user) {
    token_.set_poll([this] {
      const auto now = std::chrono::steady_clock::now();
      if (now - last_ < std::chrono::milliseconds(20)) return;
      last_ = now;
      const pybind11::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    });
  }
  CallStop(const CallStop&) = delete;
  CallStop& operator=(const CallStop&) = delete;
  const StopToken* token() const { return &token_; }

 private:
  StopToken token_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace gemmule
