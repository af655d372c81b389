// A session and the lock that makes its calls queue.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <utility>

#include "core/owned_mutex.h"
#include "engine/session.h"

namespace gemmule {

struct LockedSession {
  explicit LockedSession(Session&& made)
      : session(std::move(made)), n_tokens(static_cast<int64_t>(session.tokens().size())) {}
  Session session;
  OwnedMutex mutex;
  std::atomic<int64_t> n_tokens;  // of `session`, readable while it runs

  template <class Fn>
  auto with(Fn&& fn) {
    const pybind11::gil_scoped_release nogil;
    const OwnedLock lock(mutex);
    const Publish publish{*this};
    return fn(session);
  }

  // Publishes the number of tokens when a call ends, however it ends.
  struct Publish {
    LockedSession& self;
    ~Publish() { self.n_tokens.store(static_cast<int64_t>(self.session.tokens().size())); }
  };
};

}  // namespace gemmule
