#include "core/thread_tuner.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>

using gemmule::ThreadTuner;

namespace {

// Steps with the given time for each number of threads; returns the number for the next one.
int settle(ThreadTuner& tuner, const std::function<double(int)>& step_time, int n_steps) {
  for (int i = 0; i < n_steps; ++i) tuner.took(step_time(tuner.next()));
  return tuner.next();
}

}  // namespace

TEST_CASE("the tuner keeps all threads where each of them helps") {
  for (const int n : {2, 3, 8, 64}) {
    ThreadTuner tuner(n);
    CHECK(tuner.next() == n);
    int fewer = 0;
    for (int i = 0; i < 5000; ++i) {
      fewer += tuner.next() != n;
      tuner.took(1.0 / tuner.next());
    }
    CHECK(tuner.next() == n);
    CHECK(fewer <= 3);  // one hopeless step a search
  }
}

TEST_CASE("the tuner finds the fewest threads that saturate the memory") {
  const auto saturated_by = [](int enough) { return [=](int n) { return 1.0 / std::min(n, enough); }; };
  ThreadTuner eight(8), sixteen(16), two(2);
  CHECK(settle(eight, saturated_by(3), 200) == 3);
  CHECK(settle(sixteen, saturated_by(9), 200) == 9);
  CHECK(settle(two, saturated_by(1), 200) == 1);
  CHECK(settle(two, saturated_by(2), 4000) == 2);  // the other programs have gone
}

TEST_CASE("slow steps here and there do not mislead the tuner") {
  ThreadTuner tuner(8);
  int i = 0;
  const auto noisy = [&](int n) { return 1.0 / std::min(n, 4) * (++i % 3 == 0 ? 1.15 : 1.0); };
  CHECK(settle(tuner, noisy, 300) == 4);
}

TEST_CASE("one thread is never tuned") {
  ThreadTuner tuner(1);
  CHECK(settle(
            tuner, [](int) { return 1.0; }, 5000) == 1);
}

TEST_CASE("the tuner begins with the number that is likely, and finds the right one all the same") {
  for (const int likely : {1, 3, 5, 12}) {
    ThreadTuner tuner(16, likely);
    CHECK(tuner.next() == likely);
    CHECK(settle(
              tuner, [](int n) { return 1.0 / std::min(n, 3); }, 300) == 3);
  }
  for (const int unlikely : {0, 16, 99}) CHECK(ThreadTuner(16, unlikely).next() == 16);
  const auto steps = [](ThreadTuner tuner) {  // until it has settled
    int last = 0;
    for (int i = 0; i < 300; ++i) {
      if (tuner.next() != 3) last = i;
      tuner.took(1.0 / std::min(tuner.next(), 3));
    }
    return last;
  };
  CHECK(steps(ThreadTuner(16, 3)) < steps(ThreadTuner(16)));
}
