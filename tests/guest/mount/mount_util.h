// What the tests of mounts share.
#pragma once

#include <sched.h>
#include <sys/mount.h>

#include <functional>
#include <sstream>
#include <string>

#include "guest_util.h"

// Runs `body` in a child with mounts of its own, on a fresh tmpfs that is private; the current
// directory is in it.
inline int WithMounts(const std::function<void()>& body) {
  return ExitStatus([&] {
    if (unshare(CLONE_NEWNS) != 0) return 99;
    if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return 98;
    if (mount("root", "/tmp", "tmpfs", 0, nullptr) != 0) return 97;
    if (chdir("/tmp") != 0) return 96;
    for (const char* d : {"a", "b", "c"}) mkdir(d, 0755);
    body();
    return ::testing::Test::HasFailure() ? 1 : 0;
  });
}

// The last line of mountinfo for /tmp/`name`; empty: it is not mounted.
inline std::string MountLine(const std::string& name) {
  std::istringstream lines(ReadFile("/proc/self/mountinfo"));
  std::string line, found;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string where;
    for (int i = 0; i < 5; ++i) words >> where;
    if (where == "/tmp/" + name) found = line;
  }
  return found;
}

// Its optional fields; "none": it is not mounted.
inline std::string Fields(const std::string& name) {
  const std::string line = MountLine(name);
  if (line.empty()) return "none";
  std::istringstream words(line);
  std::string word, found;
  for (int i = 0; i < 6; ++i) words >> word;
  while (words >> word && word != "-") found += (found.empty() ? "" : " ") + word;
  return found;
}
inline std::string Part(const std::string& name, const std::string& key) {
  std::istringstream words(Fields(name));
  std::string word;
  while (words >> word) {
    if (word.rfind(key, 0) == 0) return word.substr(key.size());
  }
  return "";
}
inline bool Mounted(const std::string& name) { return Fields(name) != "none"; }
// The options of the mount alone.
inline std::string OptionsOf(const std::string& name) {
  std::istringstream words(MountLine(name));
  std::string word;
  for (int i = 0; i < 6; ++i) words >> word;
  return word;
}

inline int Tmpfs(const std::string& where) {
  return mount("none", where.c_str(), "tmpfs", 0, nullptr);
}
inline int Type(const char* where, unsigned long type) {
  return mount(nullptr, where, nullptr, type, nullptr);
}
inline int Bind(const char* from, const char* to, unsigned long more = 0) {
  return mount(from, to, nullptr, MS_BIND | more, nullptr);
}
inline void Mkdirs(std::initializer_list<const char*> names) {
  for (const char* name : names) EXPECT_OK(mkdir(name, 0755));
}
