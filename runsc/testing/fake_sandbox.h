// A Sandbox without a kernel, to test the life of containers: its "programs" are threads that act
// on their first argument.
//   echo TEXT...   writes the words and a line feed to descriptor 1
//   cat            copies descriptor 0 to 1
//   exit N         exits with N
//   signal N       dies of signal N
//   sleep SECONDS  sleeps; dies of any signal but SIGWINCH and SIGCONT
//   tty            waits for a new window size, writes "ROWS COLS", exits with 0
//   env NAME       writes the variable
//   hostcall N     makes host call N
// Anything else is an executable that is not found.
#pragma once

#include "sentry/boot/sandbox.h"

namespace runsc {

base::Result<std::unique_ptr<sentry::Sandbox>> CreateFakeSandbox(
    const sentry::BootSpec& spec, sentry::SandboxFds fds,
    std::unique_ptr<platform::Platform> platform, std::string* why);

}  // namespace runsc
