// Ends stubs that hostile code keeps from answering.
#pragma once

#include <atomic>

#include "sentry/fiber/timer.h"

namespace sentry {

class Kernel;

// A guest owns its stub, so it can make one that takes no interrupt or leaves an order undone. A
// thread that has to die and does not come back from the guest, and one whose orders take longer
// than any order may, lose their stub: all that share its memory (threads, vfork's and CLONE_VM's
// processes, each of which could have done it) die as of SIGKILL. Time is counted in looks, so that
// a sandbox that was frozen for a while is not mistaken for one that does not answer.
// Thread-safe; costs nothing while nobody has to be watched.
class StubWatch {
 public:
  explicit StubWatch(Kernel* kernel) : kernel_(kernel) {}

  // A task may have to be watched from now on (Task::rounds_ or its fatal state says so). Allowed
  // with Kernel::task_mutex and signal mutexes held.
  void Begin() {
    if (!on_.load(std::memory_order_seq_cst)) Arm();
  }

 private:
  void Arm();
  void Look();

  Kernel* const kernel_;
  std::atomic<bool> on_{false};  // the timer is armed, or a look is about to decide on it
  fiber::Timer timer_;
};

}  // namespace sentry
