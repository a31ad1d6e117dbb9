#include "sentry/fs/devpts/line_discipline.h"

#include <signal.h>

#include "gtest/gtest.h"

namespace sentry {
namespace {

class LineTest : public ::testing::Test, public TtySink {
 protected:
  void PutOutput(uint8_t b) override { out_ += static_cast<char>(b); }
  void SignalForeground(int signo) override { signals_.push_back(signo); }
  void DropOutput() override { out_.clear(); }
  void SetStopped(bool stopped) override { stopped_ = stopped; }
  bool stopped() const override { return stopped_; }

  size_t Type(std::string_view s) {
    return line_.Receive({reinterpret_cast<const uint8_t*>(s.data()), s.size()});
  }
  std::string Read(size_t n = 4096) {
    std::string s(n, '\0');
    bool end;
    s.resize(line_.Read({reinterpret_cast<uint8_t*>(s.data()), n}, &end));
    end_ = end;
    return s;
  }
  std::string Print(std::string_view s, size_t room = 1000) {
    out_.clear();
    taken_ = line_.Write({reinterpret_cast<const uint8_t*>(s.data()), s.size()}, room);
    return out_;
  }
  void Set(void (*change)(KTermios&)) {
    KTermios t = line_.termios();
    change(t);
    line_.SetTermios(t);
  }
  std::string out_;
  std::vector<int> signals_;
  bool stopped_ = false, end_ = false;
  size_t taken_ = 0;
  LineDiscipline line_{*this, DefaultTermios()};
};

TEST_F(LineTest, LinesAndEcho) {
  Type("ab");
  EXPECT_FALSE(line_.InputAvailable());
  Type("c\r");
  EXPECT_TRUE(line_.InputAvailable());
  EXPECT_EQ(out_, "abc\r\n");
  EXPECT_EQ(line_.InputCount(), 4u);
  EXPECT_EQ(Read(), "abc\n");
  EXPECT_TRUE(end_);
}

TEST_F(LineTest, OneLineForEachRead) {
  Type("one\ntwo\n");
  EXPECT_EQ(Read(2), "on");
  EXPECT_FALSE(end_);
  EXPECT_EQ(Read(), "e\n");
  EXPECT_EQ(Read(), "two\n");
}

TEST_F(LineTest, EraseWordAndKill) {
  Type("hello wor\x7f\x7f\x7f");
  EXPECT_EQ(out_, "hello wor\b \b\b \b\b \b");
  Type("\x17\n");  // VWERASE takes "hello "
  EXPECT_EQ(Read(), "\n");
  Type("abc\x15x\n");
  EXPECT_EQ(Read(), "x\n");
}

TEST_F(LineTest, EraseTakesAWholeCharacter) {
  Set([](KTermios& t) { t.c_iflag |= IUTF8; });
  Type("a\xc3\xa9\x7f\n");
  EXPECT_EQ(out_, "a\xc3\xa9\b \b\r\n");
  EXPECT_EQ(Read(), "a\n");
}

TEST_F(LineTest, ControlCharactersEchoAndErase) {
  Type("\x01\x7f");
  EXPECT_EQ(out_, "^A\b \b\b \b");
  out_.clear();
  Type("a\t\x7f");
  EXPECT_EQ(out_, "a\t\b\b\b\b\b\b\b");
}

TEST_F(LineTest, EndOfFile) {
  Type("abc\x04");
  EXPECT_EQ(Read(), "abc");
  EXPECT_FALSE(line_.InputAvailable());
  Type("\x04");
  EXPECT_TRUE(line_.InputAvailable());
  EXPECT_EQ(line_.InputCount(), 0u);
  EXPECT_EQ(Read(), "");
  EXPECT_TRUE(end_);
  Type("abc\x04");
  EXPECT_EQ(Read(3), "abc");  // takes the mark with it
  EXPECT_FALSE(line_.InputAvailable());
}

TEST_F(LineTest, Signals) {
  Type("abc\x03");
  EXPECT_EQ(signals_, std::vector<int>{SIGINT});
  EXPECT_EQ(out_, "^C");
  Type("\n");
  EXPECT_EQ(Read(), "\n");
  Type("\x1c\x1a");
  EXPECT_EQ(signals_, (std::vector<int>{SIGINT, SIGQUIT, SIGTSTP}));
  Set([](KTermios& t) { t.c_lflag |= NOFLSH; });
  Type("abc\x03\n");
  EXPECT_EQ(Read(), "abc\n");
}

TEST_F(LineTest, FlowControl) {
  Type("\x13");
  EXPECT_TRUE(stopped_);
  Type("a");
  EXPECT_TRUE(stopped_);
  Type("\x11");
  EXPECT_FALSE(stopped_);
  Set([](KTermios& t) { t.c_iflag |= IXANY; });
  Type("\x13q");
  EXPECT_FALSE(stopped_);
}

TEST_F(LineTest, LiteralNext) {
  Type("\x16\x03\n");
  EXPECT_TRUE(signals_.empty());
  EXPECT_EQ(Read(), "\x03\n");
}

TEST_F(LineTest, RawMode) {
  Set([](KTermios& t) {
    t.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO | ISIG | IEXTEN);
    t.c_iflag = 0;
    t.c_cc[VMIN] = 3;
  });
  Type("\x03\r");
  EXPECT_TRUE(line_.InputAvailable());
  EXPECT_FALSE(line_.PollReadable());
  Type("x");
  EXPECT_TRUE(line_.PollReadable());
  EXPECT_EQ(Read(), "\x03\rx");
  EXPECT_EQ(out_, "");
}

TEST_F(LineTest, SwitchingModesKeepsWhatWasTyped) {
  Type("abc");
  Set([](KTermios& t) { t.c_lflag &= ~static_cast<tcflag_t>(ICANON); });
  EXPECT_TRUE(line_.InputAvailable());
  EXPECT_EQ(Read(2), "ab");
  Set([](KTermios& t) { t.c_lflag |= ICANON; });
  EXPECT_EQ(Read(), "c");
}

TEST_F(LineTest, OverlongLineCanStillBeEnded) {
  EXPECT_EQ(Type(std::string(6000, 'x')), 6000u);
  Type("\n");
  std::string s = Read(8000);
  EXPECT_EQ(s.size(), 4096u);
  EXPECT_EQ(s.back(), '\n');
}

TEST_F(LineTest, FullRawBufferRefuses) {
  Set([](KTermios& t) { t.c_lflag &= ~static_cast<tcflag_t>(ICANON); });
  EXPECT_EQ(Type(std::string(6000, 'x')), 4095u);
  Read(10);
  EXPECT_EQ(Type("abcdefghijklmnop"), 10u);
}

TEST_F(LineTest, OutputProcessing) {
  EXPECT_EQ(Print("a\nb\n"), "a\r\nb\r\n");
  EXPECT_EQ(Print("abc\n", 4), "abc");
  EXPECT_EQ(taken_, 3u);
  Print("\n");
  Set([](KTermios& t) { t.c_oflag |= XTABS; });
  EXPECT_EQ(Print("ab\tc"), "ab      c");
  Set([](KTermios& t) { t.c_oflag = 0; });
  EXPECT_EQ(Print("a\n"), "a\n");
}

TEST_F(LineTest, NewlineTranslations) {
  Set([](KTermios& t) { t.c_iflag = IGNCR; });
  Type("a\rb\n");
  EXPECT_EQ(Read(), "ab\n");
  Set([](KTermios& t) { t.c_iflag = INLCR; });
  Type("a\n");
  EXPECT_FALSE(line_.InputAvailable());
}

}  // namespace
}  // namespace sentry
