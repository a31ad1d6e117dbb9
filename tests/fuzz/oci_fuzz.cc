// config.json and process.json from anywhere, and the specification that runsc passes to the
// sentry.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "runsc/oci/parse.h"
#include "sentry/boot/boot_spec_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  auto check = [](const absl::Status& status) {
    // One line that says something.
    std::string message(status.message());
    if (message.empty() || message.find('\n') != std::string::npos) abort();
  };
  if (auto spec = runsc::oci::ParseSpec(text); !spec.ok()) check(spec.status());
  if (auto process = runsc::oci::ParseProcess(text); !process.ok()) check(process.status());
  std::string why;
  if (auto boot = sentry::DecodeBootSpec(text, &why); boot.ok()) {
    if (!sentry::DecodeBootSpec(sentry::EncodeBootSpec(*boot), &why).ok()) abort();
  }
  return 0;
}
