// What the host says about its processors, read before the sentry gives up the host's files.
#pragma once

#include <string>
#include <vector>

#include "sentry/base/host_fd.h"

namespace sentry {

struct HostSnapshot {
  struct Cpu {
    int core = 0, package = 0;
    std::vector<int> siblings;  // threads of the same core, itself included
  };
  std::string cpuinfo;    // the first processor's part of /proc/cpuinfo
  std::vector<Cpu> cpus;  // by number
  // Files of the host's /proc/pressure, open for reading, in the order of kPressure; none: no
  // CONFIG_PSI.
  std::vector<base::UniqueFd> pressure;
  static constexpr const char* kPressure[] = {"cpu", "io", "memory"};
};

// Reads /proc/cpuinfo and the topology below /sys/devices/system/cpu, and opens the files of
// /proc/pressure, which change. Called once, before the
// sentry confines itself; what cannot be read stays empty and is made up from cpuid.
void TakeHostSnapshot();
// Empty members if it was not taken.
const HostSnapshot& TheHostSnapshot();

// /proc/cpuinfo of a machine with `count` processors.
std::string CpuInfoText(int count);
// Topology of processor `n`; every processor a core of its own if nothing is known.
HostSnapshot::Cpu CpuTopology(int n);

}  // namespace sentry
