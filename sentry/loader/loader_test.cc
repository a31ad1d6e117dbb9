#include "sentry/loader/loader.h"

#include <elf.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <random>
#include <sstream>

#include "gtest/gtest.h"
#include "sentry/base/sanitizer.h"
#include "sentry/loader/loader_test_util.h"

namespace sentry::loader {
namespace {

std::string ReadHostFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

// A program of one or more segments, built by hand.
struct ElfBuilder {
  Elf64_Ehdr header{};
  std::vector<Elf64_Phdr> segments;
  size_t size = 3 * 4096;

  ElfBuilder() {
    memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_type = ET_EXEC;
    header.e_machine = EM_X86_64;
    header.e_phoff = sizeof(header);
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_entry = 0x400100;
    Load(0, 0x400000, 0x200, 0x200, PF_R | PF_X);
    Load(0x1000, 0x401000, 0x100, 0x3000, PF_R | PF_W);
  }
  void Load(uint64_t offset, uint64_t vaddr, uint64_t filesz, uint64_t memsz, uint32_t flags) {
    segments.push_back({.p_type = PT_LOAD,
                        .p_flags = flags,
                        .p_offset = offset,
                        .p_vaddr = vaddr,
                        .p_paddr = vaddr,
                        .p_filesz = filesz,
                        .p_memsz = memsz,
                        .p_align = 4096});
  }
  std::string Build() {
    header.e_phnum = segments.size();
    std::string out(size, '\x11');
    memcpy(out.data(), &header, sizeof(header));
    memcpy(out.data() + header.e_phoff, segments.data(), segments.size() * sizeof(Elf64_Phdr));
    return out;
  }
};

class LoaderTest : public testing::Test {
 protected:
  int PrepareError(const std::string& path, std::vector<std::string> argv = {"a"}) {
    auto image = world_.Prepare(path, std::move(argv));
    return image.ok() ? 0 : image.error().code();
  }
  int LoadError(const std::string& content) {
    world_.Add("/bin/p", content);
    auto image = world_.Prepare("/bin/p");
    if (!image.ok()) return image.error().code();
    auto loaded = world_.Load(*image);
    return loaded.result.ok() ? 0 : loaded.result.error().code();
  }
  LoaderWorld world_;
};

TEST_F(LoaderTest, Opening) {
  world_.Add("/bin/noexec", "x", 0644);
  world_.Add("/bin/empty", "");
  world_.Add("/bin/text", "hello");
  EXPECT_EQ(PrepareError("/bin/missing"), ENOENT);
  EXPECT_EQ(PrepareError("/bin"), EACCES);
  EXPECT_EQ(PrepareError("/bin/noexec"), EACCES);
  EXPECT_EQ(PrepareError("/bin/empty"), ENOEXEC);
  EXPECT_EQ(PrepareError("/bin/text"), ENOEXEC);
  world_.Add("/bin/p", ElfBuilder().Build());
  auto writer = world_.vfs().Open(world_.Ctx(), "/bin/p", O_WRONLY, 0);
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ(PrepareError("/bin/p"), ETXTBSY);
  writer->reset();
  auto image = world_.Prepare("/bin/p");
  ASSERT_TRUE(image.ok());
  EXPECT_EQ(world_.vfs().Open(world_.Ctx(), "/bin/p", O_WRONLY, 0).error().code(), ETXTBSY);
  auto loaded = world_.Load(*image);
  ASSERT_TRUE(loaded.result.ok());
  *image = ExecImage();
  EXPECT_EQ(world_.vfs().Open(world_.Ctx(), "/bin/p", O_WRONLY, 0).error().code(), ETXTBSY);
  loaded.mm.reset();
  EXPECT_TRUE(world_.vfs().Open(world_.Ctx(), "/bin/p", O_WRONLY, 0).ok());
}

TEST_F(LoaderTest, Scripts) {
  world_.Add("/bin/p", ElfBuilder().Build());
  auto args_of = [&](std::string_view script, std::vector<std::string> argv) {
    world_.Add("/bin/s", script);
    auto image = world_.Prepare("/bin/s", std::move(argv));
    EXPECT_TRUE(image.ok()) << script;
    return image.ok() ? image->argv : std::vector<std::string>();
  };
  using V = std::vector<std::string>;
  EXPECT_EQ(args_of("#!/bin/p\n", {"x", "y"}), (V{"/bin/p", "/bin/s", "y"}));
  EXPECT_EQ(args_of("#! \t/bin/p  -a b\tc \t\nrest", {"x"}), (V{"/bin/p", "-a b\tc", "/bin/s"}));
  EXPECT_EQ(args_of("#!/bin/p", {}), (V{"/bin/p", "/bin/s"}));
  EXPECT_EQ(args_of("#!/bin/p " + std::string(300, 'q'), {"x"}),
            (V{"/bin/p", std::string(246, 'q'), "/bin/s"}));
  for (const char* bad : {"#!\n", "#!   \t\n"}) {
    world_.Add("/bin/s", bad);
    EXPECT_EQ(PrepareError("/bin/s"), ENOEXEC) << bad;
  }
  for (const char* nameless : {"#!", "#!  "}) {  // the working directory, as Linux has it
    world_.Add("/bin/s", nameless);
    EXPECT_EQ(PrepareError("/bin/s"), EACCES) << nameless;
  }
  world_.Add("/bin/s", "#!/" + std::string(300, 'q'));
  EXPECT_EQ(PrepareError("/bin/s"), ENOEXEC);
  world_.Add("/bin/s", "#!/bin/missing\n");
  EXPECT_EQ(PrepareError("/bin/s"), ENOENT);
  world_.Add("/bin/s", "#!/bin/s\n");
  EXPECT_EQ(PrepareError("/bin/s"), ELOOP);
  for (int i = 1; i <= 6; ++i) {
    const std::string target = i == 1 ? "p" : "s" + std::to_string(i - 1);
    world_.Add("/bin/s" + std::to_string(i), "#!/bin/" + target + "\n");
  }
  EXPECT_EQ(PrepareError("/bin/s5"), 0);
  EXPECT_EQ(PrepareError("/bin/s6"), ELOOP);
  world_.Add("/bin/s", "#!/bin/p\n");
  auto image = world_.Prepare("/bin/s");
  EXPECT_EQ(image->comm, "s");
  EXPECT_EQ(image->filename, "/bin/s");
}

TEST_F(LoaderTest, ArgumentLimits) {
  world_.Add("/bin/p", ElfBuilder().Build());
  EXPECT_EQ(PrepareError("/bin/p", {std::string(kMaxArgStrlen - 1, 'x')}), 0);
  EXPECT_EQ(PrepareError("/bin/p", {std::string(kMaxArgStrlen, 'x')}), E2BIG);
  EXPECT_EQ(PrepareError("/bin/p", std::vector<std::string>(15, std::string(131071, 'x'))), 0);
  EXPECT_EQ(PrepareError("/bin/p", std::vector<std::string>(17, std::string(131071, 'x'))), E2BIG);
  EXPECT_EQ(PrepareError("/bin/p", std::vector<std::string>(300000, "")), E2BIG);
}

TEST_F(LoaderTest, HeaderChecks) {
  EXPECT_EQ(LoadError(ElfBuilder().Build()), 0);
  auto with = [&](auto change) {
    ElfBuilder elf;
    change(elf);
    return LoadError(elf.Build());
  };
  EXPECT_EQ(with([](auto& e) { e.header.e_type = ET_REL; }), ENOEXEC);
  EXPECT_EQ(with([](auto& e) { e.header.e_machine = EM_386; }), ENOEXEC);
  EXPECT_EQ(with([](auto& e) { e.header.e_phentsize = 32; }), ENOEXEC);
  EXPECT_EQ(with([](auto& e) { e.segments.clear(); }), ENOEXEC);
  EXPECT_EQ(with([](auto& e) { e.segments[1].p_memsz = 1; }), EINVAL);
  EXPECT_EQ(with([](auto& e) { e.segments[1].p_memsz = uint64_t{1} << 60; }), ENOMEM);
  EXPECT_EQ(with([](auto& e) { e.segments[1].p_vaddr = uint64_t{1} << 63; }), ENOMEM);
  EXPECT_EQ(with([](auto& e) { e.segments[1].p_offset = 0x1010; }), EINVAL);
  EXPECT_EQ(with([](auto& e) { e.segments[0].p_vaddr = 0; }), EPERM);
  EXPECT_EQ(with([](auto& e) { e.header.e_entry = uint64_t{1} << 50; }), EINVAL);
  EXPECT_EQ(with([](auto& e) {
              e.segments.push_back({.p_type = PT_INTERP, .p_offset = 0x1000, .p_filesz = 1});
            }),
            ENOEXEC);
  EXPECT_EQ(with([](auto& e) {
              e.segments.push_back({.p_type = PT_INTERP, .p_offset = 0x1000, .p_filesz = 20});
            }),
            ENOEXEC);  // no NUL at the end
}

TEST_F(LoaderTest, Interpreters) {
  auto with_interpreter = [&](std::string name) {
    ElfBuilder elf;
    elf.segments.push_back({.p_type = PT_INTERP, .p_offset = 0x1800, .p_filesz = name.size() + 1});
    std::string content = elf.Build();
    memcpy(content.data() + 0x1800, name.c_str(), name.size() + 1);
    return LoadError(content);
  };
  EXPECT_EQ(with_interpreter("/lib64/missing"), ENOENT);
  EXPECT_EQ(with_interpreter("/lib64"), EACCES);
  world_.Add("/lib64/short",
             "\x7f"
             "ELF");
  EXPECT_EQ(with_interpreter("/lib64/short"), EIO);
  world_.Add("/lib64/text", std::string(1000, 'x'));
  EXPECT_EQ(with_interpreter("/lib64/text"), ELIBBAD);
  ElfBuilder ld;
  ld.header.e_type = ET_DYN;
  for (auto& segment : ld.segments) segment.p_vaddr -= 0x400000;
  ld.header.e_entry = 0x100;
  world_.Add("/lib64/ld", ld.Build());
  EXPECT_EQ(with_interpreter("/lib64/ld"), 0);
}

TEST_F(LoaderTest, BssIsZero) {
  world_.Add("/bin/p", ElfBuilder().Build());
  auto image = world_.Prepare("/bin/p");
  auto loaded = world_.Load(*image, ADDR_NO_RANDOMIZE);
  ASSERT_TRUE(loaded.result.ok());
  EXPECT_EQ(loaded.result->rip, 0x400100u);
  auto& as = *loaded.as;
  EXPECT_EQ(as.written.lower_bound(0x401000)->first, 0x401100u);  // the file's bytes stay
  for (uint64_t at = 0x401100; at < 0x402000; ++at) ASSERT_EQ(as.written.at(at), std::byte{0});
  EXPECT_EQ(as.pages.at(0x401000).offset, 0x1000u);
  EXPECT_EQ(as.pages.at(0x403000).file, nullptr);
  EXPECT_EQ(loaded.mm->layout().start_brk, 0x404000u);
  EXPECT_EQ(loaded.mm->layout().start_code, 0x400000u);
}

TEST_F(LoaderTest, InitialStack) {
  world_.Add("/bin/p", ElfBuilder().Build());
  auto image = world_.Prepare("/bin/p", {"one", "two"}, {"A=1"});
  auto loaded = world_.Load(*image);
  ASSERT_TRUE(loaded.result.ok());
  auto& as = *loaded.as;
  uint64_t sp = loaded.result->rsp;
  EXPECT_EQ(sp % 16, 0u);
  auto word = [&](uint64_t at) { return *base::UserPtr<uint64_t>(at).CopyIn(as); };
  auto string = [&](uint64_t at) { return *as.ReadString(at, 4096); };
  EXPECT_EQ(word(sp), 2u);
  EXPECT_EQ(string(word(sp + 8)), "one");
  EXPECT_EQ(string(word(sp + 16)), "two");
  EXPECT_EQ(word(sp + 24), 0u);
  EXPECT_EQ(string(word(sp + 32)), "A=1");
  EXPECT_EQ(word(sp + 40), 0u);
  std::map<uint64_t, uint64_t> aux;
  for (uint64_t at = sp + 48; word(at) != AT_NULL; at += 16) aux[word(at)] = word(at + 8);
  EXPECT_EQ(string(aux[AT_EXECFN]), "/bin/p");
  EXPECT_EQ(string(aux[AT_PLATFORM]), "x86_64");
  EXPECT_EQ(aux[AT_PHDR], 0x400040u);
  EXPECT_EQ(aux[AT_PHNUM], 2u);
  EXPECT_EQ(aux[AT_ENTRY], 0x400100u);
  EXPECT_EQ(aux[AT_PAGESZ], 4096u);
  EXPECT_NE(aux[AT_RANDOM], 0u);
  const MmLayout layout = loaded.mm->layout();
  EXPECT_EQ(layout.arg_start, word(sp + 8));
  EXPECT_EQ(layout.env_end - layout.env_start, 4u);
  // Large ones are written directly.
  auto big = world_.Prepare("/bin/p", std::vector<std::string>(100, std::string(1000, 'x')));
  auto loaded_big = world_.Load(*big);
  ASSERT_TRUE(loaded_big.result.ok());
  EXPECT_EQ(
      *loaded_big.as->ReadString(
          *base::UserPtr<uint64_t>(loaded_big.result->rsp + 8 * 100).CopyIn(*loaded_big.as), 4096),
      std::string(1000, 'x'));
}

TEST_F(LoaderTest, DamagedFiles) {
  const std::string whole = ReadHostFile("/bin/true");
  std::mt19937 rng(1);
  for (int i = 0; i < 200; ++i) {
    LoadError(whole.substr(0, whole.size() * i / 200));
    LoadError(whole.substr(0, i));
    std::string noise = whole;
    for (int k = 0; k < 1 + i % 8; ++k) noise[rng() % 0x300] = static_cast<char>(rng());
    LoadError(noise);
  }
}

// ThreadSanitizer refuses mappings where its own tables are or may be, and programs want some
// there.
#if defined(RUNSC_TSAN)
constexpr bool kMapsAnywhere = false;
#else
constexpr bool kMapsAnywhere = true;
#endif

// Carries the orders out in a child of this process and lets the program run there.
std::string RunOnHost(LoaderWorld& world, const std::string& path, std::vector<std::string> argv,
                      int* exit_status) {
  world.Add(path, ReadHostFile(path));
  auto image = world.Prepare(path, std::move(argv), {"LC_ALL=C"});
  EXPECT_TRUE(image.ok()) << path;
  // Below this process's own libraries.
  auto loaded = world.Load(*image, 0, 0x7000'0000'0000, getauxval(AT_SYSINFO_EHDR));
  EXPECT_TRUE(loaded.result.ok()) << path;
  int out[2];
  EXPECT_EQ(pipe(out), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(out[1], 1);
    namespace o = platform::order;
    for (const auto& order : loaded.runner->all) {
      if (const auto* map = std::get_if<o::Mmap>(&order)) {
        const int flags = MAP_FIXED_NOREPLACE | (map->shared ? MAP_SHARED : MAP_PRIVATE) |
                          (map->noreserve ? MAP_NORESERVE : 0) | (map->file ? 0 : MAP_ANONYMOUS);
        void* at = reinterpret_cast<void*>(map->addr);
        if (mmap(at, map->length, map->prot, flags, map->file ? map->file->get() : -1,
                 static_cast<off_t>(map->offset)) != at) {
          _exit(99);
        }
      } else if (const auto* write = std::get_if<o::Write>(&order)) {
        memcpy(reinterpret_cast<void*>(write->addr), write->bytes.data(), write->bytes.size());
      } else {
        _exit(98);
      }
    }
    asm volatile("mov %0, %%rsp\n xor %%edx, %%edx\n xor %%ebp, %%ebp\n jmp *%1"
                 :
                 : "r"(loaded.result->rsp), "r"(loaded.result->rip)
                 : "memory", "rdx");
    __builtin_unreachable();
  }
  close(out[1]);
  std::string output;
  char buffer[4096];
  for (ssize_t n; (n = read(out[0], buffer, sizeof(buffer))) > 0;) output.append(buffer, n);
  close(out[0]);
  waitpid(pid, exit_status, 0);
  return output;
}

TEST_F(LoaderTest, DynamicProgramRuns) {
  if (!kMapsAnywhere) GTEST_SKIP() << "no place for the program";
  world_.Add("/lib64/ld-linux-x86-64.so.2", ReadHostFile("/lib64/ld-linux-x86-64.so.2"));
  int status = -1;
  EXPECT_EQ(RunOnHost(world_, "/bin/echo", {"echo", "hello", "world"}, &status), "hello world\n");
  EXPECT_EQ(status, 0);
}

TEST_F(LoaderTest, StaticProgramRuns) {
  if (!kMapsAnywhere) GTEST_SKIP() << "no place for the program";
  if (access("/bin/busybox", X_OK) != 0) GTEST_SKIP() << "no static busybox";
  int status = -1;
  EXPECT_EQ(RunOnHost(world_, "/bin/busybox", {"busybox", "echo", "hello"}, &status), "hello\n");
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace sentry::loader
