// runsc with a sandbox that has no kernel, for tests of everything around it.
#include "platform/platform.h"
#include "runsc/cmd/command.h"
#include "runsc/testing/fake_sandbox.h"

int main(int argc, char** argv) {
  sentry::BootHooks hooks;
  hooks.create_platform = [](const sentry::BootSpec&, std::string*) {
    return base::Result<std::unique_ptr<platform::Platform>>(std::unique_ptr<platform::Platform>());
  };
  hooks.create_sandbox = runsc::CreateFakeSandbox;
  return runsc::RunMain(argc, argv, hooks);
}
