// What the sliding rings overwrite and a timeline may need again. A place is marked for free; from then on
// the positions of the window before it are copied out, in chunks of 64, when a ring is about to go over
// them. Going back to a marked place then needs no token to be read again, and an answer shorter than the
// ring's slack never costs a copy. Global layers lose nothing, so nothing of them is kept here.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "core/arena.h"
#include "core/stop_token.h"
#include "model/kv_cache.h"

namespace gemmule {

class KvSnapshots {
 public:
  static constexpr int64_t kChunk = 64;   // positions copied together
  static constexpr int64_t kMargin = 64;  // a mark serves so many positions before it as well
  enum class Kind { Turn, Within };       // where somebody began or ended, or inside a long prompt

  // Positions [begin, end) of a chunk that starts at a multiple of kChunk. Of each sliding layer with a cache
  // of its own and each of its planes: [n_heads][kChunk][row_bytes]. Forks share it; it is never changed.
  struct Chunk {
    int64_t begin = 0, end = 0;
    std::shared_ptr<const Arena> memory;
  };
  struct Mark {
    int64_t pos = 0;
    Kind kind = Kind::Turn;
    uint64_t used = 0;  // larger: later
  };

  explicit KvSnapshots(int64_t limit) : limit_(limit) {}  // bytes of all chunks; 0: keep nothing
  int64_t limit() const { return limit_; }
  int64_t size_bytes() const;
  static int64_t chunk_bytes(const KvCache& kv);
  // Of all that one mark can ever need.
  static int64_t window_bytes(const KvCache& kv);

  // Asks that going back to `pos` stays cheap.
  void mark(int64_t pos, Kind kind = Kind::Turn);
  // Before positions [pos, end) are written behind `pos` valid ones: copies what marks need of what is lost.
  // What goes beyond the limit drops the mark that was used longest ago, the latest one last.
  void before_write(const KvCache& kv, int64_t pos, int64_t end, const StopToken* stop);
  // The last position up to n whose whole window is in the rings, which hold the timeline up to n, or in
  // copies.
  int64_t nearest(const KvCache& kv, int64_t n) const;
  // Brings the window before n, which `nearest` has found, into the rings. Cancelled, it can be asked again.
  void restore(KvCache& kv, int64_t n, const StopToken* stop);
  // The timeline goes on differently from position n on.
  void forget_from(int64_t n);

  // For saving and loading.
  bool needed(int64_t chunk, int64_t window) const;  // by a mark
  const std::map<int64_t, Chunk>& chunks() const { return chunks_; }
  const std::vector<Mark>& marks() const { return marks_; }
  void put(Chunk chunk) { chunks_[chunk.begin / kChunk] = std::move(chunk); }

 private:
  bool make_room(int64_t chunk, const KvCache& kv);
  void save(const KvCache& kv, int64_t chunk, int64_t begin, int64_t end);
  int64_t piece_begin(const KvCache& kv, int64_t p) const;
  void drop_least_useful();
  void drop_unneeded(int64_t window);

  int64_t limit_;
  uint64_t clock_ = 0;
  std::vector<Mark> marks_;
  std::map<int64_t, Chunk> chunks_;  // by begin / kChunk
};

}  // namespace gemmule
