// The guest program of the micro suite. It is started once in each runtime and told by lines on
// standard input which row to run, so that the runtimes can be measured in turn, row by row.
//
//   guest_micro [--benchmark_min_time=SECONDS]    then per line: NAME
//   guest_micro --list                            the names of all rows
//
// It answers each name with one line: "row NAME ok NANOSECONDS ITERATIONS" or
// "row NAME unsupported|failed WHY".
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>

#include "benchmarks/micro/guest/row.h"

namespace micro {

namespace {

// Remembers the last run; prints nothing.
class LastRun : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& r : runs) run = r;
    seen = true;
  }
  Run run;
  bool seen = false;
};

void RunRow(const std::string& name) {
  LastRun reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter,
                                    "^" + name + "/(iterations:[0-9]+/)?(real_time|manual_time)$");
  const char* n = name.c_str();
  if (!reporter.seen) {
    printf("row %s failed no such row\n", n);
  } else if (reporter.run.error_occurred) {
    printf("row %s %s\n", n, reporter.run.error_message.c_str());
  } else {
    double unit = benchmark::GetTimeUnitMultiplier(reporter.run.time_unit) / 1e9;
    printf("row %s ok %.3f %lld\n", n, reporter.run.GetAdjustedRealTime() / unit,
           static_cast<long long>(reporter.run.iterations));
  }
  fflush(stdout);
}

int RemoveEntry(const char* path, const struct stat*, int, struct FTW*) { return remove(path); }

}  // namespace

void Fail(benchmark::State& state, const char* what) {
  bool missing = errno == ENOSYS || errno == EAFNOSUPPORT;
  state.SkipWithError(
      (std::string(missing ? "unsupported " : "failed ") + what + ": " + strerrorname_np(errno))
          .c_str());
}

Scratch::Scratch(bool memory) {
  char path[64];
  strcpy(path, memory ? "/dev/shm/row.XXXXXX" : "/scratch/row.XXXXXX");
  if (!mkdtemp(path)) {
    perror("mkdtemp");
    exit(1);
  }
  dir_ = path;
}

Scratch::~Scratch() { nftw(dir_.c_str(), RemoveEntry, 16, FTW_DEPTH | FTW_PHYS); }

int CachedFile(const std::string& path, size_t size) {
  int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (fd < 0) return -1;
  std::string block(64 << 10, 'x');
  for (size_t done = 0; done < size;) {
    ssize_t n = write(fd, block.data(), std::min(block.size(), size - done));
    if (n <= 0) return -1;
    done += n;
  }
  lseek(fd, 0, SEEK_SET);
  while (read(fd, block.data(), block.size()) > 0) {
  }
  lseek(fd, 0, SEEK_SET);
  return fd;
}

double NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_nsec);
}

int CpuCount() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace micro

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], "--list") == 0) {
    char list[] = "--benchmark_list_tests=true";
    char* args[] = {argv[0], list, nullptr};
    int count = 2;
    benchmark::Initialize(&count, args);
    benchmark::RunSpecifiedBenchmarks();
    return 0;
  }
  benchmark::Initialize(&argc, argv);
  mkdir("/scratch", 0777);
  printf("ready\n");
  fflush(stdout);
  std::string line;
  while (std::getline(std::cin, line)) micro::RunRow(line);
  return 0;
}
