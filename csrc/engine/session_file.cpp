#include "engine/session_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "core/xxh64.h"

namespace gemmule {
namespace {

constexpr char kMagic[8] = {'g', 'e', 'm', 'm', 'u', 'l', 'e', 'S'};
constexpr int64_t kVersion = 1, kMostMarks = 4096;
constexpr size_t kPiece = 4 << 20;  // bytes between two looks at the stop token

struct Head {
  char magic[8];
  int64_t version, file_bytes;
  uint64_t model, form;  // checksums: of the model file, of the shape of the cache
  int64_t n_ctx, n_tokens;
  int64_t n_stored;    // positions with keys and values
  int64_t first_held;  // of them in the sliding layers
  int64_t n_media, n_marks, n_chunks, n_logits, front_bytes;
  char kv_type[32];
  uint64_t checksum;  // of everything before it
};
static_assert(sizeof(Head) == 152);

struct MediaEntry {
  int64_t first, n_rows, is_block;
};
struct MarkEntry {
  int64_t pos, kind;
};
struct ChunkEntry {
  int64_t begin, end;
};

uint64_t head_checksum(const Head& head) {
  Xxh64 hash;
  hash.update(&head, offsetof(Head, checksum));
  return hash.digest();
}

// Size, header and the beginning of every tensor: tells models apart without reading all their weights.
uint64_t model_checksum(const GgufFile& file) {
  constexpr uint64_t kBeginning = 256;
  file.file().check_not_truncated();
  Xxh64 hash;
  const uint64_t size = file.size();
  hash.update(&size, sizeof size);
  const GgufTensor& first = file.tensors().front();
  hash.update(file.data(first) - first.offset, static_cast<size_t>(file.data_offset()));
  for (const GgufTensor& tensor : file.tensors())
    hash.update(file.data(tensor), static_cast<size_t>(std::min(tensor.n_bytes, kBeginning)));
  return hash.digest();
}

uint64_t form_checksum(const KvCache& kv) {
  std::vector<int64_t> form = {kv.n_layers(), kv.window(), KvSnapshots::kChunk};
  for (int64_t i = 0; i < kv.n_layers(); ++i) {
    const std::vector<KvPlane> planes = kv.planes(i);
    form.insert(form.end(), {kv.is_sliding(i), static_cast<int64_t>(planes.size())});
    for (const KvPlane& plane : planes) form.insert(form.end(), {plane.n_heads, plane.row_bytes});
  }
  Xxh64 hash;
  hash.update(form.data(), form.size() * sizeof form[0]);
  return hash.digest();
}

// Bytes of positions [first_held or 0, n) of all layers.
int64_t cache_bytes(const KvCache& kv, int64_t first_held, int64_t n) {
  int64_t n_bytes = 0;
  for (int64_t i = 0; i < kv.n_layers(); ++i)
    for (const KvPlane& plane : kv.planes(i))
      n_bytes += plane.n_heads * plane.row_bytes * (n - (kv.is_sliding(i) ? first_held : 0));
  return n_bytes;
}

class Writer {
 public:
  Writer(int fd, const StopToken* stop) : fd_(fd), stop_(stop) {}

  void raw(const void* data, size_t n_bytes) { write(data, n_bytes); }
  void body(const void* data, size_t n_bytes) {
    for (const auto* p = static_cast<const uint8_t*>(data); n_bytes > 0;) {
      const size_t piece = std::min(n_bytes, kPiece);
      hash_.update(p, piece);
      write(p, piece);
      p += piece;
      n_bytes -= piece;
    }
  }
  template <class T>
  void body(const std::vector<T>& items) {
    body(items.data(), items.size() * sizeof(T));
  }
  uint64_t digest() const { return hash_.digest(); }

