// A tmpfs with programs in it, and a fresh address space to load them into. For tests and fuzzing.
#pragma once

#include <fcntl.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sentry/fs/tmpfs/tmpfs.h"
#include "sentry/loader/loader.h"
#include "sentry/mm/mm_test_util.h"

namespace sentry::loader {

class LoaderWorld {
 public:
  LoaderWorld() {
    ns_ = MountNamespace::New(Vfs::NewMount(NewTmpfs({.size = 64 << 20, .inodes = 100}), 0, "t"));
    root_ = Path{ns_->root_mount(), ns_->root_mount()->root()};
    for (const char* dir : {"/bin", "/lib64"}) (void)vfs_.Mkdir(Ctx(), dir, 0755);
  }
  WalkContext Ctx() { return WalkContext{*creds_, *ns_, root_, root_, 022, 0}; }
  Vfs& vfs() { return vfs_; }

  void Add(std::string_view path, std::string_view content, mode_t mode = 0755) {
    auto file = vfs_.Open(Ctx(), path, O_WRONLY | O_CREAT | O_TRUNC, mode);
    if (!file.ok()) abort();
    for (size_t at = 0; at < content.size();) {
      BufferSource source(std::as_bytes(std::span(content.substr(at))));
      auto n = (*file)->PWrite(source, at, false);
      if (!n.ok() || *n == 0) abort();
      at += *n;
    }
  }

  base::Result<ExecImage> Prepare(const std::string& path, std::vector<std::string> argv = {"a"},
                                  std::vector<std::string> envp = {}) {
    ExecArgs args(8 << 20);
    TRY(args.Set(std::move(argv), std::move(envp)));
    return PrepareExec(vfs_, Ctx(), TRY(OpenExecutable(vfs_, Ctx(), path)), path, std::move(args));
  }

  // A loaded program with the orders that made it.
  struct Loaded {
    test::FakeAddressSpace* as;
    base::Ref<MemoryManager> mm;
    std::unique_ptr<test::FakeRunner> runner;
    base::Result<LoadResult> result = base::Error(EINVAL);
  };
  Loaded Load(ExecImage& image, uint32_t personality = 0, uint64_t max = 0x7fff'0000'0000,
              uint64_t vdso = 0, bool model = true) {
    Loaded loaded;
    loaded.as = new test::FakeAddressSpace(0x10000, max, vdso);
    loaded.mm = MemoryManager::NewOn(std::unique_ptr<platform::AddressSpace>(loaded.as));
    loaded.runner = std::make_unique<test::FakeRunner>(loaded.as);
    loaded.runner->model = model;
    loaded.result = LoadExec(
        {.image = image, .personality = personality, .mm = *loaded.mm, .runner = *loaded.runner});
    return loaded;
  }

 private:
  Vfs vfs_;
  base::Ref<Credentials> creds_ = Credentials::NewRoot(UserNamespace::NewRoot());
  base::Ref<MountNamespace> ns_;
  Path root_;
};

}  // namespace sentry::loader
