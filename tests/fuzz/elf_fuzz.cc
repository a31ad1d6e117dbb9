// libFuzzer: any bytes as a program. Whatever they are, the loader returns an error or orders that
// a host could carry out. The same bytes also stand as the dynamic loader.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "sentry/loader/loader_test_util.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using sentry::loader::LoaderWorld;
  LoaderWorld world;
  const std::string_view content(reinterpret_cast<const char*>(data), size);
  world.Add("/lib64/ld-linux-x86-64.so.2", content);
  world.Add("/bin/p", content);
  auto image = world.Prepare("/bin/p", {"p"}, {"A=1"});
  if (!image.ok()) return 0;
  auto loaded = world.Load(*image, 0, 0x7fff'0000'0000, 0, /*model=*/false);
  if (!loaded.result.ok()) return 0;
  for (const auto& order : loaded.runner->all) {
    const auto* map = std::get_if<platform::order::Mmap>(&order);
    if (map == nullptr) continue;
    if (map->addr % 4096 || map->length % 4096 || map->length == 0 || map->addr < 0x10000 ||
        map->addr + map->length > 0x7fff'0000'0000) {
      __builtin_trap();
    }
  }
  return 0;
}
