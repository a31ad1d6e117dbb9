// The hot paths of the VFS without the trap path: walk, stat, open and close, read, create and
// unlink.
#include <benchmark/benchmark.h>
#include <fcntl.h>

#include <string>

#include "sentry/fs/tmpfs/tmpfs.h"
#include "sentry/vfs/fd_table.h"

namespace sentry {
namespace {

struct Fixture {
  Fixture() {
    ns = MountNamespace::New(Vfs::NewMount(NewTmpfs({}), 0, "tmpfs"));
    root = Path{ns->root_mount(), ns->root_mount()->root()};
    for (const char* dir : {"/usr", "/usr/lib", "/usr/lib/python3"}) {
      if (!vfs.Mkdir(Ctx(), dir, 0755).ok()) abort();
    }
    file = *vfs.Open(Ctx(), kPath, O_CREAT | O_RDWR, 0644);
    std::string data(4096, 'x');
    BufferSource src(std::as_bytes(std::span(data)));
    if (!file->PWrite(src, 0, false).ok()) abort();
  }
  WalkContext Ctx() { return WalkContext{*creds, *ns, root, root, 022, 0}; }
  static constexpr std::string_view kPath = "/usr/lib/python3/os.py";
  Vfs vfs;
  base::Ref<Credentials> creds = Credentials::NewRoot(UserNamespace::NewRoot());
  base::Ref<MountNamespace> ns;
  Path root;
  base::Ref<FileDescription> file;
};

void BM_Stat(benchmark::State& state) {
  Fixture f;
  for (auto _ : state) {
    const WalkContext ctx = f.Ctx();
    benchmark::DoNotOptimize(f.vfs.GetAttr(*f.vfs.Walk(ctx, Fixture::kPath, {})));
  }
}
BENCHMARK(BM_Stat);

void BM_StatNothing(benchmark::State& state) {
  Fixture f;
  for (auto _ : state) {
    const WalkContext ctx = f.Ctx();
    benchmark::DoNotOptimize(f.vfs.Walk(ctx, "/usr/lib/python3/none", {}));
  }
}
BENCHMARK(BM_StatNothing);

void BM_OpenClose(benchmark::State& state) {
  Fixture f;
  auto table = base::MakeRef<FdTable>();
  for (auto _ : state) {
    const WalkContext ctx = f.Ctx();
    const int fd = *table->Install(*f.vfs.Open(ctx, Fixture::kPath, O_RDONLY, 0), false, 0, 1024);
    benchmark::DoNotOptimize(table->Close(fd));
  }
}
BENCHMARK(BM_OpenClose);

void BM_Read4k(benchmark::State& state) {
  Fixture f;
  std::string buffer(4096, '\0');
  for (auto _ : state) {
    BufferDest dst(std::as_writable_bytes(std::span(buffer)));
    benchmark::DoNotOptimize(f.file->PRead(dst, 0, false));
  }
}
BENCHMARK(BM_Read4k);

void BM_CreateUnlink(benchmark::State& state) {
  Fixture f;
  for (auto _ : state) {
    const WalkContext ctx = f.Ctx();
    (void)f.vfs.Open(ctx, "/usr/lib/new", O_CREAT | O_WRONLY, 0644);
    benchmark::DoNotOptimize(f.vfs.Unlink(ctx, "/usr/lib/new"));
  }
}
BENCHMARK(BM_CreateUnlink);

}  // namespace
}  // namespace sentry

BENCHMARK_MAIN();
