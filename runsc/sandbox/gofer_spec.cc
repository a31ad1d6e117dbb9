#include "runsc/sandbox/gofer_spec.h"

#include <nlohmann/json.hpp>

#include "sentry/boot/boot_spec_json.h"

namespace runsc {

using Json = nlohmann::json;

std::string EncodeGoferSpec(const GoferSpec& spec) {
  Json mounts = Json::array();
  for (const GoferMount& m : spec.mounts) {
    mounts.push_back({{"path", sentry::BytesToUtf8(m.path)}, {"readonly", m.readonly}});
  }
  return Json({{"mounts", mounts},
               {"haveLog", spec.have_log},
               {"rootless", spec.rootless},
               {"allowNoSeccomp", spec.allow_no_seccomp},
               {"exitCode", spec.exit_code}})
      .dump();
}

absl::StatusOr<GoferSpec> DecodeGoferSpec(std::string_view text) {
  const absl::Status bad = absl::InvalidArgumentError("malformed specification of the gofer");
  Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  auto flag = [](const Json& object, const char* name) {
    auto it = object.find(name);
    return it != object.end() && it->is_boolean() && it->get<bool>();
  };
  if (!json.is_object() || !json.contains("mounts") || !json["mounts"].is_array()) return bad;
  GoferSpec spec;
  spec.have_log = flag(json, "haveLog");
  spec.rootless = flag(json, "rootless");
  spec.allow_no_seccomp = flag(json, "allowNoSeccomp");
  auto code = json.find("exitCode");
  if (code == json.end() || !code->is_number_unsigned()) return bad;
  spec.exit_code = code->get<uint8_t>();
  for (const Json& item : json["mounts"]) {
    GoferMount m;
    if (!item.is_object() || !item.contains("path") || !item["path"].is_string() ||
        !sentry::Utf8ToBytes(item["path"].get_ref<const std::string&>(), &m.path)) {
      return bad;
    }
    m.readonly = flag(item, "readonly");
    spec.mounts.push_back(std::move(m));
  }
  return spec;
}

}  // namespace runsc
