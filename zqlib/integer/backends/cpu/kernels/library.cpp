// The C interface of the library.

#include <cstring>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "instruction_set.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

using namespace zq;

// By name; null for an unknown one, and for one that this processor lacks.
const InstructionSet* find(const char* name) {
  if (!std::strcmp(name, "portable")) return &portable;
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2");
  const bool has_vnni = has_avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
  unsigned eax = 0, ebx, ecx, edx;  // not every compiler knows a name for AVX-VNNI
  const bool has_avx_vnni =
      has_avx2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4);
  if (has_avx2 && !std::strcmp(name, "avx2")) return &avx2;
  if (has_avx_vnni && !std::strcmp(name, "avx_vnni")) return &avx_vnni;
  if (has_vnni && !std::strcmp(name, "avx512_vnni")) return &avx512_vnni;
#elif defined(__aarch64__) && defined(__linux__)
  const bool has_dot = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  if (has_dot && !std::strcmp(name, "neon_dot")) return &neon_dot;
#endif
  return nullptr;
}

}  // namespace

extern "C" {

// 0: unknown, or not on this processor.
int zq_lanes(const char* instruction_set) {
  const InstructionSet* kernels = find(instruction_set);
  return kernels ? kernels->lanes : 0;
}

int zq_panel_width(const char* instruction_set) { return find(instruction_set)->panel_width; }

int zq_depth(const char* instruction_set) { return find(instruction_set)->depth; }

int zq_offset(const char* instruction_set) { return find(instruction_set)->offset; }

int64_t zq_scratch_bytes(const char* instruction_set, const Step* step, int threads) {
  return find(instruction_set)->scratch_bytes(*step, threads);
}

// Runs the steps in order, on the calling thread and `threads - 1` others. Where the system refuses
// to start as many, those that it has started do all the work.
void zq_run(const char* instruction_set, const Step* steps, int64_t count, int threads) {
  const InstructionSet* kernels = find(instruction_set);
  std::optional<Team> team;
  const auto work = [&](int index) {
    const Worker worker{*team, index};
    for (int64_t i = 0; i < count; ++i) kernels->run(steps[i], worker);
  };
  const Places places(threads);
  std::vector<std::thread> others;
  std::mutex gate;  // closed until the size of the team is known
  std::unique_lock<std::mutex> closed(gate);
  try {
    for (int index = 1; index < threads; ++index) {
      others.emplace_back([&, index] {
        places.take(index);
        std::unique_lock<std::mutex>{gate}.unlock();
        work(index);
      });
    }
  } catch (const std::system_error&) {
  }
  team.emplace(int(others.size()) + 1);
  closed.unlock();
  work(0);
  for (auto& thread : others) thread.join();
}

}  // extern "C"