 private:
  void write(const void* data, size_t n_bytes) {
    const auto* p = static_cast<const uint8_t*>(data);
    while (n_bytes > 0) {
      const ssize_t done = ::write(fd_, p, std::min(n_bytes, kPiece));
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0)
        throw Error(
            cat("the session could not be written: ", std::strerror(errno), "; free space on the disk"));
      if (stop_ != nullptr) stop_->check();
      p += done;
      n_bytes -= static_cast<size_t>(done);
    }
  }
  int fd_;
  const StopToken* stop_;
  Xxh64 hash_;
};

class Reader {
 public:
  Reader(const std::string& path, const StopToken* stop) : path_(path), stop_(stop) {
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status {};
    const bool is_file = fd_ >= 0 && fstat(fd_, &status) == 0 && S_ISREG(status.st_mode);
    if (!is_file) {
      if (fd_ >= 0) ::close(fd_);
      throw ModelNotFoundError(cat(path, " is not a readable file; give the path of a saved session"));
    }
    size_ = left_ = status.st_size;
  }
  ~Reader() { ::close(fd_); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  int64_t size() const { return size_; }
  [[noreturn]] void fail(const char* why) const {
    throw FormatError(cat(path_, " ", why, "; save the session again"));
  }
  // Before memory is taken for so much of the file.
  void expect(int64_t n_bytes) const {
    if (n_bytes < 0 || n_bytes > left_) fail("is cut off");
  }
  void raw(void* data, int64_t n_bytes) {
    expect(n_bytes);
    left_ -= n_bytes;
    auto* p = static_cast<uint8_t*>(data);
    for (int64_t n = n_bytes; n > 0;) {
      const ssize_t done = ::read(fd_, p, std::min(static_cast<size_t>(n), kPiece));
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) fail("cannot be read to its end");
      if (stop_ != nullptr) stop_->check();
      p += done;
      n -= done;
    }
  }
  void body(void* data, int64_t n_bytes) {
    expect(n_bytes);
    auto* p = static_cast<uint8_t*>(data);
    for (int64_t n; n_bytes > 0; p += n, n_bytes -= n) {
      n = std::min(n_bytes, static_cast<int64_t>(kPiece));
      raw(p, n);
      hash_.update(p, static_cast<size_t>(n));
    }
  }
  template <class T>
  std::vector<T> items(int64_t n) {
    expect(n < 0 || n > left_ ? -1 : n * static_cast<int64_t>(sizeof(T)));
    std::vector<T> out(static_cast<size_t>(n));
    body(out.data(), n * static_cast<int64_t>(sizeof(T)));
    return out;
  }
  uint64_t digest() const { return hash_.digest(); }

 private:
  const std::string path_;
  const StopToken* stop_;
  int fd_ = -1;
  int64_t size_ = 0, left_ = 0;
  Xxh64 hash_;
};

// fn(bytes, n) of the rows [begin, end) of each head, in order; a ring gives them in two pieces.
template <class Fn>
void each_run(const KvPlane& plane, int64_t begin, int64_t end, Fn&& fn) {
  for (int64_t head = 0; head < plane.n_heads; ++head)
    for (int64_t p = begin, n; p < end; p += n) {
      n = std::min(end - p, plane.ring - p % plane.ring);
      fn(plane.data + (head * plane.ring + p % plane.ring) * plane.row_bytes, n * plane.row_bytes);
    }
}

Head read_head(Reader& in, const LoadedModel& model) {
  Head head{};
  if (in.size() < static_cast<int64_t>(sizeof head)) in.fail("is no session of gemmule");
  in.raw(&head, sizeof head);
  if (std::memcmp(head.magic, kMagic, sizeof kMagic) != 0) in.fail("is no session of gemmule");
  if (head.version != kVersion) in.fail("was written by another version of gemmule");
  if (head.checksum != head_checksum(head)) in.fail("is damaged at its beginning");
  if (head.file_bytes != in.size()) in.fail("is not complete");
  if (head.model != model_checksum(model.file()))
    in.fail(cat("belongs to another model than ", model.file().path()).c_str());
  const bool counts_fit =
      head.n_ctx >= 1 && head.n_ctx <= kMaxContext && head.n_tokens >= 0 && head.n_tokens <= head.n_ctx &&
      head.n_stored >= 0 && head.n_stored <= head.n_tokens && head.first_held >= 0 &&
      head.first_held <= head.n_stored && head.n_media >= 0 && head.n_media <= head.n_tokens &&
      head.n_marks >= 0 && head.n_marks <= kMostMarks && head.n_chunks >= 0 &&
      head.n_chunks <= head.n_tokens / KvSnapshots::kChunk + 1 && head.front_bytes >= 0 &&
      (head.n_logits == 0 || (head.n_logits == model.config().n_vocab && head.n_tokens > 0));
  if (!counts_fit) in.fail("holds numbers that contradict each other");
  return head;
}

KvTypes kv_types_of(const Head& head, const Reader& in) {
  try {
    return parse_kv_types({head.kv_type, strnlen(head.kv_type, sizeof head.kv_type)});
  } catch (const std::invalid_argument&) {
    in.fail("keeps its cache in a form that this version does not know");
  }
}

std::vector<MediaRows> read_media_table(Reader& in, const Head& head) {
  std::vector<MediaRows> media;
  int64_t free = 0;
  for (const MediaEntry& entry : in.items<MediaEntry>(head.n_media)) {
    if (entry.first < free || entry.n_rows < 1 || entry.n_rows > head.n_tokens - entry.first ||
        (entry.is_block != 0 && entry.n_rows > kMaxBlock))
      in.fail("holds media that do not fit its tokens");
    media.push_back({entry.first, entry.n_rows, nullptr, entry.is_block != 0});
    free = media.back().end();
  }
  return media;
}

void read_vectors(Reader& in, std::vector<MediaRows>& media, int64_t d_model) {
  for (MediaRows& m : media) {
    const int64_t n = m.n_rows * d_model, n_bytes = n * static_cast<int64_t>(sizeof(float));
    in.expect(n_bytes);
    const std::shared_ptr<float[]> vectors(new float[static_cast<size_t>(n)]);
    in.body(vectors.get(), n_bytes);
    if (!std::all_of(vectors.get(), vectors.get() + n, [](float x) { return std::isfinite(x); }))
      in.fail("holds media with numbers that are not finite");
    m.vectors = vectors;
  }
}

// Positions [first_held or 0, n_stored); the oldest ones go where this session's rings are smaller.
void read_cache(Reader& in, KvCache& kv, const Head& head) {
  int64_t held = head.first_held;
  for (int64_t i = 0; i < kv.n_layers(); ++i)
    if (kv.is_sliding(i)) held = std::max(held, head.n_stored - kv.ring(i));
  std::vector<uint8_t> skipped;
  for (int64_t i = 0; i < kv.n_layers(); ++i)
    for (const KvPlane& plane : kv.planes(i))
      for (int64_t h = 0; h < plane.n_heads; ++h) {
        if (kv.is_sliding(i)) {
          in.expect((held - head.first_held) * plane.row_bytes);
          skipped.resize(static_cast<size_t>((held - head.first_held) * plane.row_bytes));
          in.body(skipped.data(), static_cast<int64_t>(skipped.size()));
        }
        const KvPlane one{plane.data + h * plane.ring * plane.row_bytes, 1, plane.ring, plane.row_bytes};
        each_run(one, kv.is_sliding(i) ? held : 0, head.n_stored,
                 [&](uint8_t* data, int64_t n_bytes) { in.body(data, n_bytes); });
      }
  kv.filled(held, head.n_stored);
}

}  // namespace

