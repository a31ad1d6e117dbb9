// NETLINK_ROUTE and NETLINK_GENERIC requests of a guest: whatever the bytes, the answers are
// well-formed messages.
#include <cstdint>
#include <cstdlib>

#include "sentry/net/netlink/generic.h"
#include "sentry/net/netlink/route.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static base::Ref<sentry::InetStack>* stack = [] {
    auto* made = new base::Ref<sentry::InetStack>(base::MakeRef<sentry::InetStack>());
    (*made)->SetUp(true);
    return made;
  }();
  if (size == 0) return 0;
  auto request = std::as_bytes(std::span(data + 1, size - 1));
  const bool admin = data[0] % 2 != 0, cap_ack = data[0] % 4 > 1;
  for (auto& answer : data[0] % 8 > 3
                          ? sentry::AnswerGeneric(7, cap_ack, request)
                          : sentry::AnswerRoute(**stack, nullptr, admin, cap_ack, 7, request)) {
    sentry::NetlinkBytes rest(answer);
    while (!rest.empty()) {
      if (!sentry::NextMessage(&rest)) abort();
    }
  }
  return 0;
}
