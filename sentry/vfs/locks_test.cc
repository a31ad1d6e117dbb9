#include "sentry/vfs/file_locks.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "sentry/fiber/scheduler.h"

namespace sentry {
namespace {

int Code(const base::Status& s) { return s.ok() ? 0 : s.error().code(); }

RecordLock Lock(int owner, bool write, uint64_t start, uint64_t end, bool ofd = false) {
  static char owners[16];
  return {{&owners[owner], ofd, owner}, write, start, end};
}

TEST(RecordLocks, ConflictsSplitsAndJoins) {
  FileLocks locks;
  EXPECT_EQ(Code(locks.SetRecord(Lock(1, true, 0, 99), false)), 0);
  EXPECT_EQ(Code(locks.SetRecord(Lock(2, false, 50, 60), false)), EAGAIN);
  EXPECT_EQ(Code(locks.SetRecord(Lock(2, false, 100, kLockEof), false)), 0);
  locks.UnlockRecord(Lock(1, false, 0, 0).owner, 40, 59);
  EXPECT_EQ(locks.records().size(), 3u);
  EXPECT_EQ(Code(locks.SetRecord(Lock(2, false, 50, 59), false)), 0);
  EXPECT_EQ(Code(locks.SetRecord(Lock(2, false, 50, 60), false)), EAGAIN);
  RecordLock conflict;
  ASSERT_TRUE(locks.FindConflict(Lock(3, true, 0, kLockEof), &conflict));
  EXPECT_EQ(conflict.start, 0u);
  EXPECT_EQ(conflict.end, 39u);
  EXPECT_EQ(conflict.owner.pid, 1);
  locks.ReleaseRecords(Lock(1, false, 0, 0).owner.id);
  EXPECT_EQ(Code(locks.SetRecord(Lock(2, false, 60, 99), false)), 0);
  ASSERT_EQ(locks.records().size(), 1u);  // joined with its neighbours
  EXPECT_EQ(locks.records()[0].start, 50u);
  EXPECT_EQ(locks.records()[0].end, kLockEof);
  EXPECT_EQ(Code(locks.SetRecord(Lock(3, false, 70, 80), false)), 0);
  EXPECT_EQ(Code(locks.SetRecord(Lock(2, true, 75, 76), false)), EAGAIN);
  locks.ReleaseRecords(Lock(3, false, 0, 0).owner.id);
  EXPECT_EQ(Code(locks.SetRecord(Lock(2, true, 75, 76), false)), 0);
  EXPECT_EQ(locks.records().size(), 3u);
}

TEST(Flock, SharedExclusiveAndConversion) {
  FileLocks locks;
  int a = 0, b = 0;
  EXPECT_EQ(Code(locks.Flock(&a, false, false)), 0);
  EXPECT_EQ(Code(locks.Flock(&b, false, false)), 0);
  EXPECT_EQ(Code(locks.Flock(&a, true, false)), EWOULDBLOCK);
  EXPECT_EQ(locks.flocks().size(), 1u);  // a failed conversion loses the old lock
  locks.Unflock(&b);
  EXPECT_EQ(Code(locks.Flock(&a, true, false)), 0);
  EXPECT_EQ(Code(locks.Flock(&b, false, false)), EWOULDBLOCK);
  EXPECT_EQ(Code(locks.Flock(&a, false, false)), 0);
  EXPECT_EQ(Code(locks.Flock(&b, false, false)), 0);
}

TEST(RecordLocks, WaitersGetWhatIsReleased) {
  fiber::Scheduler scheduler;
  FileLocks locks;
  ASSERT_EQ(Code(locks.SetRecord(Lock(1, true, 0, 10), false)), 0);
  std::atomic<int> got{0};
  for (int owner = 2; owner < 6; owner++) {
    fiber::Spawn("waiter", [&, owner] {
      EXPECT_EQ(Code(locks.SetRecord(Lock(owner, true, 5, 5), true)), 0);
      got++;
      locks.ReleaseRecords(Lock(owner, false, 0, 0).owner.id);
    });
  }
  auto interrupted = fiber::Spawn("interrupted", [&] {
    EXPECT_EQ(Code(locks.SetRecord(Lock(7, true, 5, 5), true)), base::kERESTARTSYS);
  });
  while (!interrupted->parked()) std::this_thread::yield();
  interrupted->Interrupt();
  while (!interrupted->done()) std::this_thread::yield();
  EXPECT_EQ(got, 0);
  locks.ReleaseRecords(Lock(1, false, 0, 0).owner.id);
  scheduler.WaitForAll();
  EXPECT_EQ(got, 4);
}

TEST(RecordLocks, DeadlockIsFound) {
  fiber::Scheduler scheduler;
  FileLocks x, y;
  ASSERT_EQ(Code(x.SetRecord(Lock(1, true, 0, 10), false)), 0);
  ASSERT_EQ(Code(y.SetRecord(Lock(2, true, 0, 10), false)), 0);
  auto first =
      fiber::Spawn("first", [&] { EXPECT_EQ(Code(y.SetRecord(Lock(1, true, 0, 10), true)), 0); });
  while (!first->parked()) std::this_thread::yield();
  fiber::Spawn("second", [&] {
    EXPECT_EQ(Code(x.SetRecord(Lock(2, true, 0, 10), true)), EDEADLK);
    y.ReleaseRecords(Lock(2, false, 0, 0).owner.id);
  });
  scheduler.WaitForAll();
}

}  // namespace
}  // namespace sentry
