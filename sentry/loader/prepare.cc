// What an exec checks before the old program is given up: fs/exec.c, fs/binfmt_script.c and the
// first half of load_elf_binary.
#include <array>
#include <cstring>
#include <optional>

#include "sentry/loader/elf_file.h"
#include "sentry/loader/loader.h"
#include "sentry/vfs/inode.h"

namespace sentry::loader {

namespace {

constexpr size_t kBufferSize = 256;  // BINPRM_BUF_SIZE
constexpr int kMaxScriptDepth = 5;
constexpr size_t kCommLength = 15;
using Buffer = std::array<char, kBufferSize>;

struct Script {
  std::string interpreter;
  std::optional<std::string> argument;
};

bool IsSpaceTab(char c) { return c == ' ' || c == '\t'; }
bool IsTerminator(char c) { return IsSpaceTab(c) || c == '\0'; }

// The `#!` line in `buffer`, which is padded with NULs (Linux: load_script). ENOEXEC.
base::Result<Script> ParseScript(const Buffer& buffer) {
  const std::string_view all(buffer.data(), buffer.size());
  std::string_view line = all.substr(2);
  const size_t nul = line.find('\0');
  const size_t newline = line.substr(0, nul).find('\n');
  if (newline != std::string_view::npos) {
    line = line.substr(0, newline);
  } else {
    // The last byte of Linux's buffer never counts. Without a terminator after the interpreter's
    // name that name may have been cut.
    line.remove_suffix(1);
    const size_t name = line.find_first_not_of(" \t");
    if (name == std::string_view::npos) return base::Error(ENOEXEC);
    size_t end = name;
    while (end < all.size() - 2 && !IsTerminator(all[2 + end])) ++end;
    if (end == all.size() - 2) return base::Error(ENOEXEC);
    if (nul != std::string_view::npos) line = line.substr(0, nul);
  }
  while (!line.empty() && IsSpaceTab(line.back())) line.remove_suffix(1);
  while (!line.empty() && IsSpaceTab(line.front())) line.remove_prefix(1);
  if (line.empty()) return base::Error(ENOEXEC);
  size_t end = 0;
  while (end < line.size() && !IsSpaceTab(line[end])) ++end;
  Script script{.interpreter = std::string(line.substr(0, end)), .argument = {}};
  while (end < line.size() && IsSpaceTab(line[end])) ++end;
  if (end < line.size()) script.argument = std::string(line.substr(end));
  return script;
}

// The name of PT_INTERP's interpreter.
base::Result<std::string> ReadInterpreterName(const HeadReader& file, const Elf64_Phdr& segment) {
  if (segment.p_filesz > kPathMax || segment.p_filesz < 2) return base::Error(ENOEXEC);
  std::string name(segment.p_filesz, '\0');
  TRY(file.ReadAll(segment.p_offset, std::as_writable_bytes(std::span(name))));
  if (name.back() != '\0') return base::Error(ENOEXEC);
  name.resize(strlen(name.c_str()));
  return name;
}

base::Status PrepareElf(Vfs& vfs, const WalkContext& ctx, const HeadReader& file,
                        const Buffer& buffer, ExecImage* image) {
  Elf64_Ehdr header;
  static_assert(sizeof(header) <= kBufferSize);
  memcpy(&header, buffer.data(), sizeof(header));
  auto elf = std::make_shared<ExecImage::Elf>();
  elf->program = TRY(ReadElf(file, header, ENOEXEC));
  for (const Elf64_Phdr& segment : elf->program.segments) {
    if (segment.p_type != PT_INTERP) continue;
    const std::string name = TRY(ReadInterpreterName(file, segment));
    image->interpreter = TRY(OpenExecutable(vfs, ctx, name));
    const HeadReader interpreter(*image->interpreter.file());
    Elf64_Ehdr interpreter_header;
    TRY(interpreter.ReadAll(0, std::as_writable_bytes(std::span(&interpreter_header, 1))));
    elf->interpreter = TRY(ReadElf(interpreter, interpreter_header, ELIBBAD));
    break;
  }
  for (const Elf64_Phdr& segment : elf->program.segments) {
    if (segment.p_type == PT_GNU_STACK) elf->exec_stack = (segment.p_flags & PF_X) != 0;
  }
  image->elf = std::move(elf);
  return base::Ok();
}

}  // namespace

Executable::Executable(base::Ref<FileDescription> file) : file_(std::move(file)) {}

Executable& Executable::operator=(Executable&& other) noexcept {
  std::swap(file_, other.file_);
  return *this;
}

Executable::~Executable() {
  if (file_ && file_->inode() != nullptr) file_->inode()->AllowWriteAccess();
}

base::Result<Executable> OpenExecutable(Vfs& vfs, const WalkContext& ctx, std::string_view path,
                                        WalkFlags flags) {
  base::Ref<FileDescription> file = TRY(vfs.OpenExec(ctx, path, flags));
  Inode* opened = file->inode();
  if (opened != nullptr) TRY(opened->DenyWriteAccess());
  return Executable(std::move(file));
}

base::Result<ExecImage> PrepareExec(Vfs& vfs, const WalkContext& ctx, Executable file,
                                    std::string filename, ExecArgs args, bool path_inaccessible) {
  TRY(args.Check(filename));
  ExecImage image;
  image.file = std::move(file);
  image.filename = filename;
  const size_t slash = filename.rfind('/');
  image.comm = filename.substr(slash == std::string::npos ? 0 : slash + 1, kCommLength);
  // Since Linux 5.18 a program always has an argv[0].
  if (args.argv.empty()) args.argv.emplace_back();

  std::string script_name = std::move(filename);
  for (int depth = 0;; ++depth) {
    if (depth > kMaxScriptDepth) return base::Error(ELOOP);
    Buffer buffer{};
    const HeadReader head(*image.file.file());
    TRY(head.ReadSome(0, std::as_writable_bytes(std::span(buffer))));
    if (buffer[0] != '#' || buffer[1] != '!') {
      if (memcmp(buffer.data(), ELFMAG, SELFMAG) != 0) return base::Error(ENOEXEC);
      TRY(PrepareElf(vfs, ctx, head, buffer, &image));
      break;
    }
    Script script = TRY(ParseScript(buffer));
    if (path_inaccessible) return base::Error(ENOENT);
    args.argv[0] = script_name;
    if (script.argument) args.argv.insert(args.argv.begin(), *script.argument);
    args.argv.insert(args.argv.begin(), script.interpreter);
    TRY(args.Check(image.filename));
    image.file = TRY(OpenExecutable(vfs, ctx, script.interpreter));
    script_name = std::move(script.interpreter);
  }
  image.attr = TRY(image.file.file()->GetAttr());
  image.argv = std::move(args.argv);
  image.envp = std::move(args.envp);
  return image;
}

}  // namespace sentry::loader
