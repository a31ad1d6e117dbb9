#include "sentry/fs/proc/host_snapshot.h"
#include "sentry/base/host_io.h"

#include <cpuid.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace sentry {
namespace {

constexpr int kMaxCpus = 256;

HostSnapshot& Snapshot() {
  static HostSnapshot* snapshot = new HostSnapshot;
  return *snapshot;
}

std::string ReadSome(const char* path, size_t limit) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return "";
  std::string text(limit, '\0');
  size_t n = 0;
  while (n < limit) {
    ssize_t got = base::HostRead(fd, text.data() + n, limit - n);
    if (got <= 0) break;
    n += static_cast<size_t>(got);
  }
  close(fd);
  text.resize(n);
  return text;
}

// "0-3,8" to numbers.
std::vector<int> ParseList(std::string_view text) {
  std::vector<int> out;
  const char* p = text.data();
  const char* end = p + text.size();
  while (p < end && *p >= '0' && *p <= '9' && out.size() < kMaxCpus) {
    char* next;
    long first = strtol(p, &next, 10);
    long last = first;
    if (next < end && *next == '-') last = strtol(next + 1, &next, 10);
    for (long i = first; i <= last && out.size() < kMaxCpus; ++i)
      out.push_back(static_cast<int>(i));
    p = next < end && *next == ',' ? next + 1 : end;
  }
  return out;
}

int ReadNumber(const std::string& path) {
  std::string text = ReadSome(path.c_str(), 32);
  return text.empty() ? 0 : atoi(text.c_str());
}

// Without a snapshot: the little that the instruction tells without tables of names.
std::string CpuInfoFromCpuid() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  char vendor[13] = {};
  __get_cpuid(0, &a, &b, &c, &d);
  memcpy(vendor, &b, 4);
  memcpy(vendor + 4, &d, 4);
  memcpy(vendor + 8, &c, 4);
  char model[49] = {};
  for (unsigned leaf = 0; leaf < 3; ++leaf) {
    unsigned r[4] = {};
    if (!__get_cpuid(0x80000002 + leaf, &r[0], &r[1], &r[2], &r[3])) break;
    memcpy(model + leaf * 16, r, 16);
  }
  __get_cpuid(1, &a, &b, &c, &d);
  unsigned family = a >> 8 & 0xf;
  if (family == 0xf) family += a >> 20 & 0xff;
  unsigned number = (a >> 4 & 0xf) | (a >> 12 & 0xf0);
  char text[512];
  snprintf(text, sizeof(text),
           "processor\t: 0\nvendor_id\t: %s\ncpu family\t: %u\nmodel\t\t: %u\nmodel name\t: %s\n"
           "stepping\t: %u\nphysical id\t: 0\nsiblings\t: 1\ncore id\t\t: 0\ncpu cores\t: 1\n"
           "apicid\t\t: 0\ninitial apicid\t: 0\nfpu\t\t: yes\nfpu_exception\t: yes\n"
           "cpuid level\t: %u\nwp\t\t: yes\nclflush size\t: %u\n",
           vendor, family, number, model, a & 0xf,
           static_cast<unsigned>(__get_cpuid_max(0, nullptr)), (b >> 8 & 0xff) * 8);
  return text;
}

}  // namespace

void TakeHostSnapshot() {
  HostSnapshot& s = Snapshot();
  // The file is made as it is read: one buffer holds the first processor's part.
  std::string text = ReadSome("/proc/cpuinfo", 16 * 1024);
  size_t end = text.find("\n\n");
  if (end != std::string::npos) s.cpuinfo = text.substr(0, end + 1);
  for (const char* name : HostSnapshot::kPressure) {
    base::UniqueFd fd(open((std::string("/proc/pressure/") + name).c_str(), O_RDONLY | O_CLOEXEC));
    // Booted without psi=1, it can be opened but not read.
    char byte;
    if (!fd.valid() || base::HostReadAt(fd.get(), &byte, 1, 0) != 1) break;
    s.pressure.push_back(std::move(fd));
  }
  const std::string base = "/sys/devices/system/cpu/";
  for (int cpu : ParseList(ReadSome((base + "online").c_str(), 4096))) {
    if (cpu >= kMaxCpus) break;
    if (s.cpus.size() <= static_cast<size_t>(cpu)) s.cpus.resize(static_cast<size_t>(cpu) + 1);
    std::string dir = base + "cpu" + std::to_string(cpu) + "/topology/";
    HostSnapshot::Cpu& c = s.cpus[static_cast<size_t>(cpu)];
    c.core = ReadNumber(dir + "core_id");
    c.package = ReadNumber(dir + "physical_package_id");
    c.siblings = ParseList(ReadSome((dir + "thread_siblings_list").c_str(), 256));
  }
}

const HostSnapshot& TheHostSnapshot() { return Snapshot(); }

HostSnapshot::Cpu CpuTopology(int n) {
  const HostSnapshot& s = Snapshot();
  if (static_cast<size_t>(n) < s.cpus.size()) {
    HostSnapshot::Cpu c = s.cpus[static_cast<size_t>(n)];
    if (c.siblings.empty()) c.siblings = {n};
    return c;
  }
  HostSnapshot::Cpu c;
  c.core = n;
  c.siblings = {n};
  return c;
}

std::string CpuInfoText(int count) {
  const HostSnapshot& s = Snapshot();
  std::string first = s.cpuinfo.empty() ? CpuInfoFromCpuid() : s.cpuinfo;
  std::string out;
  for (int cpu = 0; cpu < count; ++cpu) {
    HostSnapshot::Cpu topology = CpuTopology(cpu);
    int siblings = 0;
    std::vector<int> cores;
    for (int other = 0; other < count; ++other) {
      HostSnapshot::Cpu o = CpuTopology(other);
      if (o.package != topology.package) continue;
      ++siblings;
      if (std::find(cores.begin(), cores.end(), o.core) == cores.end()) cores.push_back(o.core);
    }
    // The lines of the first processor, with the numbers of this one.
    for (size_t at = 0; at < first.size();) {
      size_t end = first.find('\n', at);
      if (end == std::string::npos) end = first.size();
      std::string_view line = std::string_view(first).substr(at, end - at);
      at = end + 1;
      auto number = [&](std::string_view key, int value) {
        if (!line.starts_with(key)) return false;
        char next = line.size() > key.size() ? line[key.size()] : '\t';
        if (next != '\t' && next != ':' && next != ' ') return false;
        out += std::string(line.substr(0, line.find(':'))) + ": " + std::to_string(value) + "\n";
        return true;
      };
      if (number("processor", cpu) || number("physical id", topology.package) ||
          number("siblings", siblings) || number("core id", topology.core) ||
          number("cpu cores", static_cast<int>(cores.size())) || number("apicid", cpu) ||
          number("initial apicid", cpu)) {
        continue;
      }
      out += line;
      out += '\n';
    }
    out += '\n';
  }
  return out;
}

}  // namespace sentry
