// A hostile guest that attacks through what its process shares with the sentry: it writes nonsense
// into its mailbox, rings and holds the doorbell, takes descriptors from the runtime's socket and
// lies about what its orders have done, about its signals and its registers. Each attack runs in
// children that may die of it; whether others were harmed is for the test around it to see.
//
// Usage: hostile_mailbox SECONDS FILE... ; the files are ones that it may read and not write: it
// tries to write into them through mappings. `HOSTILE_SECRET`: what must not be seen in the
// runtime's memory, with each bit inverted, in hexadecimal. Prints "rounds N deaths D stolen S
// written W seen X stuck T".
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "tests/guest/hostile_util.h"

namespace {

using namespace hostile;        // NOLINT
using namespace platform;       // NOLINT
constexpr uint32_t kSlots = 8;  // those that a child's threads can have

struct Counts {
  std::atomic<size_t> rounds, deaths, stolen, written, seen, stuck;
};
Counts* g_counts;
std::vector<std::string> g_files;
std::string g_secret;
uint64_t g_gadget;

uint64_t Random() {
  static thread_local uint64_t state = static_cast<uint64_t>(NowNs()) | 1;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

Slot* SlotOf(uint32_t index) { return reinterpret_cast<Slot*>(SlotAddress(index)); }
MailboxHeader* Header() { return reinterpret_cast<MailboxHeader*>(kMailboxBase); }

void Spawn(void* (*f)(void*)) {
  pthread_t thread;
  pthread_create(&thread, nullptr, f, nullptr);
}

// --- what the other threads of an attacker do: calls of every kind ---

void* OrdinaryCalls(void*) {
  for (;;) {
    int fds[2];
    if (pipe(fds) == 0) {
      char c = 'x';
      write(fds[1], &c, 1);
      read(fds[0], &c, 1);
      close(fds[0]);
      close(fds[1]);
    }
    void* p = mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p != MAP_FAILED) {
      memset(p, 1, 8192);
      mprotect(p, 4096, PROT_READ);
      munmap(p, 8192);
    }
    syscall(SYS_getpriority, 0, 0);
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGURG);
  }
}

void* Nothing(void*) { return nullptr; }

void* CloneCalls(void*) {
  for (;;) {
    Spawn(Nothing);
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid(pid, nullptr, 0);
  }
}

void* MapCalls(void*) {
  for (;;) {
    for (const std::string& file : g_files) {
      int fd = open(file.c_str(), O_RDONLY);
      if (fd < 0) continue;
      void* a = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
      void* b = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
      close(fd);
      if (a != MAP_FAILED) munmap(a, 4096);
      if (b != MAP_FAILED) munmap(b, 4096);
    }
  }
}

// --- attacks: each runs in a child of its own until that is killed ---

void Scribble() {
  Spawn(OrdinaryCalls);
  Spawn(OrdinaryCalls);
  for (;;) {
    uint64_t where = Random() % 4 == 0 ? kMailboxBase + Random() % 8192
                                       : SlotAddress(static_cast<uint32_t>(Random() % kSlots)) +
                                             Random() % (Random() % 2 ? 1024 : kPageSize * 6);
    uint64_t value = Random() % 3 ? Random() : Random() % 16;
    *reinterpret_cast<volatile uint64_t*>(where & ~7ull) = value;
  }
}

// --- the memory of streams, which a process may write in ---

int g_stream[2], g_pipe[2], g_pair[2], g_counter;

