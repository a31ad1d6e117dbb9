// A cursor over a JSON document that checks types and remembers the first mistake with its path.
// Straight-line parsing code calls it and looks at the error once, at the end.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace runsc::oci {

// A value of the document, or nothing (a field that is absent or null). `error` and the document
// outlive it.
class Node {
 public:
  Node(const nlohmann::json* value, std::string path, std::string* error)
      : value_(value), path_(std::move(path)), error_(error) {}

  bool present() const { return value_ != nullptr; }
  const std::string& path() const { return path_; }
  // The member `key`; absent if this is absent. An error if this is not an object.
  Node operator[](const char* key) const;
  // Each reads the value if it is present, and reports one of another type.
  std::string String() const;
  std::string RequiredString() const;  // present and not empty
  std::string AbsolutePath() const;    // as RequiredString, begins with '/'
  bool Bool() const;
  std::optional<int64_t> Int(int64_t min, int64_t max) const;
  std::optional<uint64_t> Unsigned(uint64_t max) const;
  uint32_t Uint32() const;  // 0 if absent
  std::vector<std::string> Strings() const;
  std::vector<Node> Items() const;  // of an array
  void ForEachMember(const std::function<void(const std::string& key, const Node&)>& f) const;
  // Records "<path>: <what>" unless there is an error already.
  void Fail(const std::string& what) const;

 private:
  const nlohmann::json* value_;
  std::string path_;
  std::string* error_;
};

// Parses `text` into `document`; on error returns one line with the position.
std::optional<std::string> ParseJson(std::string_view text, nlohmann::json* document);

}  // namespace runsc::oci
