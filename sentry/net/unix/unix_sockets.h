// The AF_UNIX sockets of a network namespace (Linux: net->unx.table).
#pragma once

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/kernel/namespaces.h"

namespace sentry {

class UnixEndpoint;

// Those that have a description. Thread-safe.
class UnixSockets : public base::RefCounted {
 public:
  static base::Ref<UnixSockets> Of(NetNamespace& ns);
  // Until it is removed, which it is before it goes.
  void Add(UnixEndpoint* endpoint);
  void Remove(UnixEndpoint* endpoint);
  // In the order of their inodes.
  std::vector<base::Ref<UnixEndpoint>> All();

 private:
  absl::Mutex mutex_;  // leaf
  absl::flat_hash_set<UnixEndpoint*> sockets_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
