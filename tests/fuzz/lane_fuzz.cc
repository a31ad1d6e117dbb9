// A stream in a lane whose other users write whatever they like between the sentry's operations:
// the header of the lane is overwritten by the input's bytes, in any order with reads, writes and
// questions. And a pipe and a counter in lanes, the same way.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "sentry/fs/eventfd/eventfd.h"
#include "sentry/fs/pipe/pipe.h"
#include "sentry/vfs/byte_stream.h"

namespace sentry {
namespace {

class Holder : public base::RefCounted, public LaneUser {
 public:
  void LaneWritten() override {}
  void LaneRead() override {}
};

class Bytes : public IoSource, public IoDest {
 public:
  explicit Bytes(size_t n) : left_(n) {}
  size_t remaining() const override { return left_; }
  base::Result<size_t> Get(std::span<std::byte> dst) override {
    const size_t n = std::min(dst.size(), left_);
    memset(dst.data(), 'x', n);
    left_ -= n;
    return n;
  }
  base::Result<size_t> Put(std::span<const std::byte> src) override {
    const size_t n = std::min(src.size(), left_);
    for (std::byte b : src.first(n)) sum_ = static_cast<uint8_t>(sum_ + static_cast<uint8_t>(b));
    left_ -= n;
    return n;
  }

 private:
  size_t left_;
  volatile uint8_t sum_ = 0;
};

class Input {
 public:
  explicit Input(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  bool empty() const { return bytes_.empty(); }
  uint64_t Take(size_t n) {
    uint64_t value = 0;
    n = std::min(n, bytes_.size());
    memcpy(&value, bytes_.data(), n);
    bytes_ = bytes_.subspan(n);
    return value;
  }

 private:
  std::span<const uint8_t> bytes_;
};

void Scribble(platform::StreamLane* lane, Input* input) {
  constexpr size_t kWords = sizeof(*lane) / sizeof(uint64_t);
  const uint64_t where = input->Take(1) % kWords, value = input->Take(1 + input->Take(1) % 8);
  memcpy(reinterpret_cast<uint64_t*>(lane) + where, &value, sizeof(value));
  // Who keeps a lock is waited for, which is not what is looked at here.
  lane->write_lock = lane->read_lock = 0;
}

void Step(ByteStream& stream, platform::StreamLane* lane, Input* input) {
  switch (input->Take(1) % 6) {
    case 0:
    case 1:
      Scribble(lane, input);
      break;
    case 2: {
      ByteStream::WriterTurn turn(stream);
      Bytes bytes(input->Take(2));
      const size_t room = std::min(stream.Room(), bytes.remaining());
      if (auto n = stream.Fill(bytes, room); n.ok()) stream.Produced(*n);
      break;
    }
    case 3: {
      ByteStream::ReaderTurn turn(stream);
      const uint64_t from = stream.read();
      Bytes bytes(input->Take(2));
      const size_t n = std::min(stream.UsedFrom(from), bytes.remaining());
      if (auto done = stream.Copy(from, n, bytes); done.ok()) stream.ConsumedTo(from + *done);
      break;
    }
    case 4:
      stream.WantData(static_cast<platform::LaneWish>(input->Take(1)));
      stream.TakeWantRoom();
      stream.set_limit(input->Take(3));
      break;
    case 5:
      stream.Rewind();
      stream.OpenLane(stream.Writable());
      break;
  }
  if (stream.Used() > ByteStream::kSize || stream.Room() > ByteStream::kSize) abort();
}

void PipeStep(Pipe& pipe, platform::StreamLane* lane, Input* input) {
  bool broken;
  Bytes bytes(input->Take(2));
  switch (input->Take(1) % 7) {
    case 0:
    case 1:
      Scribble(lane, input);
      break;
    case 2:
      if (bytes.remaining() > 0) (void)pipe.Write(bytes, /*nonblock=*/true, false, &broken);
      break;
    case 3:
      (void)pipe.Read(bytes, /*nonblock=*/true);
      break;
    case 4:
      (void)pipe.Peek(bytes, /*nonblock=*/true);
      pipe.Discard(input->Take(3));
      break;
    case 5:
      (void)pipe.SetSize(input->Take(3), /*privileged=*/false);
      (void)pipe.WaitForRoom(/*nonblock=*/true);
      break;
    case 6:
      if (input->Take(1) % 16 == 0) (void)pipe.Write(bytes, /*nonblock=*/true, true, &broken);
      break;
  }
  if (pipe.BytesReadable() > std::max<size_t>(pipe.size(), ByteStream::kSize)) abort();
}

void CounterStep(EventCounter& counter, platform::StreamLane* lane, Input* input) {
  uint64_t value = 0;
  switch (input->Take(1) % 4) {
    case 0:
      Scribble(lane, input);
      break;
    case 1:
      counter.TryAdd(input->Take(8));
      break;
    case 2:
      if (counter.TryTake(&value) && value == 0) abort();
      break;
    case 3:
      counter.Readiness(static_cast<platform::LaneWish>(input->Take(1)));
      break;
  }
}

void FuzzStream(LaneArena& arena, Input* input) {
  auto holder = base::MakeRef<Holder>();
  ByteStream stream;
  if (!stream.EnterLane(arena, *holder, *holder)) abort();
  stream.OpenLane(true);
  platform::StreamLane* lane = arena.lane(platform::LaneIndex(stream.LaneName()));
  while (!input->empty()) Step(stream, lane, input);
}

void FuzzPipe(LaneArena& arena, Input* input) {
  auto pipe = base::MakeRef<Pipe>();
  uint32_t seen;
  if (!pipe->Open(true, true, false, false, &seen).ok()) abort();
  platform::StreamLane* lane = arena.lane(platform::LaneIndex(pipe->EnterLane(arena)));
  while (!input->empty()) PipeStep(*pipe, lane, input);
}

void FuzzCounter(LaneArena& arena, Input* input) {
  auto counter = base::MakeRef<EventCounter>(input->Take(1), input->Take(1) % 2 != 0);
  platform::StreamLane* lane = arena.lane(platform::LaneIndex(counter->EnterLane(arena)));
  while (!input->empty()) CounterStep(*counter, lane, input);
}

}  // namespace
}  // namespace sentry

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sentry;  // NOLINT
  auto arena = LaneArena::OfDomain("fuzz");
  if (!arena.ok()) abort();
  Input input(std::span(data, size));
  switch (input.Take(1) % 3) {
    case 0:
      FuzzStream(**arena, &input);
      break;
    case 1:
      FuzzPipe(**arena, &input);
      break;
    default:
      FuzzCounter(**arena, &input);
      break;
  }
  return 0;
}
