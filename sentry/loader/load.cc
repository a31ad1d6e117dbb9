// Maps an ELF program into a fresh address space: the second half of Linux's load_elf_binary.
#include <linux/mman.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/random.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>

#include "sentry/loader/elf_file.h"
#include "sentry/loader/initial_stack.h"
#include "sentry/loader/loader.h"

namespace sentry::loader {

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kTaskSize = 0x7ffffffff000;
constexpr uint64_t kPieBase = kTaskSize / 3 * 2;          // ELF_ET_DYN_BASE
constexpr uint64_t kMmapRandomPages = uint64_t{1} << 28;  // vm.mmap_rnd_bits
constexpr uint64_t kStackRandomPages = 0x3fffff;
constexpr uint64_t kBrkRandom = uint64_t{1} << 30;
constexpr uint64_t kStackExpand = 128 << 10;  // setup_arg_pages
// Host memory that a stack has from the start; below it grows by faults.
// An initial stack larger than this is written directly, not by orders.
constexpr size_t kStackByOrders = 32 << 10;
constexpr size_t kWriteOrderMax = 4096;

constexpr uint64_t Down(uint64_t v) { return v & ~(kPage - 1); }
constexpr uint64_t Up(uint64_t v) { return (v + kPage - 1) & ~(kPage - 1); }

// Random numbers of one exec.
struct Random {
  uint64_t mmap = 0, stack = 0, stack_align = 0, brk = 0;
  std::array<std::byte, 16> at_random{};
};

Random Randomize(bool enabled) {
  Random random;
  if (getrandom(&random, sizeof(random), 0) != sizeof(random)) random = {};
  if (!enabled) random.mmap = random.stack = random.stack_align = random.brk = 0;
  return random;
}

// One ELF file being mapped.
class Mapper {
 public:
  Mapper(MemoryManager& mm, OrderBatch& batch, base::Ref<FileDescription> file,
         const ElfHeaders& elf)
      : mm_(mm), batch_(batch), file_(std::move(file)), elf_(elf) {}

  // Maps all segments `bias` above their addresses. With `check`, nothing may be in the way.
  base::Status Map(uint64_t bias, bool check);

  uint64_t bias() const { return bias_; }
  uint64_t entry() const { return bias_ + elf_.header.e_entry; }
  // Address of the program headers, if a segment holds them; else the bias.
  uint64_t headers_addr() const { return bias_ + headers_vaddr_; }
  // All with the bias applied; brk is the end of the highest segment.
  uint64_t start_code = UINT64_MAX, end_code = 0, start_data = 0, end_data = 0, brk = 0;

 private:
  base::Status MapSegment(const Elf64_Phdr& segment);
  base::Status MapAnonymous(uint64_t start, uint64_t end, int prot);
  void Zero(uint64_t start, uint64_t end);

