// main() of every guest test program.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "gtest/gtest.h"

int main(int argc, char** argv) {
  // As the program that another test executes.
  if (getenv("GUEST_PRINTS_IDS") != nullptr) {
    printf("ids %u %u\n", getuid(), geteuid());
    return 0;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
