// Drafts from what was already said: where the last 8, 5 or 3 tokens stood before, the longest first and the
// latest place first, the same is expected to follow again. An index of the ends of all such runs, kept as
// the timeline grows; a wrong entry costs a try, because every match is compared token by token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gemmule {

class PromptLookup {
 public:
  static constexpr int64_t kLengths[] = {8, 5, 3};  // of the runs that are looked for
  static constexpr size_t kLevels = std::size(kLengths);

  struct Match {
    size_t level = 0;  // of kLengths
    int64_t next = 0;  // index of the token that followed; 0: no match
  };

  // The latest place before the end where the last tokens stood. Takes up the tokens that are new since the
  // last call; where the timeline became shorter meanwhile, it goes on from there.
  Match find(std::span<const int32_t> tokens);

  // The n tokens that followed; where they reach the end, they go on as a repetition.
  static std::vector<int32_t> continuation(std::span<const int32_t> tokens, const Match& match, int64_t n);

 private:
  int32_t& slot(const int32_t* end, int64_t length);
  void take_up(std::span<const int32_t> tokens);

  std::vector<int32_t> ends_;  // by hash of a run; 0: none. Later runs replace earlier ones
  int64_t n_indexed_ = 0;      // runs that end up to here are in the index
};

}  // namespace gemmule
