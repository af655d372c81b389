// A mutex that knows its owner, so that a callback which comes back to the object that is calling it gets an
// exception and not a deadlock.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>

#include "core/error.h"

namespace gemmule {

class OwnedMutex {
 public:
  void lock() {
    if (owner_.load(std::memory_order_relaxed) == std::this_thread::get_id())
      throw Error("the object is busy with the call that runs this callback; use it after that call returns");
    mutex_.lock();
    owner_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  }
  void unlock() {
    owner_.store({}, std::memory_order_relaxed);
    mutex_.unlock();
  }

 private:
  std::mutex mutex_;
  std::atomic<std::thread::id>
      owner_{};  // only ever equal to a thread's own id while that thread holds the lock
};

using OwnedLock = std::unique_lock<OwnedMutex>;

}  // namespace gemmule
