// A fixed set of worker threads owned by a backend. `run` hands jobs out one at a time from an atomic
// counter, so a worker that the system preempts delays the others by at most the job it holds. Workers spin
// briefly between calls, then yield, then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "core/stop_token.h"

namespace gemmule {

inline constexpr int kMaxThreads = 1024;  // that a caller may ask for

class ThreadPool {
 public:
  // The calling thread is worker 0, so n_threads - 1 are started. Throws Error when the system refuses one.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // At most this many threads work in the runs that follow. Not while one is running.
  void limit_threads(int n) { limit_ = n > 1 ? n : 1; }

  // The runs that follow end early when `stop` is cancelled; null: none of them does. Not while one is
  // running.
  void watch(const StopToken* stop) { stop_ = stop; }

  // Calls fn(job, thread) for every job in [0, n_jobs) and returns when all are done, or throws what
  // stop->check() throws; then no job is running any more and any number of them was left out. fn must not
  // throw. Not reentrant; one caller at a time.
  template <class Fn>
  void run(int64_t n_jobs, Fn&& fn) {
    using F = std::remove_reference_t<Fn>;
    run_jobs(
        n_jobs, [](void* f, int64_t job, int thread) { (*static_cast<F*>(f))(job, thread); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using JobFn = void (*)(void* context, int64_t job, int thread);
  void run_jobs(int64_t n_jobs, JobFn fn, void* context);
  void set_active(int n);
  void publish(int64_t n_jobs, JobFn fn, void* context);
  void wait_for(uint64_t n_jobs);
  bool take_one_job(int thread);
  void stop();
  void worker_loop(int thread);

  struct alignas(64) Line {
    std::atomic<uint64_t> value{0};
  };
  Line jobs_left_;  // jobs of the current run that nobody has taken yet
  Line jobs_done_;  // jobs of the current run that are finished
  Line epoch_;      // raised with every run; sleeping workers wait for it to change
  Line active_;     // threads that take jobs; the others wait for it to change
  JobFn fn_ = nullptr;
  void* context_ = nullptr;
  int64_t n_jobs_ = 0;
  std::atomic<bool> stopping_{false};
  int limit_ = kMaxThreads;
  const StopToken* stop_ = nullptr;
  std::vector<std::thread> workers_;
};

}  // namespace gemmule
