// Sessions on disk: tokens, vectors of media, keys and values, what snapshots hold, and a text of the front
// end's own. docs/FORMAT.md has the layout. Bound to the model file and to the form of the cache; every
// number is checked before memory is taken for it, and a checksum covers each byte.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "engine/session.h"

namespace gemmule {

struct SavedSession {
  Session session;
  std::string front;  // what the front end gave to `save`
};

struct SessionFile {
  // Writes to an open file, from where it stands. Throws Cancelled, and Error when the disk refuses.
  static void save(const Session& session, int fd, std::string_view front, const StopToken* stop);

  // n_ctx 0: as saved. Throws ModelNotFoundError (no such file), FormatError (damaged, cut, no session, or of
  // another model or form), NotEnoughMemoryError, ContextLengthError (n_ctx too small for it), Cancelled.
  static SavedSession load(std::shared_ptr<LoadedModel> model, const std::string& path, int64_t n_ctx,
                           int64_t snapshot_limit, const StopToken* stop);
};

}  // namespace gemmule
