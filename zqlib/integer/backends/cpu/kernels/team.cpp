#include "team.h"

namespace zq {

// A step takes tens of microseconds: worth a moment of spinning, but no more, because the processor
// may have other work to do.
constexpr int kSpins = 2000;

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
  for (int spin = 0; spin < kSpins; ++spin) {
    if (phase_.load(std::memory_order_acquire) != phase) return;
  }
  std::unique_lock<std::mutex> lock(mutex_);
  released_.wait(lock, [&] { return phase_.load(std::memory_order_acquire) != phase; });
}

}  // namespace zq
