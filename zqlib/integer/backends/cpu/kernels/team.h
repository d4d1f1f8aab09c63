// A team of threads that lives for one run of a program. All of them walk through the same steps.
// Everybody does a part of a step's tasks, the same part of every step, and then helps the others;
// nobody goes on before the last task is done.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace zq {

class Team {
 public:
  explicit Team(int size) : parts_(size) {}

  int size() const { return int(parts_.size()); }
  int64_t take(int part) { return parts_[part].next.fetch_add(1, std::memory_order_relaxed); }
  void wait();  // until the whole team has called it

 private:
  struct alignas(64) Part {  // on a cache line of its own: mostly one thread takes from it
    std::atomic<int64_t> next{0};
  };

  std::vector<Part> parts_;
  std::atomic<int> arrived_{0};
  std::atomic<int64_t> phase_{0};
  std::mutex mutex_;
  std::condition_variable released_;
};

// Processors for the threads of a team beside the calling one. The scheduler may let a new thread
// begin on the processor that started it, and take longer than a run to find it a free one.
class Places {
 public:
  explicit Places(int threads);
  void take(int index) const;  // by thread `index`, 1 or more: goes there, and may leave again

 private:
#if defined(__linux__)
  cpu_set_t allowed_;
  int64_t processors_ = 0;
  int here_ = 0;
#endif
};

// One thread's view of its team.
struct Worker {
  Team& team;
  int index;

  template <class Body>
  void share(int64_t tasks, Body body) const {
    const int size = team.size();
    for (int i = 0; i < size; ++i) {
      const int part = (index + i) % size;
      const int64_t begin = tasks * part / size, end = tasks * (part + 1) / size;
      for (int64_t task; (task = begin + team.take(part)) < end;) body(task);
    }
    team.wait();
  }

  // The same for rows that are so little work each that a task takes several.
  template <class Body>
  void share_rows(int64_t rows, Body body) const {
    constexpr int64_t group = 16;
    share((rows + group - 1) / group, [&](int64_t task) {
      const int64_t begin = task * group, end = begin + group < rows ? begin + group : rows;
      for (int64_t row = begin; row < end; ++row) body(row);
    });
  }
};

}  // namespace zq