void* StreamCalls(void*) {
  char buffer[3000];
  for (;;) {
    int n;
    pollfd p{g_stream[1], POLLIN | POLLOUT, 0};
    poll(&p, 1, 0);
    ioctl(g_stream[1], FIONREAD, &n);
    send(g_stream[0], buffer, Random() % sizeof buffer, MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE);
    recv(g_stream[1], buffer, Random() % sizeof buffer, MSG_DONTWAIT | MSG_PEEK);
    iovec part{buffer, Random() % sizeof buffer};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    recvmsg(g_stream[1], &message, MSG_DONTWAIT);
    send(g_stream[1], buffer, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    read(g_stream[0], buffer, 1);
  }
}

void* OtherLaneCalls(void*) {
  char buffer[3000];
  for (;;) {
    uint64_t n = Random() % 5;
    write(g_counter, &n, 8);
    read(g_counter, &n, 8);
    write(g_pipe[1], buffer, Random() % sizeof buffer);
    int in = dup(g_pipe[0]), out = dup(g_pipe[1]);
    tee(in, g_pair[0], 100, SPLICE_F_NONBLOCK);
    splice(in, nullptr, g_pair[0], nullptr, 100, SPLICE_F_NONBLOCK);
    write(out, buffer, Random() % sizeof buffer);
    read(in, buffer, Random() % sizeof buffer);
    close(in);
    close(out);
    iovec part{buffer, Random() % sizeof buffer};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    sendmsg(g_pair[0], &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    recvmsg(g_pair[1], &message, MSG_DONTWAIT | (Random() % 2 ? MSG_PEEK : 0));
    for (int fd : {g_pipe[0], g_pipe[1], g_pair[1], g_counter}) {
      pollfd p{fd, POLLIN | POLLOUT, 0};
      poll(&p, 1, 0);
    }
  }
}

int g_file = -1;

// Reads a file and moves in it, whatever stands in the mailbox about it.
void* FileCalls(void*) {
  char buffer[256];
  for (;;) {
    read(g_file, buffer, Random() % sizeof buffer);
    pread(g_file, buffer, Random() % sizeof buffer, static_cast<off_t>(Random() % 10000));
    lseek(g_file, static_cast<off_t>(Random() % 10000), static_cast<int>(Random() % 3));
    if (Random() % 16 == 0) pwrite(g_file, buffer, 1, static_cast<off_t>(Random() % 8192));
    if (Random() % 64 == 0) ftruncate(g_file, static_cast<off_t>(Random() % 8192));
  }
}

// Reads a file so much that it is read without the sentry.
void MakeFileLane() {
  char name[] = "/tmp/hostile-XXXXXX", buffer[4096] = {};
  g_file = mkstemp(name);
  unlink(name);
  for (int i = 0; i < 4; i++) write(g_file, buffer, sizeof buffer);
  for (int i = 0; i < 100; i++) {
    lseek(g_file, 0, SEEK_SET);
    read(g_file, buffer, sizeof buffer);
  }
}

// What the sentry says of files, of positions in them, and of what the windows show.
void ScribbleFile() {
  constexpr uint64_t kFiles = kMailboxBase + offsetof(MailboxHeader, files);
  constexpr uint64_t kWindows = kMailboxBase + offsetof(MailboxHeader, windows);
  const uint64_t where = Random() % 4 == 0 ? kWindows + Random() % (4 * sizeof(ShownWindow))
                                           : kFiles + Random() % (16 * sizeof(FileLane));
  const uint64_t value = Random() % 3 ? Random() : Random() % 16;
  *reinterpret_cast<volatile uint64_t*>(where & ~7ull) = value;
}

// Waits for what comes by a lane, while its words are written to.
void* LaneWaits(void*) {
  int fds[2];
  pipe(fds);
  const int epoll = epoll_create1(0);
  epoll_event event{EPOLLIN | EPOLLOUT, {}};
  epoll_ctl(epoll, EPOLL_CTL_ADD, fds[0], &event);
  char c = 0;
  for (;;) {
    write(fds[1], &c, 1);
    epoll_wait(epoll, &event, 1, 1);
    read(fds[0], &c, 1);
    epoll_wait(epoll, &event, 1, 1);
    pollfd p{fds[0], POLLIN, 0};
    poll(&p, 1, 1);
  }
}

// Uses a pipe, a pair of sockets and a counter so much that they have lanes.
void MakeOtherLanes() {
  pipe2(g_pipe, O_NONBLOCK);
  socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, g_pair);
  g_counter = eventfd(0, EFD_NONBLOCK);
  uint64_t n = 1;
  for (int i = 0; i < 200; i++) {
    write(g_pipe[1], &n, 1);
    read(g_pipe[0], &n, 1);
    write(g_counter, &n, 8);
    read(g_counter, &n, 8);
    for (int side : {0, 1}) {
      write(g_pair[side], &n, 1);
      read(g_pair[1 - side], &n, 1);
    }
  }
}

// A listener on the loopback device, whose address goes to `address`.
int ListenAnywhere(sockaddr_in* address) {
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  *address = {};
  address->sin_family = AF_INET;
  address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof *address;
  auto* name = reinterpret_cast<sockaddr*>(address);
  bind(listener, name, length);
  listen(listener, 1);
  getsockname(listener, name, &length);
  return listener;
}

// Uses a connection in every way, whatever its peer does.
[[noreturn]] void TalkOn(const sockaddr_in& to) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to);
  const int epoll = epoll_create1(0);
  epoll_event event{EPOLLIN | EPOLLOUT, {}};
  epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
  char buffer[3000];
  for (;;) {
    send(fd, buffer, 1 + Random() % sizeof buffer, MSG_DONTWAIT | MSG_NOSIGNAL);
    pollfd p{fd, static_cast<short>(Random() % 2 ? POLLIN : POLLIN | POLLOUT), 0};
    poll(&p, 1, 1);
    recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    epoll_wait(epoll, &event, 1, 1);
  }
}

