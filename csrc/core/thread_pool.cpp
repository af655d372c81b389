// A run: the caller publishes the jobs, takes jobs itself and waits until every job that was taken is
// finished. It does not wait for workers that hold no job, so a worker that the system has preempted costs at
// most its current piece. Idle workers spin for some microseconds, yield for a while, then sleep: a decode
// step keeps them awake between its runs, an idle model costs no processor time, and on a busy machine the
// yields let the preempted thread run.
#include "core/thread_pool.h"

#include <system_error>

#include "core/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gemmule {
namespace {

constexpr int kSpins = 2000;  // 20 to 60 us of pauses: longer than the serial work between two runs
constexpr int kYields = 200;  // then offer the processor to others before sleeping

inline void cpu_relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) {
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
  epoch_.value.fetch_add(1, std::memory_order_release);
  epoch_.value.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run_jobs(int64_t n_jobs, JobFn fn, void* context) {
  if (workers_.empty() || n_jobs <= 1) {
    for (int64_t job = 0; job < n_jobs; ++job) fn(context, job, 0);
    return;
  }
  // No job of the previous run is held any more, so no worker reads these until it takes a job of this run.
  fn_ = fn;
  context_ = context;
  n_jobs_ = n_jobs;
  jobs_done_.value.store(0, std::memory_order_relaxed);
  jobs_left_.value.store(static_cast<uint64_t>(n_jobs), std::memory_order_release);
  epoch_.value.fetch_add(1, std::memory_order_release);
  epoch_.value.notify_all();

  while (take_one_job(0)) {
  }
  const auto all = static_cast<uint64_t>(n_jobs);
  for (int i = 0;; ++i) {
    const uint64_t done = jobs_done_.value.load(std::memory_order_acquire);
    if (done == all) return;
    if (i < kSpins)
      cpu_relax();
    else if (i < kSpins + kYields)
      std::this_thread::yield();
    else
      jobs_done_.value.wait(done, std::memory_order_acquire);
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
  int idle = 0;
  while (!stopping_.load(std::memory_order_relaxed)) {
    if (take_one_job(thread)) {
      idle = 0;
    } else if (idle < kSpins) {
      ++idle;
      cpu_relax();
    } else if (idle < kSpins + kYields) {
      ++idle;
      std::this_thread::yield();
    } else {
      // The epoch is read before the last look at the jobs: a run that starts in between changes it.
      const uint64_t epoch = epoch_.value.load(std::memory_order_acquire);
      if (jobs_left_.value.load(std::memory_order_acquire) == 0 && !stopping_.load(std::memory_order_relaxed))
        epoch_.value.wait(epoch, std::memory_order_acquire);
      idle = 0;
    }
  }
}

}  // namespace gemmule
