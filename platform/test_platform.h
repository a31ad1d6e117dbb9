// The fixture of tests that have a platform.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "platform/platform.h"
#include "platform/test_guest.h"

namespace platform::test {

class PlatformTest : public testing::Test {
 protected:
  // An overriding one calls this first, and returns if it has failed.
  void SetUp() override {
    std::string why;
    auto p = CreatePlatform(options_, &why);
    ASSERT_TRUE(p.ok()) << why;
    platform_ = std::move(*p);
    if (starts_pool_) platform_->StartPool();
  }
  Options options_ = TestOptions();
  bool starts_pool_ = true;
  std::unique_ptr<Platform> platform_;
};

}  // namespace platform::test
