// How many tokens to draft: plain arithmetic on what passes took and how often drafts were right. With k
// drafts a pass takes V(k+1), of which the drafter's steps are k c, and gives 1 + sum P_i tokens, where P_i
// is the chance that the first i drafts are all right.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace gemmule {

inline constexpr int64_t kMaxDrafts = 12;       // in one pass; the drafter's are fewer
inline constexpr int64_t kMaxDrafterSteps = 8;  // in one round

// What passes of 1 to kMaxDrafts + 1 rows take, and a step of the drafter. Rows that were never run are
// guessed: from the nearest ones that were, else as they are.
class PassTimes {
 public:
  PassTimes();  // guesses of two cores with AVX2
  // guesses: V(1), ... V(kMaxDrafts + 1). Throws std::invalid_argument for another number of them.
  explicit PassTimes(std::span<const double> guesses);

  void ran(int64_t n_rows, double seconds);
  void drafted(double seconds);

  // In passes of one row.
  double pass(int64_t n_rows) const;
  double draft() const;
  bool is_measured(int64_t n_rows) const { return rows_[static_cast<size_t>(n_rows)].n > 0; }
  double seconds(int64_t n_rows) const { return pass(n_rows) * one_row(); }

  // In passes of one row, 0 where nothing is known: [V(1), ... V(kMaxDrafts + 1), c]. To be kept between
  // runs; numbers that make no sense are not taken.
  static constexpr size_t kNumbers = kMaxDrafts + 2;
  std::array<double, kNumbers> numbers() const;
  void set_numbers(const std::array<double, kNumbers>& numbers);

 private:
  struct Average {
    double seconds = 0;
    int64_t n = 0;

    double take(double x, double guess);
  };
  double one_row() const;
  int64_t nearest(int64_t n_rows) const;
  double guess(int64_t n_rows) const { return guesses_[static_cast<size_t>(n_rows)]; }

  std::array<double, kMaxDrafts + 2> guesses_;  // V by number of rows
  std::array<Average, kMaxDrafts + 2> rows_;    // likewise
  Average draft_;
  bool is_relative_ = false;  // `seconds` are passes of one row, until something runs
};

// How often something happens: an average that follows quickly at first, and forgets.
struct Chance {
  double p = 0.5;
  int64_t n = 0;

  void saw(bool happened);
};

// Chances that a draft is right, given that those before it in its round were.
struct DraftChances {
  static constexpr double kGaps[] = {0.5, 1, 2, 4};  // between the drafter's two best logits

  std::array<Chance, 3> lookup{{{0.8, 0}, {0.6, 0}, {0.4, 0}}};  // by length of what was found again
  std::array<Chance, kMaxDrafterSteps> step;                     // of the drafter, before it was made
  std::array<Chance, 5> gap{{{0.3, 0}, {0.45, 0}, {0.6, 0}, {0.8, 0}, {0.95, 0}}};  // and after

  DraftChances();
  // step[i].p, leaning on the place before it where little was seen: the places that no round has reached yet
  // are thought to be as good as the last one that was.
  double step_chance(size_t i) const;
  static size_t gap_level(double gap);
};

struct DraftPlan {
  int64_t length = 0;
  double rate = 1;  // tokens in the time of a pass of one row
};

// The most profitable number of drafts, of those with these chances, of which n_made were made already. No
// drafts where they gain nearly nothing.
DraftPlan best_length(std::span<const double> chances, int64_t n_made, double draft_cost,
                      const PassTimes& times);

}  // namespace gemmule
