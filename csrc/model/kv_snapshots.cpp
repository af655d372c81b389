#include "model/kv_snapshots.h"

#include <algorithm>
#include <tuple>

#include "core/error.h"

namespace gemmule {
namespace {

constexpr size_t kMaxMarks = 256;

// fn(ring, copy) of every plane of the sliding layers, where `data` is the memory of a chunk.
template <class Fn>
void each_plane(const KvCache& kv, uint8_t* data, Fn&& fn) {
  for (int64_t i = 0; i < kv.n_layers(); ++i) {
    if (!kv.is_sliding(i)) continue;
    for (const KvPlane& plane : kv.planes(i)) {
      fn(plane, KvPlane{data, plane.n_heads, KvSnapshots::kChunk, plane.row_bytes});
      data += plane.n_heads * KvSnapshots::kChunk * plane.row_bytes;
    }
  }
}

}  // namespace

int64_t KvSnapshots::chunk_bytes(const KvCache& kv) {
  int64_t n_bytes = 0;
  for (int64_t i = 0; i < kv.n_layers(); ++i)
    if (kv.is_sliding(i))
      for (const KvPlane& plane : kv.planes(i)) n_bytes += plane.n_heads * kChunk * plane.row_bytes;
  return n_bytes;
}

int64_t KvSnapshots::window_bytes(const KvCache& kv) {
  return ((kv.window() - 1 + kMargin + kChunk - 1) / kChunk + 1) * chunk_bytes(kv);
}

int64_t KvSnapshots::size_bytes() const {
  int64_t n_bytes = 0;
  for (const auto& [number, chunk] : chunks_) n_bytes += chunk.memory->size();
  return n_bytes;
}

void KvSnapshots::mark(int64_t pos, Kind kind) {
  if (limit_ == 0 || pos == 0) return;
  const auto known =
      std::find_if(marks_.begin(), marks_.end(), [pos](const Mark& m) { return m.pos == pos; });
  if (known != marks_.end()) {
    if (kind == Kind::Turn) *known = {pos, kind, ++clock_};
    return;
  }
  while (marks_.size() >= kMaxMarks) drop_least_useful();
  marks_.push_back({pos, kind, ++clock_});
}

bool KvSnapshots::needed(int64_t chunk, int64_t window) const {
  return std::any_of(marks_.begin(), marks_.end(), [&](const Mark& mark) {
    return chunk * kChunk < mark.pos && (chunk + 1) * kChunk > mark.pos - kMargin - (window - 1);
  });
}

void KvSnapshots::drop_least_useful() {
  int64_t last = 0;  // of the turns
  for (const Mark& mark : marks_)
    if (mark.kind == Kind::Turn) last = std::max(last, mark.pos);
  const auto rank = [last](const Mark& mark) {
    return std::tuple(mark.kind == Kind::Turn, mark.pos == last, mark.used);
  };
  marks_.erase(std::min_element(marks_.begin(), marks_.end(),
                                [&](const Mark& a, const Mark& b) { return rank(a) < rank(b); }));
}

void KvSnapshots::drop_unneeded(int64_t window) {
  std::erase_if(chunks_, [&](const auto& item) { return !needed(item.first, window); });
}

// Whether the chunk is still wanted after what had to go for it has gone.
bool KvSnapshots::make_room(int64_t chunk, const KvCache& kv) {
  const int64_t room = limit_ - chunk_bytes(kv);
  if (size_bytes() > room) drop_unneeded(kv.window());
  while (size_bytes() > room && !marks_.empty()) {
    drop_least_useful();
    drop_unneeded(kv.window());
  }
  return size_bytes() <= room && needed(chunk, kv.window());
}

void KvSnapshots::before_write(const KvCache& kv, int64_t pos, int64_t end, const StopToken* stop) {
  const int64_t held = kv.first_held(), lost = std::min(kv.first_held_after(end), pos);
  if (marks_.empty() || lost <= held) return;
  for (int64_t chunk = held / kChunk; chunk * kChunk < lost; ++chunk) {
    const int64_t first = std::max(held, chunk * kChunk), last = std::min(pos, (chunk + 1) * kChunk);
    const auto known = chunks_.find(chunk);
    if (known != chunks_.end() && known->second.begin <= first && last <= known->second.end) continue;
    if (!needed(chunk, kv.window())) continue;
    if (stop != nullptr) stop->check();
    if (known != chunks_.end() || make_room(chunk, kv)) save(kv, chunk, first, last);
  }
}

// The positions of a chunk that the rings hold, with what an older copy has before them.
void KvSnapshots::save(const KvCache& kv, int64_t number, int64_t begin, int64_t end) {
  try {
    auto memory = std::make_shared<Arena>(chunk_bytes(kv));
    Chunk chunk{begin, end, nullptr};
    const auto old = chunks_.find(number);
    const bool joins = old != chunks_.end() && old->second.begin < begin && begin <= old->second.end;
    if (joins) chunk.begin = old->second.begin;
    const uint8_t* const base = memory->data();
    each_plane(kv, memory->data(), [&](const KvPlane& ring, const KvPlane& copy) {
      if (joins) {
        KvPlane before = copy;
        before.data = old->second.memory->data() + (copy.data - base);
        copy_positions(before, copy, chunk.begin, begin);
      }
      copy_positions(ring, copy, begin, end);
    });
    chunk.memory = std::move(memory);
    chunks_[number] = std::move(chunk);
  } catch (const NotEnoughMemoryError&) {  // copies only save time: without them tokens are read again
    marks_.clear();
    chunks_.clear();
  }
}

// Where the piece that holds position p - 1 begins: the rings' content or a copy; p where nothing holds it.
int64_t KvSnapshots::piece_begin(const KvCache& kv, int64_t p) const {
  if (kv.first_held() < p) return kv.first_held();
  const auto it = chunks_.find((p - 1) / kChunk);
  return it != chunks_.end() && it->second.begin < p && p <= it->second.end ? it->second.begin : p;
}

int64_t KvSnapshots::nearest(const KvCache& kv, int64_t n) const {
  for (int64_t m = n; m > 0;) {
    const int64_t need = std::max<int64_t>(0, m - (kv.window() - 1));
    int64_t begin = m;
    for (int64_t next; begin > need && (next = piece_begin(kv, begin)) < begin;) begin = next;
    if (begin <= need) return m;
    m = 0;  // then the last copy that ends before the hole
    for (auto it = chunks_.lower_bound((begin + kChunk - 1) / kChunk); it != chunks_.begin();) {
      --it;
      if (it->second.end >= begin) continue;
      m = it->second.end;
      break;
    }
  }
  return 0;
}

void KvSnapshots::restore(KvCache& kv, int64_t n, const StopToken* stop) {
  for (Mark& mark : marks_)
    if (mark.pos - kMargin <= n && n <= mark.pos) mark.used = ++clock_;
  if (kv.can_rewind(n)) return;
  const int64_t first = std::max<int64_t>(0, n - (kv.window() - 1)), end = std::min(n, kv.first_held());
  for (const auto& [number, chunk] : chunks_) {
    const int64_t from = std::max(first, chunk.begin), to = std::min(end, chunk.end);
    if (from >= to) continue;
    if (stop != nullptr) stop->check();
    each_plane(kv, chunk.memory->data(),
               [&](const KvPlane& ring, const KvPlane& copy) { copy_positions(copy, ring, from, to); });
  }
  kv.filled(first, n);
}

void KvSnapshots::forget_from(int64_t n) {
  for (Mark& mark : marks_)
    if (mark.pos > n && mark.pos - kMargin <= n) mark.pos = n;  // the place of the next attempt
  std::erase_if(marks_, [n](const Mark& mark) { return mark.pos > n || mark.pos == 0; });
  chunks_.erase(chunks_.lower_bound((n + kChunk - 1) / kChunk), chunks_.end());
  if (chunks_.empty()) return;
  const auto last = std::prev(chunks_.end());
  last->second.end = std::min(last->second.end, n);
  if (last->second.begin >= last->second.end) chunks_.erase(last);
}

}  // namespace gemmule
