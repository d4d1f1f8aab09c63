// Answers for a library of kernels that runs under an emulator. The memory of the steps is a file
// shared with the test, and lies where the pointers in it say.
//
// Arguments: the file, its address and its size. A question is a line: what, the instruction set, an
// address, a count, threads.

#include <fcntl.h>
#include <sys/mman.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <string>

extern "C" {
int zq_lanes(const char*);
int zq_panel_width(const char*);
int zq_depth(const char*);
int zq_offset(const char*);
int64_t zq_scratch_bytes(const char*, const void*, int);
void zq_run(const char*, const void*, int64_t, int);
}

int main(int, char** arguments) {
  void* at = reinterpret_cast<void*>(std::strtoull(arguments[2], nullptr, 10));
  const size_t size = std::strtoull(arguments[3], nullptr, 10);
  const int file = open(arguments[1], O_RDWR);
  if (mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) != at) return 1;
  char what[32], set[32];
  uintptr_t address;
  int64_t count;
  int threads;
  while (std::scanf("%31s %31s %" SCNuPTR " %" SCNd64 " %d", what, set, &address, &count, &threads) ==
         5) {
    const std::string question = what;
    const void* steps = reinterpret_cast<const void*>(address);
    int64_t answer = 0;
    if (question == "lanes") answer = zq_lanes(set);
    if (question == "panel_width") answer = zq_panel_width(set);
    if (question == "depth") answer = zq_depth(set);
    if (question == "offset") answer = zq_offset(set);
    if (question == "scratch_bytes") answer = zq_scratch_bytes(set, steps, threads);
    if (question == "run") zq_run(set, steps, count, threads);
    std::printf("%" PRId64 "\n", answer);
    std::fflush(stdout);
  }
}
