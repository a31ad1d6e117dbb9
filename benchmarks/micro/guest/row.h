// How the rows of the micro suite are written: static functions over a benchmark::State, registered
// under the name that benchmarks/targets.toml gives them.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdlib>
#include <string>

// A row timed by the wall clock around its loop; `fn` is a void(benchmark::State&).
#define ROW(name, fn) BENCHMARK(fn)->Name(name)->UseRealTime()
// A row whose iterations time themselves with SetIterationTime.
#define ROW_MANUAL(name, fn) BENCHMARK(fn)->Name(name)->UseManualTime()

namespace micro {

// Ends the row as failed, with errno's name; what the system does not have yet (ENOSYS, no such
// address family) is told apart as "unsupported".
void Fail(benchmark::State& state, const char* what);

// A scratch directory of this row's on the root file system or (memory) on a tmpfs; removed with
// all that is in it.
class Scratch {
 public:
  explicit Scratch(bool memory = false);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::string Path(const std::string& name) const { return dir_ + "/" + name; }

 private:
  std::string dir_;
};

// A file of `size` bytes, written and read once, so that it is cached; the descriptor, or -1.
int CachedFile(const std::string& path, size_t size);

// Nanoseconds of CLOCK_MONOTONIC.
double NowNs();

// How many CPUs this thread may run on; at least 1.
int CpuCount();

}  // namespace micro