void* Echo(void*) {
  char buffer[3000];
  for (;;) {
    const ssize_t n = recv(g_stream[1], buffer, sizeof buffer, Random() % 2 ? MSG_DONTWAIT : 0);
    if (n > 0) send(g_stream[1], buffer, static_cast<size_t>(n), MSG_DONTWAIT | MSG_NOSIGNAL);
  }
}

// Has a peer who uses its lanes as a guest, if it could become another user
// (sentry/lanes/domain.h); else as an equal.
void ScribbleAtAGuest() {
  sockaddr_in address;
  int listener = ListenAnywhere(&address);
  if (fork() == 0) TalkOn(address);
  setresgid(1000, 1000, 1000);
  setresuid(1000, 1000, 1000);
  prctl(PR_SET_DUMPABLE, 1);
  g_stream[1] = accept(listener, nullptr, nullptr);
  char c;
  for (int i = 0; i < 200; i++) {
    read(g_stream[1], &c, 1);
    write(g_stream[1], &c, 1);
  }
  Spawn(Echo);
  for (;;) {
    uint64_t where = kLaneBase + Random() % 4 * kLaneStride + Random() % sizeof(StreamLane);
    if (Random() % 4 == 0) where = kLaneBase + kLaneSleepersAt + Random() % kLaneSleepers * 4;
    const uint64_t value = Random() % 3 ? Random() : Random() % 16;
    *reinterpret_cast<volatile uint64_t*>(where & ~7ull) = value;
  }
}

void ScribbleLanes() {
  sockaddr_in address;
  int listener = ListenAnywhere(&address);
  g_stream[0] = socket(AF_INET, SOCK_STREAM, 0);
  connect(g_stream[0], reinterpret_cast<sockaddr*>(&address), sizeof address);
  g_stream[1] = accept(listener, nullptr, nullptr);
  char c = 0;
  for (int i = 0; i < 200; i++) {
    for (int side : {0, 1}) {
      write(g_stream[side], &c, 1);
      read(g_stream[1 - side], &c, 1);
    }
  }
  MakeOtherLanes();
  MakeFileLane();
  Spawn(FileCalls);
  Spawn(FileCalls);
  // The descriptors of a thread lead to any lane.
  Spawn(StreamCalls);
  Spawn(StreamCalls);
  Spawn(OtherLaneCalls);
  Spawn(LaneWaits);
  Spawn(LaneWaits);
  for (;;) {
    uint64_t where = kLaneBase + Random() % 8 * kLaneStride + Random() % sizeof(StreamLane);
    if (Random() % 8 == 0) ScribbleFile();
    const uint64_t other = Random() % 64;
    if (other == 1) where = kLaneBase + kLaneSleepersAt + Random() % 16 * sizeof(uint32_t);
    if (other == 2) where = kLaneBase + kLaneSleepersAt + Random() % kLaneSleepers * 4;
    if (other == 0) {
      where = kMailboxBase + offsetof(MailboxHeader, lane_fds) + Random() % (16 * sizeof(LaneFd));
    }
    uint64_t value = Random() % 3 ? Random() : Random() % 16;
    *reinterpret_cast<volatile uint64_t*>(where & ~7ull) = value;
  }
}

