// A run: the caller publishes the jobs, takes jobs itself and waits until every job that was taken is
// finished. It does not wait for workers that hold no job, so a worker that the system has preempted costs at
// most its current piece. The caller asks after each of its jobs whether the run is still wanted; if not, it
// takes all the jobs that are left at once and does none of them. Waiting threads spin for some microseconds,
// yield for a while, then sleep: a decode step keeps them awake between its runs, an idle model costs no
// processor time, and on a busy machine, where two of them may share a processor, the yields let the one that
// holds a job run.
#include "core/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <system_error>

#include "core/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gemmule {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kSpin{10};  // longer than the serial work between most runs
constexpr int kPauses = 16;                     // between two looks at the clock
constexpr int kYields = 200;                    // then sleep: about 0.1 ms on an idle machine

inline void cpu_relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One wait for something that another thread does.
class Patience {
 public:
  // Lets a moment pass; false: it has been so long that the thread should sleep.
  bool wait_a_little() {
    if (yields_ == 0 && (++pauses_ % kPauses != 0 || is_soon())) {
      cpu_relax();
      return true;
    }
    // Counted, not timed: a thread that shares its processor with one that works is to stay awake, because a
    // wake-up would interrupt that one in every run.
    if (++yields_ > kYields) return false;
    std::this_thread::yield();
    return true;
  }

 private:
  bool is_soon() {
    const Clock::time_point now = Clock::now();
    if (pauses_ == kPauses) start_ = now;
    return now - start_ < kSpin;
  }

  int pauses_ = 0, yields_ = 0;
  Clock::time_point start_;
};

}  // namespace

ThreadPool::ThreadPool(int n_threads) {
  active_.value.store(static_cast<uint64_t>(n_threads), std::memory_order_relaxed);
  try {
    workers_.reserve(static_cast<size_t>(n_threads > 1 ? n_threads - 1 : 0));
    for (int thread = 1; thread < n_threads; ++thread)
      workers_.emplace_back([this, thread] { worker_loop(thread); });
  } catch (const std::system_error&) {
    const size_t n_started = workers_.size();
    stop();
    throw Error(
        cat("the system refused thread ", n_started + 2, " of ", n_threads, "; choose fewer n_threads"));
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  active_.value.store(kMaxThreads, std::memory_order_release);  // nobody is to wait for this one any more
  active_.value.notify_all();
  epoch_.value.fetch_add(1, std::memory_order_release);
  epoch_.value.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::set_active(int n) {
  const auto active = static_cast<uint64_t>(n);
  if (active == active_.value.load(std::memory_order_relaxed)) return;
  active_.value.store(active, std::memory_order_release);
  active_.value.notify_all();
}

void ThreadPool::run_jobs(int64_t n_jobs, JobFn fn, void* context) {
  const int n_active = std::min(limit_, n_threads());
  if (n_active == 1 || n_jobs <= 1) {
    for (int64_t job = 0; job < n_jobs; ++job) {
      fn(context, job, 0);
      if (stop_ != nullptr) stop_->check();
    }
    return;
  }
  set_active(n_active);
  publish(n_jobs, fn, context);
  try {
    while (take_one_job(0))
      if (stop_ != nullptr) stop_->check();
  } catch (...) {
    const uint64_t left_out = jobs_left_.value.exchange(0, std::memory_order_acq_rel);
    wait_for(static_cast<uint64_t>(n_jobs) - left_out);
    throw;
  }
  wait_for(static_cast<uint64_t>(n_jobs));
}

void ThreadPool::publish(int64_t n_jobs, JobFn fn, void* context) {
  // No job of the previous run is held any more, so no worker reads these until it takes a job of this run.
  fn_ = fn;
  context_ = context;
  n_jobs_ = n_jobs;
  jobs_done_.value.store(0, std::memory_order_relaxed);
  jobs_left_.value.store(static_cast<uint64_t>(n_jobs), std::memory_order_release);
  epoch_.value.fetch_add(1, std::memory_order_release);
  epoch_.value.notify_all();
}

void ThreadPool::wait_for(uint64_t n_jobs) {
  for (Patience patience;;) {
    const uint64_t done = jobs_done_.value.load(std::memory_order_acquire);
    if (done == n_jobs) return;
    if (!patience.wait_a_little()) jobs_done_.value.wait(done, std::memory_order_acquire);
  }
}

bool ThreadPool::take_one_job(int thread) {
  uint64_t left = jobs_left_.value.load(std::memory_order_acquire);
  do {
    if (left == 0) return false;
  } while (!jobs_left_.value.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                                   std::memory_order_acquire));
  // Holding a job keeps the run, and with it these three fields, alive.
  fn_(context_, n_jobs_ - static_cast<int64_t>(left), thread);
  jobs_done_.value.fetch_add(1, std::memory_order_acq_rel);
  jobs_done_.value.notify_one();
  return true;
}

void ThreadPool::worker_loop(int thread) {
  Patience patience;
  while (!stopping_.load(std::memory_order_relaxed)) {
    const uint64_t active = active_.value.load(std::memory_order_acquire);
    if (static_cast<uint64_t>(thread) >= active) {
      active_.value.wait(active, std::memory_order_acquire);
    } else if (take_one_job(thread)) {
      patience = {};
    } else if (!patience.wait_a_little()) {
      // The epoch is read before the last look at the jobs: a run that starts in between changes it.
      const uint64_t epoch = epoch_.value.load(std::memory_order_acquire);
      if (jobs_left_.value.load(std::memory_order_acquire) == 0 && !stopping_.load(std::memory_order_relaxed))
        epoch_.value.wait(epoch, std::memory_order_acquire);
      patience = {};
    }
  }
}

}  // namespace gemmule
