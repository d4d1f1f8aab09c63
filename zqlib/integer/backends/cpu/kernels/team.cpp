#include "team.h"

#include <chrono>
#include <thread>

namespace zq {

// How long to look for the others before going to sleep. A step takes tens of microseconds, and to
// wake a sleeping thread takes as long again in a virtual machine; a processor that has other work
// to do loses no more than this to each wait.
constexpr std::chrono::microseconds kPatience{200};
constexpr int kLooks = 32;  // between two glances at the clock

// Leaves the execution units to a sibling for a moment.
static void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void Team::wait() {
  const int64_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
    for (Part& part : parts_) part.next.store(0, std::memory_order_relaxed);
    arrived_.store(0, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      phase_.store(phase + 1, std::memory_order_release);
    }
    if (size() > 1) released_.notify_all();
    return;
  }
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int look = 0; look < kLooks; ++look) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      relax();
    }
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() - start < kPatience);
  std::unique_lock<std::mutex> lock(mutex_);
  released_.wait(lock, [&] { return phase_.load(std::memory_order_acquire) != phase; });
}

#if defined(__linux__)
Places::Places(int threads) {
  CPU_ZERO(&allowed_);
  here_ = sched_getcpu();
  const bool known = here_ >= 0 && sched_getaffinity(0, sizeof allowed_, &allowed_) == 0;
  const int64_t processors = known ? CPU_COUNT(&allowed_) : 0;
  processors_ = threads <= processors ? processors : 0;  // else they have to share some
}

void Places::take(int index) const {
  if (!processors_) return;
  int left = index;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (cpu == here_ || !CPU_ISSET(cpu, &allowed_) || --left) continue;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    if (sched_setaffinity(0, sizeof own, &own)) return;
    sched_setaffinity(0, sizeof allowed_, &allowed_);
    return;
  }
}
#else
Places::Places(int) {}
void Places::take(int) const {}
#endif

}  // namespace zq