void* LookUpCalls(void*) {
  struct stat st;
  char link[64];
  const int root = open("/", O_RDONLY | O_DIRECTORY), file = open("/file", O_RDONLY);
  for (;;) {
    fstat(file, &st);
    fstat(root, &st);
    fstatat(root, "file", &st, 0);
    close(openat(root, "nothing", O_RDONLY));
    if (Random() % 16 == 0) dup2(Random() % 2 ? file : root, 20);
    fstatat(20, "file", &st, AT_EMPTY_PATH);
    stat("/file", &st);
    lstat("/etc/passwd", &st);
    access("/nothing", F_OK);
    readlink("/file", link, sizeof link);
  }
}

// Where its descriptors stand in that table: at places of others, and at none.
void LieAboutPlaces(Slot* s) {
  if (Random() % 16 == 0) __atomic_store_n(&s->fd_places, Random() % 64, __ATOMIC_RELAXED);
  for (uint32_t fd = 0; fd < 32; fd++) {
    FdPlace& entry = Header()->fd_places[Random() % 8 ? fd : Random() % kPlaceFds];
    if (Random() % 2) __atomic_store_n(&entry.owner, s->fd_places, __ATOMIC_RELAXED);
    const uint64_t place = Random() % 4 ? (Random() % 4096) << 31 | Random() % 64 : Random();
    __atomic_store_n(&entry.place, Random() % 8 ? place : kPathAtRoot, __ATOMIC_RELAXED);
    FdAttr& attr = Header()->fd_attrs[fd];
    reinterpret_cast<volatile uint64_t*>(&attr)[Random() % (sizeof attr / 8)] = Random() % 4096;
  }
}

// The table of what paths lead to, which all of this user's processes read.
void WritePaths() {
  Spawn(LookUpCalls);
  Spawn(LookUpCalls);
  for (int i = 0; i < 100; i++) {
    Slot* s = SlotOf(static_cast<uint32_t>(Random() % kSlots));
    usleep(1000);
    if (s->path_place == 0) continue;
    const uint64_t writable = PROT_READ | PROT_WRITE;
    if (StubCall(g_gadget, SYS_mprotect, kPathBase, kPathTableSize, writable) == 0) {
      g_counts->written++;
    }
    LieAboutPlaces(s);
    if (Random() % 2) continue;
    __atomic_store_n(&s->path_place, Random() % 2 ? s->path_place + 1 : Random(), __ATOMIC_RELAXED);
  }
  const uint64_t other = 0x10000000;
  if (StubCall(g_gadget, SYS_mremap, kPathBase, kPageSize, kPageSize, 3, other) == 0x10000000 &&
      StubCall(g_gadget, SYS_mprotect, other, kPageSize, PROT_READ | PROT_WRITE) == 0) {
    g_counts->written++;
  }
  *reinterpret_cast<volatile uint64_t*>(kPathBase) = 1;
}

// Answers a round before the sentry has begun it, in each of the ways that there are.
void AnswerEarly() {
  Spawn(OrdinaryCalls);
  Spawn(OrdinaryCalls);
  for (;;) {
    uint32_t index = static_cast<uint32_t>(Random() % kSlots);
    Slot* s = SlotOf(index);
    RequestHead head{s->answer_seq + static_cast<uint32_t>(Random() % 3),
                     static_cast<RequestKind>(Random() % 9), static_cast<uint8_t>(Random()),
                     static_cast<uint16_t>(Random())};
    __atomic_store(&s->request, &head, __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&Header()->ready[0], ~0ull, __ATOMIC_SEQ_CST);
  }
}

