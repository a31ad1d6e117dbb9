// BootSpec, ContainerSpec and ProcessSpec as JSON, between runsc and the sentry. Every field is
// written; a field that is missing, unknown or of a wrong type is an error. Bytes above 0x7f of a
// string are written as the code points U+0080 to U+00FF, so that strings that are not UTF-8
// survive.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "sentry/base/result.h"
#include "sentry/boot/boot_spec.h"

namespace sentry {

// The largest text that the decoders accept.
inline constexpr size_t kMaxSpecBytes = 32 << 20;

std::string EncodeBootSpec(const BootSpec& spec);
std::string EncodeContainerSpec(const ContainerSpec& spec);
std::string EncodeProcessSpec(const ProcessSpec& spec);
// EINVAL and one line in `why` that names the field.
base::Result<BootSpec> DecodeBootSpec(std::string_view text, std::string* why);
// From JSON as parsed: a request of the control socket holds it, however deep its other members go.
base::Result<ContainerSpec> DecodeContainerSpec(const nlohmann::json& json, std::string* why);
base::Result<ProcessSpec> DecodeProcessSpec(const nlohmann::json& json, std::string* why);

// The string encoding described above, for others who put bytes into JSON. Decode fails on code
// points above U+00FF.
std::string BytesToUtf8(std::string_view bytes);
bool Utf8ToBytes(std::string_view utf8, std::string* bytes);

}  // namespace sentry
