#include "sentry/kernel/namespaces.h"

#include <utility>

namespace sentry {

namespace {
constexpr int kPidMax = 4194304;    // /proc/sys/kernel/pid_max
constexpr int kReservedPids = 300;  // RESERVED_PIDS: not reused after the first wrap
constexpr int kMaxPidNsLevel = 32;
}  // namespace

base::Ref<UtsNamespace> UtsNamespace::Copy(base::Ref<UserNamespace> user_ns) const {
  absl::MutexLock l(&mutex_);
  return base::MakeRef<UtsNamespace>(std::move(user_ns), hostname_, domainname_);
}
std::string UtsNamespace::hostname() const {
  absl::MutexLock l(&mutex_);
  return hostname_;
}
std::string UtsNamespace::domainname() const {
  absl::MutexLock l(&mutex_);
  return domainname_;
}
void UtsNamespace::SetHostname(std::string name) {
  absl::MutexLock l(&mutex_);
  hostname_ = std::move(name);
}
void UtsNamespace::SetDomainname(std::string name) {
  absl::MutexLock l(&mutex_);
  domainname_ = std::move(name);
}

base::Ref<base::RefCounted> IpcNamespace::GetOrMake(const void* key,
                                                    base::Ref<base::RefCounted> (*make)()) {
  absl::MutexLock l(&mutex_);
  base::Ref<base::RefCounted>& part = parts_[key];
  if (!part) part = make();
  return part;
}

Pid::~Pid() {
  PidNamespace* ns = ns_.get();
  for (int level = ns->level(); level >= 0; --level) {
    {
      absl::MutexLock l(&ns->mutex_);
      // The number may have been taken by a successor while this was on its way down.
      auto it = ns->pids_.find(numbers_[level]);
      if (it != ns->pids_.end() && it->second == this) ns->pids_.erase(it);
    }
    ns = ns->parent_.get();
  }
}

int Pid::NumberIn(const PidNamespace& ns) const {
  if (ns.level() > ns_->level()) return 0;
  const PidNamespace* own = ns_.get();
  while (own->level() > ns.level()) own = own->parent().get();
  return own == &ns ? numbers_[ns.level()] : 0;
}

PidNamespace::PidNamespace(base::Ref<PidNamespace> parent, base::Ref<UserNamespace> user_ns)
    : Namespace(std::move(user_ns)),
      parent_(std::move(parent)),
      level_(parent_ ? parent_->level() + 1 : 0) {}

bool PidNamespace::IsAncestorOf(const PidNamespace& other) const {
  const PidNamespace* p = &other;
  while (p->level() > level_) p = p->parent().get();
  return p == this;
}

base::Result<int> PidNamespace::TakeNumber(int wanted) {
  if (closed_) return base::Error(ENOMEM);
  if (wanted != 0) {
    if (wanted < 0 || wanted >= kPidMax) return base::Error(EINVAL);
    // Only init may be made before init.
    if (wanted != 1 && pids_.empty()) return base::Error(EINVAL);
    if (pids_.contains(wanted)) return base::Error(EEXIST);
    return wanted;
  }
  // Cyclic, as Linux's idr_alloc_cyclic.
  int n = last_ + 1;
  bool wrapped = false;
  auto it = pids_.lower_bound(n);
  while (true) {
    if (n >= kPidMax) {
      if (wrapped) return base::Error(EAGAIN);
      wrapped = true;
      n = kReservedPids;
      it = pids_.lower_bound(n);
      continue;
    }
    if (it == pids_.end() || it->first != n) break;
    ++n;
    ++it;
  }
  last_ = n;
  return n;
}

base::Result<base::Ref<Pid>> PidNamespace::Allocate(std::vector<int> wanted) {
  if (wanted.size() > static_cast<size_t>(level_) + 1) return base::Error(EINVAL);
  if (level_ > kMaxPidNsLevel) return base::Error(ENOSPC);
  std::vector<int> numbers(level_ + 1);
  std::vector<PidNamespace*> path(level_ + 1);
  for (PidNamespace* ns = this; ns; ns = ns->parent_.get()) path[ns->level_] = ns;
  // Numbers are reserved by null entries until the Pid stands.
  base::Error error(EAGAIN);
  int level = level_;
  for (; level >= 0; --level) {
    PidNamespace* ns = path[level];
    size_t depth = level_ - level;
    absl::MutexLock l(&ns->mutex_);
    base::Result<int> n = ns->TakeNumber(depth < wanted.size() ? wanted[depth] : 0);
    if (!n.ok()) {
      error = n.error();
      break;
    }
    numbers[level] = *n;
    ns->pids_[*n] = nullptr;
  }
  if (level >= 0) {
    for (int done = level + 1; done <= level_; ++done) {
      absl::MutexLock l(&path[done]->mutex_);
      path[done]->pids_.erase(numbers[done]);
    }
    return error;
  }
  auto pid = base::Ref<Pid>::Adopt(new Pid(base::Ref<PidNamespace>(this), numbers));
  for (int i = 0; i <= level_; ++i) {
    absl::MutexLock l(&path[i]->mutex_);
    path[i]->pids_[numbers[i]] = pid.get();
  }
  return pid;
}

base::Ref<Pid> PidNamespace::Find(int number) const {
  absl::MutexLock l(&mutex_);
  auto it = pids_.find(number);
  if (it == pids_.end() || it->second == nullptr || !it->second->TryIncRef()) return nullptr;
  return base::Ref<Pid>::Adopt(it->second);
}

std::vector<int> PidNamespace::Numbers() const {
  absl::MutexLock l(&mutex_);
  std::vector<int> numbers;
  numbers.reserve(pids_.size());
  for (const auto& [number, pid] : pids_) {
    if (pid) numbers.push_back(number);
  }
  return numbers;
}

int PidNamespace::last_pid() const {
  absl::MutexLock l(&mutex_);
  return last_;
}

void PidNamespace::SetLastPid(int pid) {
  absl::MutexLock l(&mutex_);
  last_ = pid;
}

void PidNamespace::Close() {
  absl::MutexLock l(&mutex_);
  closed_ = true;
}

base::Status EnterNewUserNamespace(Credentials& creds) {
  if (creds.user_ns->level() >= 32) return base::Error(ENOSPC);
  if (!creds.user_ns->HasUid(creds.euid) || !creds.user_ns->HasGid(creds.egid)) {
    return base::Error(EPERM);
  }
  creds.user_ns = base::MakeRef<UserNamespace>(creds.user_ns, creds.euid, creds.egid);
  GrantAllCapabilities(creds);
  return base::Ok();
}

void GrantAllCapabilities(Credentials& creds) {
  creds.permitted = creds.effective = creds.bounding = kAllCaps;
  creds.inheritable = creds.ambient = 0;
  creds.securebits = 0;
}

}  // namespace sentry