  MemoryManager& mm_;
  OrderBatch& batch_;
  const base::Ref<FileDescription> file_;
  const ElfHeaders& elf_;
  uint64_t bias_ = 0;
  uint64_t headers_vaddr_ = 0;
};

int ProtOf(const Elf64_Phdr& segment) {
  return ((segment.p_flags & PF_R) ? PROT_READ : 0) | ((segment.p_flags & PF_W) ? PROT_WRITE : 0) |
         ((segment.p_flags & PF_X) ? PROT_EXEC : 0);
}

base::Status Mapper::MapAnonymous(uint64_t start, uint64_t end, int prot) {
  if (start >= end) return base::Ok();
  MmapArgs args{.addr = start,
                .length = end - start,
                .prot = prot,
                .flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED};
  TRY(mm_.Mmap(batch_, args));
  return base::Ok();
}

void Mapper::Zero(uint64_t start, uint64_t end) {
  if (start >= end) return;
  batch_.orders().emplace_back(
      platform::order::Write{start, std::vector<std::byte>(end - start, std::byte{0})});
}

base::Status Mapper::MapSegment(const Elf64_Phdr& segment) {
  // Linux: elf_load, elf_map.
  const uint64_t vaddr = bias_ + segment.p_vaddr;
  const uint64_t in_page = vaddr % kPage;
  const int prot = ProtOf(segment);
  const uint64_t file_end = vaddr + segment.p_filesz;
  uint64_t zero_from = Down(vaddr);
  if (segment.p_filesz != 0) {
    MmapArgs args{.addr = Down(vaddr),
                  .length = segment.p_filesz + in_page,
                  .prot = prot,
                  .flags = MAP_PRIVATE | MAP_FIXED,
                  .file = file_,
                  .offset = segment.p_offset - in_page};
    if (args.offset % kPage != 0) return base::Error(EINVAL);
    TRY(mm_.Mmap(batch_, args));
    zero_from = file_end;
    if (segment.p_memsz > segment.p_filesz) {
      // The rest of the last page of the file; what cannot be written keeps it.
      if (prot & PROT_WRITE) Zero(file_end, Up(file_end));
      zero_from = Up(file_end);
    }
  }
  if (segment.p_memsz <= segment.p_filesz) return base::Ok();
  return MapAnonymous(zero_from, Up(vaddr + segment.p_memsz),
                      PROT_READ | PROT_WRITE | (prot & PROT_EXEC));
}

base::Status Mapper::Map(uint64_t bias, bool check) {
  bias_ = bias;
  bool first = true;
  for (const Elf64_Phdr& segment : elf_.segments) {
    if (segment.p_type != PT_LOAD) continue;
    if (segment.p_filesz > segment.p_memsz || segment.p_memsz > kTaskSize) {
      return base::Error(EINVAL);
    }
    const uint64_t vaddr = bias_ + segment.p_vaddr;
    if (vaddr >= kTaskSize || kTaskSize - segment.p_memsz < vaddr) return base::Error(EINVAL);
    if (first && check) {
      const uint64_t size = TRY(TotalSize(elf_));
      if (size > kTaskSize - Down(vaddr)) return base::Error(ENOMEM);
      if (mm_.IsAnyMapped(Down(vaddr), size)) return base::Error(EEXIST);
    }
    first = false;
    TRY(MapSegment(segment));
    const Elf64_Ehdr& header = elf_.header;
    if (segment.p_offset <= header.e_phoff &&
        header.e_phoff - segment.p_offset < segment.p_filesz) {
      headers_vaddr_ = header.e_phoff - segment.p_offset + segment.p_vaddr;
    }
    const uint64_t file_end = vaddr + segment.p_filesz;
    if (segment.p_flags & PF_X) {
      start_code = std::min(start_code, vaddr);
      end_code = std::max(end_code, file_end);
    }
    start_data = std::max(start_data, vaddr);
    end_data = std::max(end_data, file_end);
    brk = std::max(brk, vaddr + segment.p_memsz);
  }
  if (start_code == UINT64_MAX) start_code = 0;
  return base::Ok();
}

// Where a position-independent file goes: so that its first segment stands at `base`.
base::Result<uint64_t> BiasFor(const ElfHeaders& elf, uint64_t base) {
  for (const Elf64_Phdr& segment : elf.segments) {
    if (segment.p_type == PT_LOAD) return Down(base - Down(segment.p_vaddr));
  }
  return 0;
}

base::Result<uint64_t> BiasAnywhere(MemoryManager& mm, const ElfHeaders& elf) {
  const uint64_t size = TRY(TotalSize(elf));
  if (size == 0) return base::Error(EINVAL);
  return BiasFor(elf, TRY(mm.FindUnmapped(size, MaxAlignment(elf))));
}

base::Status MapProgram(const ExecImage& image, MemoryManager& mm, const Random& random,
                        Mapper& program) {
  const ElfHeaders& elf = image.elf->program;
  if (elf.header.e_type == ET_EXEC) return program.Map(0, /*check=*/true);
  if (TRY(TotalSize(elf)) == 0) return program.Map(0, /*check=*/false);
  if (!image.interpreter) {  // static, or a dynamic loader run by name
    return program.Map(TRY(BiasAnywhere(mm, elf)), /*check=*/false);
  }
  uint64_t base = kPieBase + random.mmap % kMmapRandomPages * kPage;
  base &= ~(MaxAlignment(elf) - 1);
  return program.Map(TRY(BiasFor(elf, base)), /*check=*/true);
}

// The mapping of the stack, whose content begins at `sp` (Linux: setup_arg_pages).
base::Status MapStack(MemoryManager& mm, OrderBatch& batch, uint64_t sp, uint64_t top,
                      uint64_t limit, bool executable) {
  limit = Down(limit);
  uint64_t low = Down(sp);
  const uint64_t used = top - low;
  if (limit > used) low -= std::min(kStackExpand, limit - used);
  const uint64_t ready = std::min({limit, kStackReadyMax, top / 2});
  const uint64_t host_low = std::min(low, top - ready);
  const int prot = PROT_READ | PROT_WRITE | (executable ? PROT_EXEC : 0);
  return mm.MapStack(batch, low, top, host_low, prot);
}

// Has the bytes [begin, end) of `content` written, which stands at `addr` as a whole.
void AddWrites(OrderBatch& batch, uint64_t addr, std::span<const std::byte> content, size_t begin,
               size_t end) {
  for (size_t at = begin; at < end; at += kWriteOrderMax) {
    const auto part = content.subspan(at, std::min(kWriteOrderMax, end - at));
    batch.orders().emplace_back(
        platform::order::Write{addr + at, std::vector<std::byte>(part.begin(), part.end())});
  }
}

uint64_t BrkStart(const ExecImage& image, const Mapper& program, const Random& random,
                  bool randomize) {
  const bool no_interpreter = !image.interpreter;
  uint64_t start = Up(program.brk);
  // Not above the mappings, where a file without an interpreter stands.
  if (image.elf->program.header.e_type == ET_DYN && no_interpreter) start = Up(kPieBase);
  if (randomize) start += Down(random.brk % kBrkRandom);
  return start;
}

}  // namespace

