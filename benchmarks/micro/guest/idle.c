// Says that it runs, then waits for ever: what an idle sandbox is measured with.
#include <unistd.h>

int main(void) {
  if (write(1, "idle\n", 5) != 5) return 1;
  for (;;) pause();
}
