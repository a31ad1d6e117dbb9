#include "sentry/base/memory_file.h"

#include <fmt/core.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <utility>

namespace base {

namespace {
UniqueFd& Directory() {
  static auto* directory = new UniqueFd;
  return *directory;
}
std::string NameOf(uint64_t number) { return fmt::format("memory-{:x}", number); }
}  // namespace

void SetMemoryDirectory(UniqueFd directory) { Directory() = std::move(directory); }
int MemoryDirectory() { return Directory().get(); }

Result<std::unique_ptr<MemoryFile>> MemoryFile::New() {
  static std::atomic<uint64_t> next{1};
  uint64_t name = 0;
  int fd;
  if (MemoryDirectory() >= 0) {
    name = next.fetch_add(1, std::memory_order_relaxed);
    fd = openat(MemoryDirectory(), NameOf(name).c_str(), kCreateFlags, 0600);
  } else {
    fd = memfd_create("file", MFD_CLOEXEC);
  }
  if (fd < 0) return LastError();
  return std::unique_ptr<MemoryFile>(new MemoryFile(MakeRef<HostFd>(fd), name));
}

MemoryFile::~MemoryFile() {
  if (name_ != 0 && !read_only_) unlinkat(MemoryDirectory(), NameOf(name_).c_str(), 0);
}

Result<Ref<HostFd>> MemoryFile::ReadOnly() {
  absl::MutexLock l(&mutex_);
  if (read_only_) return read_only_;
  int fd = name_ != 0 ? openat(MemoryDirectory(), NameOf(name_).c_str(), kReadOnlyFlags)
                      : open(fmt::format("/proc/self/fd/{}", fd_->get()).c_str(),
                             kReadOnlyFlags & ~O_NOFOLLOW);
  if (fd < 0) return LastError();
  read_only_ = MakeRef<HostFd>(fd);
  if (name_ != 0) unlinkat(MemoryDirectory(), NameOf(name_).c_str(), 0);
  return read_only_;
}

}  // namespace base