void SessionFile::save(const Session& session, int fd, std::string_view front, const StopToken* stop) {
  const KvCache& kv = session.kv_;
  const KvSnapshots& snapshots = session.snapshots_;
  const int64_t d_model = session.model_->config().d_model;
  std::vector<MediaEntry> media;
  std::vector<MarkEntry> marks;
  std::vector<ChunkEntry> chunks;
  int64_t vector_bytes = 0;
  for (const MediaRows& m : session.media_) {
    media.push_back({m.first, m.n_rows, m.is_block});
    vector_bytes += m.n_rows * d_model * static_cast<int64_t>(sizeof(float));
  }
  for (const KvSnapshots::Mark& mark : snapshots.marks())
    marks.push_back({mark.pos, static_cast<int64_t>(mark.kind)});
  std::vector<const Arena*> copies;
  for (const auto& [number, chunk] : snapshots.chunks()) {
    if (!snapshots.needed(number, kv.window())) continue;
    chunks.push_back({chunk.begin, chunk.end});
    copies.push_back(chunk.memory.get());
  }

  Head head{};
  std::memcpy(head.magic, kMagic, sizeof kMagic);
  head.version = kVersion;
  head.model = model_checksum(session.model_->file());
  head.form = form_checksum(kv);
  head.n_ctx = session.n_ctx();
  head.n_tokens = session.n_tokens();
  head.n_stored = std::min(session.n_stored_, head.n_tokens);
  head.first_held = std::min(kv.first_held(), head.n_stored);
  head.n_media = static_cast<int64_t>(media.size());
  head.n_marks = static_cast<int64_t>(marks.size());
  head.n_chunks = static_cast<int64_t>(chunks.size());
  const std::span<const float> logits = session.last_row(session.logits_);
  head.n_logits = static_cast<int64_t>(logits.size());
  head.front_bytes = static_cast<int64_t>(front.size());
  std::strncpy(head.kv_type, format_kv_types(kv.types()).c_str(), sizeof head.kv_type - 1);
  const auto bytes_of = [](const auto& items) {
    return static_cast<int64_t>(items.size() * sizeof items[0]);
  };
  head.file_bytes = static_cast<int64_t>(sizeof head) + head.front_bytes + bytes_of(session.tokens_) +
                    bytes_of(media) + bytes_of(marks) + bytes_of(chunks) + vector_bytes + bytes_of(logits) +
                    cache_bytes(kv, head.first_held, head.n_stored) +
                    head.n_chunks * KvSnapshots::chunk_bytes(kv) + static_cast<int64_t>(sizeof(uint64_t));
  head.checksum = head_checksum(head);

  Writer out(fd, stop);
  out.raw(&head, sizeof head);
  out.body(front.data(), front.size());
  out.body(session.tokens_);
  out.body(media);
  out.body(marks);
  out.body(chunks);
  for (const MediaRows& m : session.media_)
    out.body(m.vectors.get(), static_cast<size_t>(m.n_rows * d_model) * sizeof(float));
  out.body(logits.data(), logits.size_bytes());
  for (int64_t i = 0; i < kv.n_layers(); ++i)
    for (const KvPlane& plane : kv.planes(i))
      each_run(plane, kv.is_sliding(i) ? head.first_held : 0, head.n_stored,
               [&](uint8_t* data, int64_t n_bytes) { out.body(data, static_cast<size_t>(n_bytes)); });
  for (const Arena* memory : copies) out.body(memory->data(), static_cast<size_t>(memory->size()));
  const uint64_t digest = out.digest();
  out.raw(&digest, sizeof digest);
}

