// runsc syscalls
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "runsc/cmd/command.h"
#include "runsc/container/container.h"

namespace runsc {
namespace {

using Json = nlohmann::json;

// The parts in the order of the columns, as the sandbox names them.
constexpr const char* kParts[] = {"whole", "handOff", "sentry", "wait", "hostCalls", "gofer"};

double Number(const Json& object, const char* key) {
  auto it = object.find(key);
  return it != object.end() && it->is_number() ? it->get<double>() : 0;
}

double PartMean(const Json& call, const char* part) {
  auto parts = call.find("parts");
  if (parts == call.end() || !parts->is_object()) return -1;
  auto it = parts->find(part);
  return it != parts->end() && it->is_object() ? Number(*it, "meanNs") : -1;
}

// What the call cost in all, as far as it was measured: the order of the table.
double Cost(const Json& call) {
  return Number(call, "count") * std::max(0.0, PartMean(call, "whole"));
}

std::string Time(double ns) {
  char text[32];
  if (ns < 0) {
    snprintf(text, sizeof(text), "-");
  } else if (ns < 1e4) {
    snprintf(text, sizeof(text), "%.0f", ns);
  } else {
    snprintf(text, sizeof(text), "%.0fk", ns / 1e3);
  }
  return text;
}

void PrintTable(std::vector<Json> calls) {
  std::stable_sort(calls.begin(), calls.end(),
                   [](const Json& a, const Json& b) { return Cost(a) > Cost(b); });
  double total = 0;
  for (const Json& call : calls) total += Cost(call);
  printf("%-20s %10s %9s %6s %8s %8s %8s %8s %8s %8s %8s %8s\n", "SYSCALL", "COUNT", "MEASURED",
         "TIME", "MEAN-NS", "P50", "P99", "HANDOFF", "SENTRY", "WAIT", "HOST", "GOFER");
  for (const Json& call : calls) {
    auto name = call.find("name");
    auto parts = call.find("parts");
    const Json whole = parts != call.end() && parts->is_object() && parts->contains("whole")
                           ? (*parts)["whole"]
                           : Json::object();
    printf("%-20s %10.0f %9.0f %5.1f%%",
           name != call.end() && name->is_string() ? name->get<std::string>().c_str() : "?",
           Number(call, "count"), Number(call, "measured"),
           total > 0 ? 100 * Cost(call) / total : 0.0);
    const bool measured = !whole.empty();
    printf(" %8s %8s %8s", Time(measured ? Number(whole, "meanNs") : -1).c_str(),
           Time(measured ? Number(whole, "p50Ns") : -1).c_str(),
           Time(measured ? Number(whole, "p99Ns") : -1).c_str());
    for (size_t i = 1; i < std::size(kParts); ++i)
      printf(" %8s", Time(PartMean(call, kParts[i])).c_str());
    printf("\n");
  }
}

}  // namespace

void AddSyscallsCommand(Context& context) {
  static std::string format = "table";
  Command command(context, "syscalls",
                  "syscalls shows how often each system call was made and where its time went",
                  "<container-id>",
                  "Times are nanoseconds, measured on a sample of the calls: the whole from the "
                  "guest's trap until\n"
                  "it runs again, and the means of its parts: the hand-off, the sentry's own code, "
                  "waiting, host\n"
                  "calls and the gofer. Calls that the stub answers itself do not appear.");
  command.Text("--format,-f", &format, "select one of: table or json (default: \"table\")");
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, 1); !s.ok()) return s;
    if (format != "table" && format != "json") {
      return absl::InvalidArgumentError("invalid format option");
    }
    if (auto s = CheckId(args[0]); !s.ok()) return s;
    Store store = context.store();
    auto state = store.Load(args[0]);
    if (!state.ok()) return state.status();
    auto sandbox = ConnectSandbox(store, args[0]);
    if (!sandbox.ok()) return sandbox.status();
    auto times = sandbox->SyscallTimes();
    if (!times.ok()) return absl::UnavailableError("the sandbox does not answer");
    Json json = Json::parse(*times, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("calls") || !json["calls"].is_array()) {
      return absl::InternalError("the sandbox sent no table");
    }
    if (format == "json") {
      printf("%s\n", json.dump().c_str());
    } else {
      PrintTable(json["calls"].get<std::vector<Json>>());
    }
    return 0;
  });
}

}  // namespace runsc
