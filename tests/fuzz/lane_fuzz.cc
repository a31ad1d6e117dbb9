// A stream in a lane whose other users write whatever they like between the sentry's operations:
// the header of the lane is overwritten by the input's bytes, in any order with reads, writes and
// questions.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "sentry/net/byte_stream.h"

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

}  // namespace
}  // namespace sentry

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sentry;  // NOLINT
  auto arena = LaneArena::OfDomain("fuzz");
  if (!arena.ok()) abort();
  auto holder = base::MakeRef<Holder>();
  ByteStream stream;
  if (!stream.EnterLane(**arena, *holder, *holder)) abort();
  stream.OpenLane(true);
  platform::StreamLane* lane = (*arena)->lane(platform::LaneIndex(stream.LaneName()));
  Input input(std::span(data, size));
  while (!input.empty()) Step(stream, lane, &input);
  return 0;
}