void* LieAboutOrders(void*) {
  for (;;) {
    OrderEntry& order = SlotOf(static_cast<uint32_t>(Random() % kSlots))->orders[Random() % 4];
    __atomic_store_n(&order.result, Random() % 5000, __ATOMIC_RELAXED);
  }
}

void LieAboutClones() {
  Spawn(LieAboutOrders);
  CloneCalls(nullptr);
}

void Ring() {
  for (;;) {
    for (uint64_t& word : Header()->ready) __atomic_store_n(&word, ~0ull, __ATOMIC_SEQ_CST);
    StubCall(g_gadget, SYS_futex, kSharedBase, 1 /* FUTEX_WAKE */, INT32_MAX);
  }
}

void HoldTheDoorbell() {
  switch (Random() % 4) {
    case 0:  // wait there too, and take the rings of others
      StubCall(g_gadget, SYS_futex, kSharedBase, 0 /* FUTEX_WAIT */, 1);
      break;
    case 1:  // take the sentry away from it
      StubCall(g_gadget, SYS_futex, kSharedBase, 3 /* FUTEX_REQUEUE */, 0, INT32_MAX,
               reinterpret_cast<uint64_t>(g_counts));
      break;
    case 2:  // the same under another address
      StubCall(g_gadget, SYS_mremap, kSharedBase, kPageSize, kPageSize, 3, 0x10000000);
      StubCall(g_gadget, SYS_futex, 0x10000000, 0, 1);
      break;
    default:  // by the way that any program has
      syscall(SYS_futex, kSharedBase, 0, 1, nullptr, nullptr, 0);
      syscall(SYS_futex, kSharedBase, 3, 0, INT32_MAX, g_counts, 0);
  }
}

// Takes what comes through the runtime's socket while files are mapped read-only, and maps it to
// write.
void Steal() {
  Spawn(MapCalls);
  Spawn(MapCalls);
  for (;;) {
    char byte;
    alignas(cmsghdr) char control[CMSG_SPACE(16 * sizeof(int))];
    iovec iov{&byte, 1};
    msghdr msg{};
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control;
    msg.msg_controllen = sizeof control;
    uint64_t socket = Random() % 8 ? static_cast<uint64_t>(Header()->socket) : Random() % 64;
    int64_t n = StubCall(g_gadget, SYS_recvmsg, socket, reinterpret_cast<uint64_t>(&msg), 0x40);
    cmsghdr* header = n > 0 ? CMSG_FIRSTHDR(&msg) : nullptr;
    if (!header || header->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      g_counts->stolen++;
      int64_t p = StubCall(g_gadget, SYS_mmap, 0x20000000, kPageSize, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_FIXED, static_cast<uint64_t>(fd), 0);
      if (p == 0x20000000) {
        g_counts->written++;
        memcpy(reinterpret_cast<void*>(p), "HACKED", 6);
      }
      StubCall(g_gadget, SYS_close, static_cast<uint64_t>(fd));
    }
  }
}

// The same where the sentry opens a file in the runtime while a call waits (strict mode): every
// number is tried, and what was ordered of others.
void TakeOrdered() {
  for (int i = 0; i < 3; i++) Spawn(MapCalls);
  for (;;) {
    const uint64_t fd = static_cast<uint64_t>(OrderedFd(static_cast<uint32_t>(Random() % kSlots)));
    const uint64_t place = 0x20000000 + Random() % 4 * kPageSize;
    int64_t p = StubCall(g_gadget, SYS_mmap, place, kPageSize, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_FIXED, fd, 0);
    if (p > 0) {
      g_counts->written++;
      memcpy(reinterpret_cast<void*>(p), "HACKED", 6);
    }
    if (Random() % 8 == 0) StubCall(g_gadget, SYS_close, fd);
    StubCall(g_gadget, SYS_mmap, kMailboxBase, kMailboxSize, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED, fd, 0);
    StubCall(g_gadget, SYS_clone, kForkCloneFlags);
  }
}

