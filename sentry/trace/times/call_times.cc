#include "sentry/trace/times/call_times.h"

#include <fmt/core.h>
#include <x86intrin.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/platform.h"
#include "sentry/base/time.h"
#include "sentry/fiber/phase.h"

namespace sentry::trace {

namespace {

// Two buckets for each power of two of ticks.
constexpr size_t kBuckets = 80;
constexpr const char* kPartNames[kCallParts] = {"whole", "handOff",   "sentry",
                                                "wait",  "hostCalls", "gofer"};

size_t BucketOf(uint64_t ticks) {
  if (ticks < 2) return 0;
  const int log = std::bit_width(ticks) - 1;
  const size_t half = ticks >> (log - 1) & 1;
  return std::min(kBuckets - 1, static_cast<size_t>(log) * 2 + half);
}
// The first value of the bucket after this one.
uint64_t UpperBound(size_t bucket) {
  const uint64_t base = uint64_t{1} << (bucket / 2);
  return bucket % 2 == 0 ? base + base / 2 : base * 2;
}

// A number that one thread writes and others read.
class Count {
 public:
  void Add(uint64_t n) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  uint64_t Get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

// What was measured of one call.
struct Samples {
  Count measured;
  std::array<Count, kCallParts> ticks;
  std::array<std::array<Count, kBuckets>, kCallParts> histogram;
};

// One thread's counters; never freed, since the sentry's workers live as long as it.
struct Block {
  std::array<Count, kMaxCounted> count;
  std::array<std::atomic<Samples*>, kMaxCounted> samples{};

  Samples& Of(int nr) {
    Samples* s = samples[nr].load(std::memory_order_relaxed);
    if (s == nullptr) {
      s = new Samples;
      samples[nr].store(s, std::memory_order_release);
    }
    return *s;
  }
};

struct Registry {
  const uint64_t start_ticks = __rdtsc();
  const int64_t start_ns = base::MonotonicNs();
  absl::Mutex mutex;
  std::vector<Block*> blocks ABSL_GUARDED_BY(mutex);

  static Registry& Get() {
    static auto* registry = new Registry;
    return *registry;
  }
  Block* NewBlock() {
    auto* block = new Block;
    absl::MutexLock l(&mutex);
    blocks.push_back(block);
    return block;
  }
};

// Not inlined: a fiber that parked may go on with another thread's block.
thread_local Block* tls_block = nullptr;

[[gnu::noinline]] Block& Mine() {
  asm volatile("" ::: "memory");
  if (tls_block == nullptr) [[unlikely]]
    tls_block = Registry::Get().NewBlock();
  return *tls_block;
}

void Record(int nr, const std::array<uint64_t, kCallParts>& ticks) {
  Samples& s = Mine().Of(nr);
  s.measured.Add(1);
  for (size_t i = 0; i < kCallParts; ++i) {
    s.ticks[i].Add(ticks[i]);
    s.histogram[i][BucketOf(ticks[i])].Add(1);
  }
}

// The sums of one call over all threads.
struct Total {
  uint64_t count = 0, measured = 0;
  std::array<uint64_t, kCallParts> ticks{};
  std::array<std::array<uint64_t, kBuckets>, kCallParts> histogram{};

