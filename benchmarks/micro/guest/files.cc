// Rows of files and directories, on the root file system and on a tmpfs.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

#include "benchmarks/micro/guest/row.h"

namespace micro {
namespace {

constexpr size_t kFileSize = 4 << 20;

void Pread(benchmark::State& state, size_t size, bool memory) {
  Scratch scratch(memory);
  int fd = CachedFile(scratch.Path("file"), kFileSize);
  if (fd < 0) return Fail(state, "open");
  std::vector<char> buffer(size);
  off_t at = 0;
  for (auto _ : state) {
    if (pread(fd, buffer.data(), size, at) != static_cast<ssize_t>(size)) {
      Fail(state, "pread");
      break;
    }
    at = (at + static_cast<off_t>(size)) % static_cast<off_t>(kFileSize);
  }
  close(fd);
}
void Pread64(benchmark::State& state) { Pread(state, 64, false); }
void Pread4K(benchmark::State& state) { Pread(state, 4096, false); }
void Pread64K(benchmark::State& state) { Pread(state, 64 << 10, false); }
void Pread1M(benchmark::State& state) { Pread(state, 1 << 20, false); }
void Pread4KTmpfs(benchmark::State& state) { Pread(state, 4096, true); }
ROW("pread_64", Pread64);
ROW("pread_4k", Pread4K);
ROW("pread_64k", Pread64K);
ROW("pread_1m", Pread1M);
ROW("pread_4k_tmpfs", Pread4KTmpfs);

// Sequential reads, from the start again at the end of the file.
void Read(benchmark::State& state, size_t size, bool seek_each) {
  Scratch scratch;
  int fd = CachedFile(scratch.Path("file"), kFileSize);
  if (fd < 0) return Fail(state, "open");
  std::vector<char> buffer(size);
  for (auto _ : state) {
    if (seek_each) lseek(fd, 4096, SEEK_SET);
    ssize_t n = read(fd, buffer.data(), size);
    if (n == 0) {
      lseek(fd, 0, SEEK_SET);
    } else if (n < 0) {
      Fail(state, "read");
      break;
    }
  }
  close(fd);
}
void Read64(benchmark::State& state) { Read(state, 64, false); }
void Read4K(benchmark::State& state) { Read(state, 4096, false); }
void Read64K(benchmark::State& state) { Read(state, 64 << 10, false); }
void LseekRead64(benchmark::State& state) { Read(state, 64, true); }
ROW("read_64", Read64);
ROW("read_4k", Read4K);
ROW("read_64k", Read64K);
ROW("lseek_read_64", LseekRead64);

void Pwrite(benchmark::State& state, bool memory) {
  Scratch scratch(memory);
  int fd = CachedFile(scratch.Path("file"), 1 << 20);
  if (fd < 0) return Fail(state, "open");
  std::vector<char> buffer(4096, 'y');
  off_t at = 0;
  for (auto _ : state) {
    if (pwrite(fd, buffer.data(), 4096, at) != 4096) {
      Fail(state, "pwrite");
      break;
    }
    at = (at + 4096) % (1 << 20);
  }
  close(fd);
}
void Pwrite4K(benchmark::State& state) { Pwrite(state, false); }
void Pwrite4KTmpfs(benchmark::State& state) { Pwrite(state, true); }
ROW("pwrite_4k", Pwrite4K);
ROW("pwrite_4k_tmpfs", Pwrite4KTmpfs);

// A path of four components below the root, as programs use.
struct Tree {
  Scratch scratch;
  std::string file, link, missing;
  Tree() {
    mkdir(scratch.Path("a").c_str(), 0755);
    mkdir(scratch.Path("a/b").c_str(), 0755);
    file = scratch.Path("a/b/file");
    link = scratch.Path("a/b/link");
    missing = scratch.Path("a/b/missing");
    close(CachedFile(file, 100));
    if (symlink("file", link.c_str()) != 0) perror("symlink");
  }
};

void Stat(benchmark::State& state) {
  Tree tree;
  struct stat st;
  for (auto _ : state) benchmark::DoNotOptimize(stat(tree.file.c_str(), &st));
}
ROW("stat", Stat);

void StatMissing(benchmark::State& state) {
  Tree tree;
  struct stat st;
  for (auto _ : state) benchmark::DoNotOptimize(stat(tree.missing.c_str(), &st));
}
ROW("stat_missing", StatMissing);

void Fstat(benchmark::State& state) {
  Tree tree;
  int fd = open(tree.file.c_str(), O_RDONLY);
  struct stat st;
  for (auto _ : state) benchmark::DoNotOptimize(fstat(fd, &st));
  close(fd);
}
ROW("fstat", Fstat);

void OpenClose(benchmark::State& state) {
  Tree tree;
  for (auto _ : state) {
    int fd = open(tree.file.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      Fail(state, "open");
      break;
    }
    close(fd);
  }
}
ROW("open_close", OpenClose);

void Access(benchmark::State& state) {
  Tree tree;
  for (auto _ : state) benchmark::DoNotOptimize(access(tree.file.c_str(), R_OK));
}
ROW("access", Access);

void Readlink(benchmark::State& state) {
  Tree tree;
  char target[256];
  for (auto _ : state) {
    benchmark::DoNotOptimize(readlink(tree.link.c_str(), target, sizeof(target)));
  }
}
ROW("readlink", Readlink);

// One iteration lists the whole directory from its start.
void Getdents(benchmark::State& state, bool memory) {
  Scratch scratch(memory);
  for (int i = 0; i < 1000; ++i) {
    int fd = open(scratch.Path("entry" + std::to_string(i)).c_str(), O_CREAT | O_WRONLY, 0644);
    if (fd < 0) return Fail(state, "open");
    close(fd);
  }
  int dir = open(scratch.Path(".").c_str(), O_RDONLY | O_DIRECTORY);
  std::vector<char> buffer(32 << 10);
  for (auto _ : state) {
    lseek(dir, 0, SEEK_SET);
    while (syscall(SYS_getdents64, dir, buffer.data(), buffer.size()) > 0) {
    }
  }
  close(dir);
}
void Getdents1000(benchmark::State& state) { Getdents(state, false); }
void Getdents1000Tmpfs(benchmark::State& state) { Getdents(state, true); }
ROW("getdents_1000", Getdents1000);
ROW("getdents_1000_tmpfs", Getdents1000Tmpfs);

void CreateUnlinkIn(benchmark::State& state, bool memory) {
  Scratch scratch(memory);
  std::string path = scratch.Path("new");
  for (auto _ : state) {
    int fd = open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0644);
    if (fd < 0 || close(fd) != 0 || unlink(path.c_str()) != 0) {
      Fail(state, "create");
      break;
    }
  }
}
void CreateUnlink(benchmark::State& state) { CreateUnlinkIn(state, false); }
void CreateUnlinkTmpfs(benchmark::State& state) { CreateUnlinkIn(state, true); }
ROW("create_unlink", CreateUnlink);
ROW("create_unlink_tmpfs", CreateUnlinkTmpfs);

void MkdirRmdirIn(benchmark::State& state, bool memory) {
  Scratch scratch(memory);
  std::string path = scratch.Path("new");
  for (auto _ : state) {
    if (mkdir(path.c_str(), 0755) != 0 || rmdir(path.c_str()) != 0) {
      Fail(state, "mkdir");
      break;
    }
  }
}
void MkdirRmdir(benchmark::State& state) { MkdirRmdirIn(state, false); }
void MkdirRmdirTmpfs(benchmark::State& state) { MkdirRmdirIn(state, true); }
ROW("mkdir_rmdir", MkdirRmdir);
ROW("mkdir_rmdir_tmpfs", MkdirRmdirTmpfs);

void RenameIn(benchmark::State& state, bool memory) {
  Scratch scratch(memory);
  std::string names[2] = {scratch.Path("one"), scratch.Path("two")};
  close(open(names[0].c_str(), O_CREAT | O_WRONLY, 0644));
  int from = 0;
  for (auto _ : state) {
    if (rename(names[from].c_str(), names[1 - from].c_str()) != 0) {
      Fail(state, "rename");
      break;
    }
    from = 1 - from;
  }
}
void Rename(benchmark::State& state) { RenameIn(state, false); }
void RenameTmpfs(benchmark::State& state) { RenameIn(state, true); }
ROW("rename", Rename);
ROW("rename_tmpfs", RenameTmpfs);

}  // namespace
}  // namespace micro