bool FitsOrders(const ExecImage& image) { return InitialStack::SizeFor(image) <= kStackByOrders; }

base::Result<LoadResult> LoadExec(const LoadArgs& args) {
  ExecImage& image = args.image;
  MemoryManager& mm = args.mm;
  const bool randomize = !(args.personality & ADDR_NO_RANDOMIZE);
  const Random random = Randomize(randomize);
  const uint64_t stack_limit = args.runner.Rlimit(RLIMIT_STACK);
  OrderBatch batch(args.runner);
  mm.InitLayout(stack_limit, args.personality);

  const uint64_t stack_top = mm.StackTop() - (random.stack & kStackRandomPages) * kPage;
  InitialStack stack(image, stack_top, random.stack_align % 8192, random.at_random);
  TRY(MapStack(mm, batch, stack.sp(), stack_top, stack_limit, image.elf->exec_stack));

  Mapper program(mm, batch, image.file.file(), image.elf->program);
  TRY(MapProgram(image, mm, random, program));
  LoadResult result{.rip = program.entry(), .rsp = stack.sp()};
  AuxFacts facts{.headers = program.headers_addr(),
                 .header_count = image.elf->program.header.e_phnum,
                 .entry = program.entry(),
                 .vdso = mm.address_space().limits().vdso_base,
                 .identity = args.identity};
  if (image.interpreter) {
    const ElfHeaders& elf = image.elf->interpreter;
    Mapper interpreter(mm, batch, image.interpreter.file(), elf);
    const bool fixed = elf.header.e_type == ET_EXEC;
    TRY(interpreter.Map(fixed ? 0 : TRY(BiasAnywhere(mm, elf)), /*check=*/false));
    facts.interpreter_base = interpreter.bias();
    result.rip = interpreter.entry();
  }
  if (result.rip >= kTaskSize) return base::Error(EINVAL);

  const std::vector<std::byte> content = stack.Finish(facts);
  const bool by_orders = FitsOrders(image);
  if (by_orders) {
    AddWrites(batch, stack.sp(), content, 0, stack.gap_begin());
    AddWrites(batch, stack.sp(), content, stack.gap_end(), content.size());
  }
  if (args.runner.CanQueue() && by_orders) {
    args.runner.QueueOrders(std::move(batch.orders()), nullptr);
  } else {
    TRY(args.runner.RunOrders(std::move(batch.orders())));
  }
  if (!by_orders) TRY(mm.address_space().Write(stack.sp(), content));

  MmLayout layout = stack.layout();
  layout.start_code = program.start_code;
  layout.end_code = program.end_code;
  layout.start_data = program.start_data;
  layout.end_data = program.end_data;
  layout.start_brk = layout.brk = BrkStart(image, program, random, randomize);
  mm.SetLayout(layout);
  TRY(mm.SetExecutable(image.file.file()));
  return result;
}

}  // namespace sentry::loader
