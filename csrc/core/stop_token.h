// Cancellation. A caller sets the flag from any thread; long calls ask `check()` after every job and piece of
// work, some milliseconds at most. A token may follow another one, so that what ends many calls ends each of
// them. The poll function lets a binding look for pending signals (Ctrl-C) without the core knowing about
// Python.
#pragma once

#include <atomic>
#include <functional>

#include "core/error.h"

namespace gemmule {

class StopToken {
 public:
  StopToken() = default;
  explicit StopToken(const StopToken* followed) : followed_(followed) {}  // null: none; outlives this one

  void cancel() noexcept { cancelled_.store(true, std::memory_order_relaxed); }
  void reset() noexcept { cancelled_.store(false, std::memory_order_relaxed); }
  bool cancelled() const noexcept {
    return cancelled_.load(std::memory_order_relaxed) || (followed_ != nullptr && followed_->cancelled());
  }

  // Called from `check()` by the thread that runs the computation; may throw. Set before the computation
  // starts.
  void set_poll(std::function<void()> poll) { poll_ = std::move(poll); }

  void check() const {
    if (poll_) poll_();
    if (cancelled())
      throw Cancelled("the computation was cancelled; the session keeps the tokens it had before");
  }

 private:
  std::atomic<bool> cancelled_{false};
  const StopToken* followed_ = nullptr;
  std::function<void()> poll_;
};

}  // namespace gemmule