// Text that processes may share, written to behind the sentry's back.
void WriteText() {
  CatchFaults();
  const uint64_t text = reinterpret_cast<uint64_t>(&getpid) & ~(kPageSize - 1);
  for (uint64_t page : {text, text + kPageSize, kStubBase, kJumpTable}) {
    const uint64_t prot = PROT_READ | PROT_WRITE | PROT_EXEC;
    StubCall(g_gadget, SYS_mprotect, page, kPageSize, prot);
    WithPage(page, [](const unsigned char* p) {
      memset(const_cast<unsigned char*>(p) + kPageSize / 2, 0xf4, 16);
    });
  }
  OrdinaryCalls(nullptr);
}

void* SignalCalls(void*) {
  struct sigaction action {};
  action.sa_handler = [](int) {};
  sigset_t set;
  for (;;) {
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigaction(SIGUSR2, &action, nullptr);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    raise(SIGUSR2);
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    if (Random() % 64 == 0 && fork() == 0) _exit(0);
    waitpid(-1, nullptr, WNOHANG);
  }
}

// The signal mask and actions that the runtime keeps for the sentry.
void LieAboutSignals() {
  Spawn(SignalCalls);
  Spawn(SignalCalls);
  for (;;) {
    Slot* s = SlotOf(static_cast<uint32_t>(Random() % kSlots));
    __atomic_store_n(&s->sigmask, Random(), __ATOMIC_RELAXED);
    __atomic_store_n(&s->actions_word, Random(), __ATOMIC_RELAXED);
    s->mask_changed = s->actions_changed = 1;
    SignalEntry& entry = (Random() % 2 ? s->actions0 : s->actions1)[Random() % kSignalCount];
    entry = {Random(), Random(), Random(), Random()};
  }
}

// The registers that the sentry does not look at before somebody asks: while signals, faults and
// forks have it ask.
void LieAboutRegisters() {
  Spawn(SignalCalls);
  Spawn(CloneCalls);
  for (;;) {
    Slot* s = SlotOf(static_cast<uint32_t>(Random() % kSlots));
    const uint64_t value = Random() % 2 ? Random() : kRegionBase + Random() % (1 << 20);
    uint64_t* const registers[] = {&s->rip,     &s->rsp,     &s->eflags,       &s->rcx, &s->r11,
                                   &s->fs_base, &s->gs_base, &s->call_args[0], &s->rbx, &s->frame,
                                   &s->call_nr, &s->rax,     &s->r15};
    __atomic_store_n(registers[Random() % std::size(registers)], value, __ATOMIC_RELAXED);
  }
}

void CloseEverything() {
  Spawn(MapCalls);
  for (uint64_t fd = 0;; fd = (fd + 1) % 1024) StubCall(g_gadget, SYS_close, fd);
}

// Orders that are never done.
void StandStill() {
  Spawn(MapCalls);
  Spawn(MapCalls);
  for (;;) {
    Header()->fd_turn = static_cast<uint32_t>(Random());
    Header()->socket = static_cast<int32_t>(Random() % 64);
  }
}

void Unmap() {
  Spawn(OrdinaryCalls);
  switch (Random() % 3) {
    case 0:
      StubCall(g_gadget, SYS_munmap, kMailboxBase, kMailboxSize);
      break;
    case 1:
      StubCall(g_gadget, SYS_munmap, kStubBase, kRegionEnd - kStubBase);
      break;
    default:
      StubCall(g_gadget, SYS_mmap, kMailboxBase, kMailboxSize, PROT_READ, 0x32, ~0ull, 0);
  }
}

