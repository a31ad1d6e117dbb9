// runsc list
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "runsc/cmd/command.h"

namespace runsc {
namespace {

// The user's name from /etc/passwd, else "#<uid>". (Not getpwuid: a static program has no NSS.)
std::string UserName(uid_t uid) {
  if (auto text = ReadFile("/etc/passwd", 16 << 20); text.ok()) {
    std::istringstream lines(*text);
    for (std::string line; std::getline(lines, line);) {
      size_t name = line.find(':');
      size_t password = line.find(':', name + 1);
      if (name == std::string::npos || password == std::string::npos) continue;
      if (strtoul(line.c_str() + password + 1, nullptr, 10) == uid) return line.substr(0, name);
    }
  }
  return "#" + std::to_string(uid);
}

struct Row {
  ContainerState state;
  std::string status, owner;
  int pid = 0;
};

// As Go's tabwriter with runc's settings: columns of at least 12, three blanks between.
void PrintTable(const std::vector<Row>& rows) {
  std::vector<std::vector<std::string>> cells = {
      {"ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"}};
  for (const Row& r : rows) {
    cells.push_back(
        {r.state.id, std::to_string(r.pid), r.status, r.state.bundle, r.state.created, r.owner});
  }
  std::vector<size_t> widths(6, 12);
  for (const auto& line : cells) {
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size() + 3);
  }
  for (const auto& line : cells) {
    std::string out;
    for (size_t i = 0; i < line.size(); ++i) {
      out += line[i];
      if (i + 1 < line.size()) out.append(widths[i] - line[i].size(), ' ');
    }
    printf("%s\n", out.c_str());
  }
}

void PrintJson(const std::vector<Row>& rows) {
  // runc prints null for an empty list.
  nlohmann::ordered_json list;
  for (const Row& r : rows) {
    nlohmann::ordered_json item = {{"ociVersion", r.state.oci_version},
                                   {"id", r.state.id},
                                   {"pid", r.pid},
                                   {"status", r.status},
                                   {"bundle", r.state.bundle},
                                   {"rootfs", r.state.rootfs},
                                   {"created", r.state.created}};
    if (!r.state.annotations.empty()) item["annotations"] = r.state.annotations;
    item["owner"] = r.owner;
    list.push_back(std::move(item));
  }
  printf("%s\n", list.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

}  // namespace

void AddListCommand(Context& context) {
  static std::string format = "table";
  static bool quiet = false;
  Command command(context, "list", "lists containers started by runsc with the given root", "",
                  "Where the given root is specified via the global option \"--root\".");
  command.Text("--format,-f", &format, "select one of: table or json (default: \"table\")");
  command.Flag("--quiet,-q", &quiet, "display only container IDs");
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 0, 0); !s.ok()) return s;
    Store store = context.store();
    auto ids = store.List();
    if (!ids.ok()) return ids.status();
    std::vector<Row> rows;
    for (const std::string& id : *ids) {
      auto state = store.Load(id);
      // As runc: what cannot be loaded is named, and the others are listed.
      if (!state.ok()) {
        if (!absl::IsNotFound(state.status())) {
          fprintf(stderr, "load container %s: %s\n", id.c_str(),
                  std::string(state.status().message()).c_str());
        }
        continue;
      }
      ContainerStatus status = state->CurrentStatus();
      Row row;
      row.status = StatusName(status);
      row.owner = UserName(state->owner_uid);
      row.pid = status == ContainerStatus::kStopped ? 0 : state->init().pid;
      row.state = std::move(*state);
      rows.push_back(std::move(row));
    }
    if (quiet) {
      for (const Row& r : rows) printf("%s\n", r.state.id.c_str());
    } else if (format == "table") {
      PrintTable(rows);
    } else if (format == "json") {
      PrintJson(rows);
    } else {
      return absl::InvalidArgumentError("invalid format option");
    }
    return 0;
  });
}

}  // namespace runsc