  void Add(const Block& block, int nr) {
    count += block.count[nr].Get();
    const Samples* s = block.samples[nr].load(std::memory_order_acquire);
    if (s == nullptr) return;
    measured += s->measured.Get();
    for (size_t i = 0; i < kCallParts; ++i) {
      ticks[i] += s->ticks[i].Get();
      for (size_t b = 0; b < kBuckets; ++b) histogram[i][b] += s->histogram[i][b].Get();
    }
  }
  // The upper bound, in ticks, of the bucket that the quantile falls into.
  uint64_t Quantile(size_t part, double q) const {
    uint64_t all = 0;
    for (uint64_t n : histogram[part]) all += n;
    const auto wanted = static_cast<uint64_t>(static_cast<double>(all) * q);
    uint64_t seen = 0;
    for (size_t b = 0; b < kBuckets; ++b) {
      seen += histogram[part][b];
      if (seen > wanted) return UpperBound(b);
    }
    return 0;
  }
};

std::string PartJson(const Total& t, size_t part, double ns_per_tick) {
  const auto ns = [&](uint64_t ticks) { return static_cast<double>(ticks) * ns_per_tick; };
  std::string out =
      fmt::format(R"("{}":{{"meanNs":{:.1f},"p50Ns":{:.0f},"p99Ns":{:.0f},"histogram":[)",
                  kPartNames[part], ns(t.ticks[part]) / static_cast<double>(t.measured),
                  ns(t.Quantile(part, 0.5)), ns(t.Quantile(part, 0.99)));
  bool first = true;
  for (size_t b = 0; b < kBuckets; ++b) {
    if (t.histogram[part][b] == 0) continue;
    out += fmt::format("{}[{:.0f},{}]", first ? "" : ",", ns(UpperBound(b)), t.histogram[part][b]);
    first = false;
  }
  return out + "]}";
}

}  // namespace

void CallTimes::Begin(platform::Context& context, int nr) {
  if (unfinished_ >= 0) [[unlikely]]
    Finish(context);
  if (nr < 0 || nr >= kMaxCounted) return;
  Mine().count[nr].Add(1);
  ++made_;
  if (!stamped_) {
    if (made_ > kFirst && ++until_next_ < kEvery) return;
    // The next trap is to be measured; this one came without a stamp.
    until_next_ = 0;
    return Arm(context, true);
  }
  running_ = true;
  unfinished_ = nr;
  begin_ = __rdtsc();
  // What the guest's memory says is taken for no more than it can be.
  trapped_ = context.trapped_at();
  if (trapped_ < armed_ || trapped_ > begin_) trapped_ = begin_;
  Arm(context, made_ < kFirst);
  clock_ = fiber::CurrentPhaseClock();
  if (clock_) clock_->Start(begin_);
}

void CallTimes::Arm(platform::Context& context, bool on) {
  stamped_ = on;
  if (on) armed_ = __rdtsc();
  context.StampNextTrap(on);
}

void CallTimes::End(platform::Context& context) {
  if (!running_) [[likely]]
    return;
  running_ = false;
  end_ = __rdtsc();
  if (clock_) phases_ = clock_->Stop(end_);
}

void CallTimes::Finish(platform::Context& context) {
  const int nr = unfinished_;
  unfinished_ = -1;
  running_ = false;
  const uint64_t now = __rdtsc();
  const uint64_t resumed = std::clamp(context.resumed_at(), end_, std::max(end_, now));
  const uint64_t hand_off = (begin_ - trapped_) + (resumed - end_);
  const uint64_t inside = end_ - begin_;
  Record(nr, {hand_off + inside, hand_off, phases_[0], phases_[1], phases_[2], phases_[3]});
}

std::string CallTimesJson(const char* (*name)(int number)) {
  Registry& registry = Registry::Get();
  std::vector<Block*> blocks;
  {
    absl::MutexLock l(&registry.mutex);
    blocks = registry.blocks;
  }
  const double ns_per_tick =
      static_cast<double>(std::max<int64_t>(1, base::MonotonicNs() - registry.start_ns)) /
      static_cast<double>(std::max<uint64_t>(1, __rdtsc() - registry.start_ticks));
  std::string out = R"({"calls":[)";
  bool first = true;
  for (int nr = 0; nr < kMaxCounted; ++nr) {
    Total total;
    for (const Block* block : blocks) total.Add(*block, nr);
    if (total.count == 0) continue;
    out += fmt::format(R"({}{{"name":"{}","number":{},"count":{},"measured":{})", first ? "" : ",",
                       name(nr), nr, total.count, total.measured);
    first = false;
    if (total.measured > 0) {
      out += R"(,"parts":{)";
      for (size_t i = 0; i < kCallParts; ++i) {
        out += (i > 0 ? "," : "") + PartJson(total, i, ns_per_tick);
      }
      out += "}";
    }
    out += "}";
  }
  return out + "]}";
}

}  // namespace sentry::trace