SavedSession SessionFile::load(std::shared_ptr<LoadedModel> model, const std::string& path, int64_t n_ctx,
                               int64_t snapshot_limit, const StopToken* stop) {
  Reader in(path, stop);
  const Head head = read_head(in, *model);
  const int64_t size = n_ctx == 0 ? head.n_ctx : n_ctx;
  if (head.n_tokens > size)
    throw ContextLengthError(
        cat(path, " holds ", head.n_tokens, " tokens and n_ctx is ", size, "; load it with a larger n_ctx"),
        head.n_tokens, size);
  in.expect(head.front_bytes);
  std::string front(static_cast<size_t>(head.front_bytes), '\0');
  in.body(front.data(), head.front_bytes);

  Session session(std::move(model), size, kv_types_of(head, in), snapshot_limit);
  if (form_checksum(session.kv_) != head.form)
    in.fail("keeps its cache in a form that this version does not use");
  session.tokens_ = in.items<int32_t>(head.n_tokens);
  const int64_t n_vocab = session.model_->config().n_vocab;
  if (!std::all_of(session.tokens_.begin(), session.tokens_.end(),
                   [n_vocab](int32_t id) { return id >= 0 && id < n_vocab; }))
    in.fail("holds tokens outside the vocabulary");
  std::vector<MediaRows> media = read_media_table(in, head);
  const std::vector<MarkEntry> marks = in.items<MarkEntry>(head.n_marks);
  const std::vector<ChunkEntry> chunks = in.items<ChunkEntry>(head.n_chunks);
  read_vectors(in, media, session.model_->config().d_model);
  if (!media.empty() && session.model_->config().d_ple > 0) in.fail("holds media that the model cannot take");
  session.media_ = std::move(media);
  session.logits_ = in.items<float>(head.n_logits);
  if (!std::all_of(session.logits_.begin(), session.logits_.end(), [](float x) { return std::isfinite(x); }))
    in.fail("holds logits that are not finite");
  in.expect(cache_bytes(session.kv_, head.first_held, head.n_stored));
  read_cache(in, session.kv_, head);
  session.n_stored_ = head.n_stored;

  for (const MarkEntry& mark : marks) {
    if (mark.pos < 1 || mark.pos > head.n_tokens) in.fail("marks a place that it does not have");
    session.snapshots_.mark(mark.pos, mark.kind == 0 ? KvSnapshots::Kind::Turn : KvSnapshots::Kind::Within);
  }
  const int64_t chunk_bytes = KvSnapshots::chunk_bytes(session.kv_);
  for (const ChunkEntry& entry : chunks) {
    const int64_t number = entry.begin / KvSnapshots::kChunk;
    if (entry.begin < 0 || entry.begin >= entry.end || entry.end > head.n_tokens ||
        entry.end > (number + 1) * KvSnapshots::kChunk)
      in.fail("holds a snapshot of positions that it does not have");
    in.expect(chunk_bytes);
    const auto memory = std::make_shared<Arena>(chunk_bytes);
    in.body(memory->data(), chunk_bytes);
    if (session.snapshots_.size_bytes() + chunk_bytes <= session.snapshots_.limit())
      session.snapshots_.put({entry.begin, entry.end, memory});
  }
  const uint64_t digest = in.digest();
  uint64_t stored = 0;
  in.raw(&stored, sizeof stored);
  if (stored != digest) in.fail("is damaged");
  return {std::move(session), std::move(front)};
}

}  // namespace gemmule