// A thread that takes no interrupt: its flag is one of ours.
void NeverComeBack() {
  alignas(64) static char flags[4096];
  const uint64_t args[] = {reinterpret_cast<uint64_t>(flags), 0, 0, 0, 0, 0};
  __asm__ volatile(
      "mov %0, %%rbx\n\t"
      "mov 0(%1), %%rdi\n\t"
      "xor %%esi, %%esi\n\t"
      "xor %%edx, %%edx\n\t"
      "xor %%r10d, %%r10d\n\t"
      "jmp *%2\n\t"
      :
      : "r"(flags), "r"(args), "r"(g_gadget - 5)
      : "rbx", "rdi", "rsi", "rdx", "r10", "memory");
}

// The secret of another process, in what the runtime has in this one.
void Look() {
  auto search = [](uint64_t begin, uint64_t end) {
    for (uint64_t page = begin; page < end; page += kPageSize) {
      WithPage(page, [](const unsigned char* p) {
        if (memmem(p, kPageSize, g_secret.data(), g_secret.size())) g_counts->seen++;
      });
    }
  };
  CatchFaults();
  search(kStubBase, kStubBase + kStubMax);
  search(kSharedBase, kSharedBase + kSharedSize);
  search(kMailboxBase, SlotAddress(64));
}

constexpr void (*kAttacks[])() = {Scribble,
                                  ScribbleLanes,
                                  ScribbleAtAGuest,
                                  WritePaths,
                                  AnswerEarly,
                                  LieAboutClones,
                                  Ring,
                                  HoldTheDoorbell,
                                  Steal,
                                  TakeOrdered,
                                  WriteText,
                                  LieAboutSignals,
                                  LieAboutRegisters,
                                  CloseEverything,
                                  StandStill,
                                  Unmap,
                                  NeverComeBack,
                                  Look};

// Runs one attack for a moment; its child must be gone soon after SIGKILL.
void Round(size_t number) {
  constexpr int64_t kMomentNs = 150'000'000, kPatienceNs = 15'000'000'000;
  pid_t pid = fork();
  if (pid < 0) return;
  if (pid == 0) {
    setpgid(0, 0);
    int null = open("/dev/null", O_RDWR);
    for (int fd : {0, 1, 2}) dup2(null, fd);
    kAttacks[number % std::size(kAttacks)]();
    _exit(0);
  }
  int status;
  int64_t start = NowNs();
  bool dead = false;
  while (!dead && NowNs() - start < kMomentNs) {
    dead = waitpid(pid, &status, WNOHANG) == pid;
    if (!dead) Nap(1'000'000);
  }
  if (dead) g_counts->deaths++;
  kill(-pid, SIGKILL);
  kill(pid, SIGKILL);
  while (!dead) {
    dead = waitpid(pid, &status, WNOHANG) == pid;
    if (dead) break;
    if (NowNs() - start > kPatienceNs) {
      g_counts->stuck++;
      break;
    }
    Nap(1'000'000);
  }
  g_counts->rounds++;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  for (int i = 2; i < argc; i++) g_files.push_back(argv[i]);
  const char* secret = getenv("HOSTILE_SECRET");
  for (size_t i = 0; secret && secret[i] && secret[i + 1]; i += 2) {
    g_secret += static_cast<char>(~strtoul(std::string(secret + i, 2).c_str(), nullptr, 16));
  }
  CatchFaults();
  g_gadget = FindGadget();
  if (g_gadget == 0) return 3;  // the test has to learn of the runtime's new shape
  g_counts =
      new (mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Counts{};
  for (int s : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS, SIGALRM}) signal(s, SIG_DFL);
  int64_t end = NowNs() + strtoll(argv[1], nullptr, 10) * 1'000'000'000;
  for (size_t n = 0; NowNs() < end || n < std::size(kAttacks); n++) Round(n);
  printf("rounds %zu deaths %zu stolen %zu written %zu seen %zu stuck %zu\n",
         g_counts->rounds.load(), g_counts->deaths.load(), g_counts->stolen.load(),
         g_counts->written.load(), g_counts->seen.load(), g_counts->stuck.load());
  return 0;
}
