#include "core/thread_pool.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

using gemmule::Cancelled;
using gemmule::StopToken;
using gemmule::ThreadPool;

TEST_CASE("every job runs exactly once, for any number of threads and jobs") {
  for (const int n_threads : {1, 2, 3, 5}) {
    ThreadPool pool(n_threads);
    CHECK(pool.n_threads() == n_threads);
    for (const int64_t n_jobs : {0, 1, 2, 3, 7, 64, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(n_jobs));
      std::atomic<bool> thread_in_range{true};
      pool.run(n_jobs, [&](int64_t job, int thread) {
        seen[static_cast<size_t>(job)].fetch_add(1);
        if (thread < 0 || thread >= n_threads) thread_in_range = false;
      });
      for (const auto& count : seen) CHECK(count.load() == 1);
      CHECK(thread_in_range.load());
    }
  }
}

TEST_CASE("runs follow each other closely and see what the caller wrote before") {
  ThreadPool pool(3);
  int64_t total = 0;
  std::vector<int64_t> values(17);
  for (int64_t round = 0; round < 20000; ++round) {
    for (int64_t& value : values) value = round;
    std::atomic<int64_t> sum{0};
    pool.run(17, [&](int64_t job, int) { sum += values[static_cast<size_t>(job)]; });
    total += sum.load();
  }
  CHECK(total == 17ll * 19999 * 20000 / 2);
}

TEST_CASE("sleeping workers wake up") {
  ThreadPool pool(2);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    std::atomic<int> n{0};
    pool.run(8, [&](int64_t, int) { ++n; });
    CHECK(n.load() == 8);
  }
}

TEST_CASE("a slow job does not keep the others from being done") {
  ThreadPool pool(2);
  std::atomic<int> n{0};
  pool.run(9, [&](int64_t job, int) {
    if (job == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ++n;
  });
  CHECK(n.load() == 9);
}

TEST_CASE("a pool can be made and destroyed without ever running") {
  for (int i = 0; i < 50; ++i) ThreadPool pool(4);
}

TEST_CASE("a limit keeps the other threads out, and they come back") {
  ThreadPool pool(4);
  for (const int limit : {4, 1, 3, 2, 4, 0, 9}) {
    pool.limit_threads(limit);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::atomic<int>> by_thread(4);
      pool.run(16, [&](int64_t, int thread) { ++by_thread[static_cast<size_t>(thread)]; });
      int total = 0;
      for (const auto& n : by_thread) total += n.load();
      CHECK(total == 16);
      if (limit <= 1) CHECK(by_thread[0].load() == 16);
    }
  }
}

TEST_CASE("a pool whose workers wait behind a limit can be destroyed") {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(4);
    pool.limit_threads(1);
    pool.run(4, [](int64_t, int) {});
  }
}

TEST_CASE("a run that is cancelled ends after the jobs at hand, and the next one is whole") {
  for (const int n_threads : {1, 2, 4}) {
    ThreadPool pool(n_threads);
    for (int64_t round = 0; round < 300; ++round) {
      StopToken stop;
      pool.watch(&stop);
      std::atomic<int64_t> begun{0}, ended{0};
      const auto job = [&](int64_t i, int) {
        ++begun;
        if (i == round) stop.cancel();
        while (i > round && !stop.cancelled()) std::this_thread::yield();  // or these could be the last ones
        ++ended;
      };
      CHECK_THROWS_AS(pool.run(100000, job), Cancelled);
      CHECK(begun.load() == ended.load());  // nothing runs behind the caller's back
      if (n_threads == 1) CHECK(ended.load() == round + 1);
      pool.watch(nullptr);
      std::atomic<int64_t> sum{0};
      pool.run(50, [&](int64_t i, int) { sum += i; });
      CHECK(sum.load() == 49 * 50 / 2);
    }
  }
}

TEST_CASE("what the poll of a token throws comes out of the run") {
  ThreadPool pool(3);
  StopToken stop;
  int asked = 0;
  stop.set_poll([&] {
    if (++asked == 5) throw std::runtime_error("a signal");
  });
  pool.watch(&stop);
  CHECK_THROWS_WITH(pool.run(1 << 20, [](int64_t, int) {}), "a signal");
  CHECK(asked == 5);
}

TEST_CASE("a token that follows another is cancelled with it, and alone") {
  StopToken all;
  StopToken one(&all), other(&all);
  one.cancel();
  CHECK(one.cancelled());
  CHECK_FALSE(other.cancelled());
  CHECK_FALSE(all.cancelled());
  all.cancel();
  CHECK(other.cancelled());
  CHECK_THROWS_AS(other.check(), Cancelled);
}
