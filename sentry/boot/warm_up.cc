#include "sentry/boot/warm_up.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string_view>

#include "absl/base/internal/sysinfo.h"
#include "absl/time/clock.h"
#include "sentry/base/host_fd.h"

namespace sentry {
namespace {

// A contended absl::Mutex looks about once a second of the time stamp counter whether its thread's
// priority has changed. To know what a second is it reads a file that hardly any kernel has, and
// without it measures: for 3 to 250 ms, the longer the busier the machine. It is shown a file; the
// mount goes with the old root.
constexpr char kCpuDirectory[] = "/sys/devices/system/cpu";
constexpr char kCpu0Directory[] = "/sys/devices/system/cpu/cpu0";
constexpr char kFrequencyFile[] = "/sys/devices/system/cpu/cpu0/tsc_freq_khz";
constexpr std::string_view kFrequencyKhz = "2000000\n";

void LearnFrequency() {
  bool mounted = access(kFrequencyFile, R_OK) != 0 &&
                 mount("none", kCpuDirectory, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
                       "size=4k,nr_inodes=4") == 0;
  if (mounted && mkdir(kCpu0Directory, 0755) == 0) {
    base::UniqueFd file(open(kFrequencyFile, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    [[maybe_unused]] ssize_t n = write(file.get(), kFrequencyKhz.data(), kFrequencyKhz.size());
  }
  absl::base_internal::NominalCPUFrequency();
}

}  // namespace

void LearnPriority() {
  int policy;
  sched_param param;
  pthread_getschedparam(pthread_self(), &policy, &param);
}

void WarmUpLibraries() {
  absl::base_internal::NumCPUs();
  LearnFrequency();
  absl::Now();
}

}  // namespace sentry
