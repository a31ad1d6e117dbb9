#include "runsc/oci/json_reader.h"

#include <limits>
#include <nlohmann/json.hpp>

namespace runsc::oci {

using Json = nlohmann::json;

namespace {

std::string TypeName(const Json& value) {
  switch (value.type()) {
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return "a boolean";
    default:
      return "a number";
  }
}

// Remembers where parsing failed; exceptions stay out of it.
class ErrorSax : public nlohmann::detail::json_sax_dom_parser<Json> {
 public:
  explicit ErrorSax(Json* document) : json_sax_dom_parser(*document, /*allow_exceptions=*/false) {}
  template <class Exception>
  bool parse_error(size_t position, const std::string& last_token, const Exception& e) {
    this->position = position;
    message = e.what();
    return json_sax_dom_parser::parse_error(position, last_token, e);
  }
  size_t position = 0;
  std::string message;
};

}  // namespace

Node Node::operator[](const char* key) const {
  std::string path = path_.empty() ? key : path_ + "." + key;
  if (value_ == nullptr) return Node(nullptr, std::move(path), error_);
  if (!value_->is_object()) {
    Fail("must be an object, is " + TypeName(*value_));
    return Node(nullptr, std::move(path), error_);
  }
  auto it = value_->find(key);
  bool absent = it == value_->end() || it->is_null();
  return Node(absent ? nullptr : &*it, std::move(path), error_);
}

void Node::Fail(const std::string& what) const {
  if (error_->empty()) *error_ = (path_.empty() ? "the document" : path_) + ": " + what;
}

std::string Node::String() const {
  if (value_ == nullptr) return "";
  if (!value_->is_string()) {
    Fail("must be a string, is " + TypeName(*value_));
    return "";
  }
  auto s = value_->get<std::string>();
  if (s.find('\0') != std::string::npos) Fail("must not contain a NUL");
  return s;
}

std::string Node::RequiredString() const {
  std::string s = String();
  if (value_ == nullptr) Fail("is missing");
  if (s.empty()) Fail("must not be empty");
  return s;
}

std::string Node::AbsolutePath() const {
  std::string s = RequiredString();
  if (!s.empty() && s[0] != '/') Fail("must be an absolute path, is \"" + s + "\"");
  return s;
}

bool Node::Bool() const {
  if (value_ == nullptr) return false;
  if (!value_->is_boolean()) {
    Fail("must be a boolean, is " + TypeName(*value_));
    return false;
  }
  return value_->get<bool>();
}

std::optional<int64_t> Node::Int(int64_t min, int64_t max) const {
  if (value_ == nullptr) return std::nullopt;
  if (!value_->is_number_integer()) {
    Fail(value_->is_number() ? "must be an integer" : "must be a number, is " + TypeName(*value_));
    return std::nullopt;
  }
  bool too_large = value_->is_number_unsigned() &&
                   value_->get<uint64_t>() > static_cast<uint64_t>(std::max<int64_t>(max, 0));
  if (too_large || (!value_->is_number_unsigned() && value_->get<int64_t>() > max) ||
      value_->get<int64_t>() < min) {
    Fail("must be from " + std::to_string(min) + " to " + std::to_string(max) + ", is " +
         value_->dump());
    return std::nullopt;
  }
  return value_->get<int64_t>();
}

std::optional<uint64_t> Node::Unsigned(uint64_t max) const {
  if (value_ == nullptr) return std::nullopt;
  if (!value_->is_number_integer()) {
    Fail(value_->is_number() ? "must be an integer" : "must be a number, is " + TypeName(*value_));
    return std::nullopt;
  }
  if (!value_->is_number_unsigned() || value_->get<uint64_t>() > max) {
    Fail("must be from 0 to " + std::to_string(max) + ", is " + value_->dump());
    return std::nullopt;
  }
  return value_->get<uint64_t>();
}

uint32_t Node::Uint32() const {
  return static_cast<uint32_t>(Unsigned(std::numeric_limits<uint32_t>::max()).value_or(0));
}

std::vector<Node> Node::Items() const {
  std::vector<Node> items;
  if (value_ == nullptr) return items;
  if (!value_->is_array()) {
    Fail("must be an array, is " + TypeName(*value_));
    return items;
  }
  for (size_t i = 0; i < value_->size(); ++i) {
    const Json& item = (*value_)[i];
    Node node(&item, path_ + "[" + std::to_string(i) + "]", error_);
    if (item.is_null()) node.Fail("must not be null");
    items.push_back(std::move(node));
  }
  return items;
}

std::vector<std::string> Node::Strings() const {
  std::vector<std::string> out;
  for (const Node& item : Items()) out.push_back(item.String());
  return out;
}

void Node::ForEachMember(const std::function<void(const std::string&, const Node&)>& f) const {
  if (value_ == nullptr) return;
  if (!value_->is_object()) return Fail("must be an object, is " + TypeName(*value_));
  for (auto it = value_->begin(); it != value_->end(); ++it) {
    f(it.key(), Node(it->is_null() ? nullptr : &*it, path_ + "." + it.key(), error_));
  }
}

std::optional<std::string> ParseJson(std::string_view text, Json* document) {
  ErrorSax sax(document);
  if (Json::sax_parse(text.begin(), text.end(), &sax)) return std::nullopt;
  size_t line = 1, column = 1;
  for (size_t i = 0; i + 1 < sax.position && i < text.size(); ++i) {
    ++column;
    if (text[i] == '\n') ++line, column = 1;
  }
  // The library's text names itself and the position first: "[...] parse error at line ...: what".
  std::string what = sax.message;
  if (size_t at = what.find(": "); at != std::string::npos) what = what.substr(at + 2);
  for (char& c : what) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  return "malformed JSON at line " + std::to_string(line) + ", column " + std::to_string(column) +
         ": " + what;
}

}  // namespace runsc::oci
