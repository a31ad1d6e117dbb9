// Loads programs: ELF files and `#!` scripts, with the checks and the initial stack of Linux's
// fs/exec.c, fs/binfmt_script.c and fs/binfmt_elf.c.
//
// An exec is: OpenExecutable, copy in the arguments (ExecArgs), PrepareExec (everything that can
// fail while the old program still runs), then MemoryManager::New and LoadExec into it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "sentry/base/result.h"
#include "sentry/base/user_memory.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/vfs/vfs.h"

namespace sentry::loader {

inline constexpr size_t kMaxArgStrlen = 131072;  // MAX_ARG_STRLEN, with the NUL

// Arguments and environment of an exec, bounded as Linux's bprm_stack_limits and copy_strings do.
class ExecArgs {
 public:
  // `stack_limit`: RLIMIT_STACK of the caller.
  explicit ExecArgs(uint64_t stack_limit);
  // Copies in the NULL-terminated arrays (a null array is empty). EFAULT, E2BIG.
  base::Status CopyIn(base::UserMemory& memory, uint64_t argv, uint64_t envp);
  // The same from sentry memory (the container's first process). E2BIG.
  base::Status Set(std::vector<std::string> argv, std::vector<std::string> envp);

  std::vector<std::string> argv, envp;

  // Checks `argv`, `envp` and the name of the executable against the limit: E2BIG.
  base::Status Check(std::string_view filename) const;

 private:
  uint64_t limit_;
};

// A program that is open for execution: writers get ETXTBSY until it is closed.
class Executable {
 public:
  Executable() = default;
  explicit Executable(base::Ref<FileDescription> file);  // has denied writing
  Executable(Executable&&) noexcept = default;
  Executable& operator=(Executable&&) noexcept;
  ~Executable();
  const base::Ref<FileDescription>& file() const { return file_; }
  explicit operator bool() const { return static_cast<bool>(file_); }

 private:
  base::Ref<FileDescription> file_;
};

// Opens `path` to execute it (Linux: do_open_execat): ENOENT, EACCES (no regular file, no x, a
// noexec mount), ELOOP, ETXTBSY. With `flags`.allow_empty and an empty path: what ctx.start names.
base::Result<Executable> OpenExecutable(Vfs& vfs, const WalkContext& ctx, std::string_view path,
                                        WalkFlags flags = {});

// What PrepareExec has found out.
struct ExecImage {
  Executable file;                      // the ELF file: for a script, its interpreter
  Executable interpreter;               // of PT_INTERP, or none
  InodeAttr attr;                       // of `file`: set-user-ID and set-group-ID bits, owner
  std::vector<std::string> argv, envp;  // as the program gets them
  std::string filename;                 // AT_EXECFN and comm: the path that was asked for
  std::string comm;                     // at most 15 bytes
  struct Elf;
  std::shared_ptr<const Elf> elf;  // checked headers
};

// Reads and checks the program, follows `#!` (at most five times) and opens the interpreter.
// `filename` is the path as given, or "/dev/fd/N[/path]" for execveat of a descriptor, which is
// `path_inaccessible` to a script's interpreter if the descriptor is close-on-exec. Errors as
// Linux: ENOEXEC, ENOENT, ELOOP, EACCES, E2BIG, EINVAL, ELIBBAD, EIO, ETXTBSY.
base::Result<ExecImage> PrepareExec(Vfs& vfs, const WalkContext& ctx, Executable file,
                                    std::string filename, ExecArgs args,
                                    bool path_inaccessible = false);

// What the auxiliary vector says of the new program's identity, in its user namespace.
struct ExecIdentity {
  uid_t uid = 0, euid = 0;
  gid_t gid = 0, egid = 0;
  bool secure = false;
};

// Whether LoadExec leaves everything to orders. Else it has them run, and then writes to the
// address space itself.
bool FitsOrders(const ExecImage& image);

struct LoadArgs {
  ExecImage& image;
  ExecIdentity identity;
  uint32_t personality = 0;
  MemoryManager& mm;  // fresh
  // Of the new main context: RunOrders is called once, or QueueOrders if it may (with no
  // on_failure).
  OrderRunner& runner;
};

// Registers of the new program; all others are zero.
struct LoadResult {
  uint64_t rip = 0, rsp = 0;
};

// Maps the program and builds its stack; fills the MemoryManager's layout and executable. Errors
// are those after which Linux, being past the point of no return, kills the process with SIGSEGV;
// the caller may do so, or go on with the old program.
base::Result<LoadResult> LoadExec(const LoadArgs& args);

}  // namespace sentry::loader
