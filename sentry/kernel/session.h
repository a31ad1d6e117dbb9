// Sessions, process groups and their terminal (job control).
#pragma once

#include <string>
#include <vector>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/kernel/signal.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

class Kernel;
class Tty;
struct OpenArgs;

// Fields are guarded by Kernel::task_mutex(). Unlinked from everything when its last group goes.
class Session : public base::RefCounted {
 public:
  // Under Kernel::task_mutex(), as the other constructor below.
  explicit Session(base::Ref<Pid> pid) : pid_(std::move(pid)) { pid_->session = this; }
  const base::Ref<Pid>& pid() const { return pid_; }
  ThreadGroup* leader = nullptr;  // null once it has exited
  base::Ref<Tty> tty;             // the controlling terminal
  std::vector<ProcessGroup*> groups;

 private:
  ~Session() override = default;
  const base::Ref<Pid> pid_;
};

class ProcessGroup : public base::RefCounted {
 public:
  ProcessGroup(base::Ref<Pid> pid, base::Ref<Session> session);
  const base::Ref<Pid>& pid() const { return pid_; }
  const base::Ref<Session>& session() const { return session_; }
  // All that follows under Kernel::task_mutex().
  std::vector<ThreadGroup*> members;
  void Join(ThreadGroup& member);
  // The last member unlinks the group, and perhaps the session, which gives up its terminal: the
  // caller drops that reference without locks.
  base::Ref<Tty> Leave(ThreadGroup& member);

 private:
  ~ProcessGroup() override = default;
  const base::Ref<Pid> pid_;
  const base::Ref<Session> session_;
};

// What any terminal has in common: who it controls, and job control's checks. Terminals
// (sentry/fs/devpts, host terminals) derive from it. Follows drivers/tty/tty_jobctrl.c.
// Thread-safe; state is guarded by Kernel::task_mutex().
class Tty : public base::RefCounted {
 public:
  explicit Tty(Kernel* kernel) : kernel_(kernel) {}
  // "pts/0", "console": the name below /dev.
  virtual std::string name() const = 0;
  virtual dev_t device() const = 0;
  // A new description of it, for /dev/tty.
  virtual base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) = 0;

  // TIOCSCTTY by the current task; `steal` its argument (1: CAP_SYS_ADMIN takes it from another
  // session). Also open(2) of a terminal by a session leader without one (errors are ignored then).
  base::Status SetControlling(Task& t, bool steal, bool readable);
  // TIOCNOTTY; ENOTTY if it is not t's controlling terminal.
  base::Status ReleaseControlling(Task& t);
  // TIOCGPGRP: the foreground group's number in t's PID namespace, 0 if none; ENOTTY.
  base::Result<int> ForegroundGroup(Task& t);
  // TIOCSPGRP: ENOTTY, ESRCH, EPERM (another session), and SIGTTOU as CheckChange.
  base::Status SetForegroundGroup(Task& t, int pgid);
  // TIOCGSID.
  base::Result<int> SessionId(Task& t);
  // tty_check_change: a background group that changes the terminal (SIGTTOU) or reads from it
  // (SIGTTIN) is signalled: ERESTARTSYS; EIO if that is not possible (ignored or orphaned); Ok for
  // the foreground and for processes that it does not control.
  base::Status CheckJob(Task& t, int signo);
  // To the foreground group, from the kernel: SIGINT, SIGQUIT, SIGTSTP, SIGWINCH.
  void SignalForeground(int signo);
  // The line was cut: SIGHUP and SIGCONT to the session's leader and foreground group, and the
  // session loses its terminal.
  void Hangup();
  // The foreground group; null if none. TIOCGPGRP on a pty's master.
  base::Ref<ProcessGroup> foreground() const;
  // The session that it controls; null if none.
  base::Ref<Session> session() const;
  // Kernel-side setup of an exec'd process that starts with a terminal: makes it the controlling
  // terminal of `leader`'s session with `leader`'s group in the foreground.
  void AdoptSession(ThreadGroup& leader);

 protected:
  ~Tty() override;

 private:
  friend class Kernel;
  friend class ProcessGroup;
  friend class Session;
  // Require Kernel::task_mutex(). The caller keeps a reference to this beyond the lock.
  void DropSession();
  void ForgetGroup(ProcessGroup* group);
  Kernel* const kernel_;
  Session* session_ = nullptr;          // cleared before the session goes
  ProcessGroup* foreground_ = nullptr;  // cleared when the group goes
};

}  // namespace sentry
