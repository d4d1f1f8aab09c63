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
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    next_.store(0, std::memory_order_relaxed);
    arrived_.store(0, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      phase_.store(phase + 1, std::memory_order_release);
    }
    if (size_ > 1) released_.notify_all();
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

}  // namespace zq
