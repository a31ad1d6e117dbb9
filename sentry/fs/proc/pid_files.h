// The texts of the files of /proc/PID, by subject.
#pragma once

#include "sentry/fs/proc/pid_dir.h"

namespace sentry {

// pid_stat.cc
base::Result<std::string> PidStat(const PidContext& c);
base::Result<std::string> PidStatm(const PidContext& c);
base::Result<std::string> PidStatus(const PidContext& c);
// pid_maps.cc
base::Result<std::string> PidMaps(const PidContext& c);
base::Ref<FileDescription> OpenPidMaps(const PidContext& c, const OpenArgs& args,
                                       base::Ref<PseudoFile> file);
base::Result<std::string> PidSmaps(const PidContext& c);
base::Result<std::string> PidSmapsRollup(const PidContext& c);
// Bytes that may be resident: what is mapped and accessible, as the host does not tell. Anonymous
// and file pages.
struct Resident {
  uint64_t anon = 0, file = 0, shmem = 0;
  uint64_t total() const { return anon + file + shmem; }
};
Resident ResidentOf(Task& task);
// pid_sched.cc
base::Result<std::string> PidSched(const PidContext& c);
base::Status ResetSched(const PidContext& c, std::string_view data);
base::Result<std::string> PidSyscall(const PidContext& c);
base::Result<std::string> PidStack(const PidContext& c);
// pid_mounts.cc
base::Result<std::string> PidMounts(const PidContext& c);
base::Ref<FileDescription> OpenPidMounts(const PidContext& c, const OpenArgs& args,
                                         base::Ref<PseudoFile> file);
base::Result<std::string> PidMountInfo(const PidContext& c);
base::Result<std::string> PidMountStats(const PidContext& c);

// The reader's view of a kernel id.
uid_t ShownUid(uid_t kuid);
gid_t ShownGid(gid_t kgid);

}  // namespace sentry
