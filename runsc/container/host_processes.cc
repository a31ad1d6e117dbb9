#include "runsc/container/host_processes.h"

#include <dirent.h>

#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>

#include "runsc/container/state.h"

namespace runsc {

bool ReadHostProcess(pid_t pid, HostProcess* p) {
  auto text = ReadFile("/proc/" + std::to_string(pid) + "/stat", 4096);
  if (!text.ok()) return false;
  // The command in parentheses may hold anything; the fields follow the last one.
  size_t at = text->rfind(')');
  p->pid = pid;
  return at != std::string::npos &&
         sscanf(text->c_str() + at + 1, " %c %d", &p->state, &p->parent) == 2;
}

std::vector<HostProcess> Descendants(pid_t root) {
  std::vector<HostProcess> all, found;
  if (DIR* proc = opendir("/proc")) {
    while (dirent* entry = readdir(proc)) {
      HostProcess p;
      pid_t pid = atoi(entry->d_name);
      if (pid > 0 && ReadHostProcess(pid, &p) && p.state != 'Z' && p.state != 'X') all.push_back(p);
    }
    closedir(proc);
  }
  std::set<pid_t> family = {root};
  for (bool grown = true; grown;) {
    grown = false;
    for (const HostProcess& p : all) {
      if (family.count(p.pid) != 0 || family.count(p.parent) == 0) continue;
      family.insert(p.pid);
      found.push_back(p);
      grown = true;
    }
  }
  return found;
}

bool ReadInnerPid(HostProcess* p) {
  auto text = ReadFile("/proc/" + std::to_string(p->pid) + "/status", 65536);
  if (!text.ok()) return false;
  // "NSpid:\t<here>\t...\t<innermost>"
  size_t at = text->find("\nNSpid:");
  if (at == std::string::npos) return false;
  size_t end = text->find('\n', at + 1);
  size_t last = text->rfind('\t', end);
  if (last == std::string::npos || last < at) return false;
  p->inner_pid = atoi(text->c_str() + last + 1);
  return true;
}

}  // namespace runsc
