// The host calls of the confined gofer.
#include <fcntl.h>
#include <linux/futex.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>

#include "gofer/confine.h"

namespace gofer {
namespace {

struct Rule {
  int call;
  std::vector<scmp_arg_cmp> args;
};

scmp_arg_cmp Equal(unsigned arg, uint64_t value) { return {arg, SCMP_CMP_EQ, value, 0}; }
// Descriptors and flags are 32 bits; the kernel ignores the upper half of the register.
scmp_arg_cmp Fd(unsigned arg, int fd) {
  return {arg, SCMP_CMP_MASKED_EQ, 0xffffffff, static_cast<uint32_t>(fd)};
}
// None but `allowed` bits of the 32-bit argument.
scmp_arg_cmp Within(unsigned arg, uint32_t allowed) {
  return {arg, SCMP_CMP_MASKED_EQ, 0xffffffffu & ~allowed, 0};
}
scmp_arg_cmp Masked(unsigned arg, uint32_t mask, uint32_t value) {
  return {arg, SCMP_CMP_MASKED_EQ, mask, value};
}
// Not the working directory (/proc/self/fd): a descriptor of ours. AT_FDCWD is negative.
scmp_arg_cmp NotCwd(unsigned arg) { return Masked(arg, 0x80000000u, 0); }

constexpr uint32_t kOpenBase = O_CLOEXEC | O_NONBLOCK | O_NOCTTY | O_LARGEFILE;

void FileRules(const FilterFds& fds, std::vector<Rule>* rules) {
  const auto add = [rules](int call, std::vector<scmp_arg_cmp> args) {
    rules->push_back({call, std::move(args)});
  };
  // Walk: one step. Its flags are in memory, where a filter cannot see them; that it stays below
  // the mount is the mount's own doing (confine.cc).
  add(SYS_openat2, {NotCwd(0)});
  // Open the inode of a handle for data.
  add(SYS_openat, {Fd(0, fds.proc), Within(2, O_ACCMODE | O_TRUNC | O_DIRECTORY | kOpenBase)});
  // Create: a handle for the file just made.
  add(SYS_openat, {Fd(0, fds.proc), Within(2, O_PATH | O_CLOEXEC)});
  // Create: nothing but a new file, and no link followed.
  add(SYS_openat, {NotCwd(0), Masked(2, 0xffffffffu & ~(O_ACCMODE | kOpenBase),
                                     O_CREAT | O_EXCL | O_NOFOLLOW)});
  // Tmpfile: a file without a name.
  add(SYS_openat, {NotCwd(0), Masked(2, 0xffffffffu & ~(O_ACCMODE | kOpenBase), O_TMPFILE)});
  add(SYS_close, {});  // Forget, and what was opened for one request
  // Attributes, of a handle or of a name without following it.
  add(SYS_statx, {NotCwd(0), Masked(2, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_NOFOLLOW)});
  add(SYS_fstatfs, {});                                       // statfs
  add(SYS_readlinkat, {NotCwd(0)});                           // link targets
  add(SYS_getdents64, {});                                    // directory listings
  add(SYS_lseek, {Equal(2, SEEK_SET)});                       // to a listing's cursor
  add(SYS_mkdirat, {NotCwd(0)});                              // mkdir
  add(SYS_mknodat, {NotCwd(0), Masked(2, S_IFMT, S_IFREG)});  // mknod, of what is no device
  add(SYS_mknodat, {NotCwd(0), Masked(2, S_IFMT, S_IFIFO)});
  add(SYS_mknodat, {NotCwd(0), Masked(2, S_IFMT, S_IFSOCK)});
  add(SYS_symlinkat, {NotCwd(1)});  // symlink
  add(SYS_linkat, {Fd(0, fds.proc), NotCwd(2), Masked(4, 0xffffffff, AT_SYMLINK_FOLLOW)});  // link
  add(SYS_unlinkat, {NotCwd(0), Within(2, AT_REMOVEDIR)});   // unlink, rmdir
  add(SYS_renameat2, {NotCwd(0), NotCwd(2), Within(4, 3)});  // rename; RENAME_NOREPLACE, _EXCHANGE
  add(SYS_fchownat, {NotCwd(0), Masked(4, 0xffffffff, AT_EMPTY_PATH)});   // owner of a handle
  add(SYS_fchmodat, {Fd(0, fds.proc)});                                   // permissions of a handle
  add(SYS_utimensat, {NotCwd(0), Masked(3, 0xffffffff, AT_EMPTY_PATH)});  // times of a handle
  add(SYS_ftruncate, {});                                                 // size
  add(SYS_fsync, {});                                                     // fsync
  add(SYS_syncfs, {});                                                    // sync
  add(SYS_getxattr, {});  // extended attributes of a handle: through the working directory,
  add(SYS_setxattr, {});  // which is /proc/self/fd, as there are no calls on descriptors of O_PATH
  add(SYS_listxattr, {});
  add(SYS_removexattr, {});
  if (fds.connect) {
    add(SYS_socket, {Equal(0, AF_UNIX), Equal(2, 0)});  // Connect, where a mount allows it
    add(SYS_connect, {});
  }
}

void ProcessRules(const FilterFds& fds, std::vector<Rule>* rules) {
  const auto add = [rules](int call, std::vector<scmp_arg_cmp> args) {
    rules->push_back({call, std::move(args)});
  };
  add(SYS_recvmsg, {Fd(0, fds.connection)});                // requests
  add(SYS_sendmsg, {Fd(0, fds.connection)});                // replies
  add(SYS_shutdown, {Fd(0, fds.connection)});               // a thread that ends tells the others
  add(SYS_write, {Fd(0, fds.log)});                         // the log
  add(SYS_futex, {Masked(1, FUTEX_CMD_MASK, FUTEX_WAIT)});  // mutexes, joining threads
  add(SYS_futex, {Masked(1, FUTEX_CMD_MASK, FUTEX_WAKE)});
  add(SYS_futex, {Masked(1, FUTEX_CMD_MASK, FUTEX_WAIT_BITSET)});
  // malloc: anonymous memory, never executable.
  add(SYS_mmap, {Within(2, PROT_READ | PROT_WRITE), Masked(3, MAP_ANONYMOUS, MAP_ANONYMOUS)});
  add(SYS_mprotect, {Within(2, PROT_READ | PROT_WRITE)});
  add(SYS_munmap, {});
  add(SYS_brk, {});
  add(SYS_madvise, {Equal(2, MADV_DONTNEED)});  // malloc trims; a thread's stack when it ends
  add(SYS_sched_yield, {});                     // std::latch
  add(SYS_rt_sigprocmask, {});                  // a thread that ends
  add(SYS_exit, {});                            // a thread ends
  add(SYS_exit_group, {});                      // the process ends
}

std::vector<Rule> Rules(const FilterFds& fds) {
  std::vector<Rule> rules;
  FileRules(fds, &rules);
  ProcessRules(fds, &rules);
  return rules;
}

}  // namespace

base::Status InstallFilter(const FilterFds& fds, const char** step) {
  *step = "install the seccomp filter";
  const std::unique_ptr<void, void (*)(scmp_filter_ctx)> filter(
      seccomp_init(SCMP_ACT_KILL_PROCESS), [](scmp_filter_ctx c) { seccomp_release(c); });
  if (filter == nullptr) return base::Error(ENOMEM);
  const auto check = [](int rc) {
    return rc == 0 ? base::Status() : base::Status(base::Error(-rc));
  };
  TRY(check(seccomp_attr_set(filter.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS)));
  TRY(check(seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_TSYNC, 1)));
  TRY(check(seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2)));
  for (const Rule& rule : Rules(fds)) {
    TRY(check(seccomp_rule_add_array(filter.get(), SCMP_ACT_ALLOW, rule.call,
                                     static_cast<unsigned>(rule.args.size()), rule.args.data())));
  }
  return check(seccomp_load(filter.get()));
}

std::vector<std::string> FilterCalls(const FilterFds& fds) {
  std::vector<std::string> names;
  for (const Rule& rule : Rules(fds)) {
    char* name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, rule.call);
    if (name != nullptr && (names.empty() || names.back() != name)) names.emplace_back(name);
    free(name);
  }
  return names;
}

}  // namespace gofer
