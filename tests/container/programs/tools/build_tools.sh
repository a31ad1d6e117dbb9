# normalise: s/[0-9.]+ sec(onds)?/TIME/g
# make -j4 of a project of 100 files, then a change of one of them; cmake with ninja, and ctest.
set -e
mkdir -p /tmp/project && cd /tmp/project
for i in $(seq 100); do
  echo "#include <stdio.h>
int f$i(int x) { return x * $i + (int)sizeof(FILE*); }" > f$i.c
done
{ seq -f 'int f%g(int);' 100; echo '#include <stdio.h>'; echo 'int main(void) { long s = 0;'
  seq -f 's += f%g(%g);' 100 | sed 's/$/ /'; echo 'printf("%ld\n", s); }'; } | sed 's/f\([0-9]*\)(\1)/f\1(1)/' > main.c
cat > Makefile <<'END'
OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))
program: $(OBJECTS)
	@$(CC) -o $@ $^
	@echo linked
%.o: %.c
	@$(CC) -O0 -c -o $@ $<
	@echo compiled >> log
clean:
	@rm -f *.o program
END
make -j4 && ./program && wc -l < log
make -j4
touch f7.c && make -j4 && wc -l < log
make clean && ls | wc -l
mkdir src && cd src
cat > CMakeLists.txt <<'END'
cmake_minimum_required(VERSION 3.20)
project(Demo C CXX)
find_package(Threads REQUIRED)
add_library(parts STATIC a.cc b.cc)
add_executable(demo main.cc)
target_link_libraries(demo PRIVATE parts Threads::Threads)
add_custom_command(OUTPUT generated.h COMMAND ${CMAKE_COMMAND} -E echo "#define GENERATED 42" > generated.h)
target_sources(demo PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/generated.h)
target_include_directories(demo PRIVATE ${CMAKE_CURRENT_BINARY_DIR})
enable_testing()
add_test(NAME runs COMMAND demo)
add_test(NAME fails COMMAND demo fail)
set_tests_properties(fails PROPERTIES WILL_FAIL TRUE)
END
echo 'int a() { return 1; }' > a.cc
echo 'int b() { return 2; }' > b.cc
cat > main.cc <<'END'
#include <cstdio>
#include <thread>
#include "generated.h"
int a(); int b();
int main(int argc, char**) {
  int sum = 0;
  std::thread t([&] { sum = a() + b() + GENERATED; });
  t.join();
  std::printf("%d\n", sum);
  return argc - 1;
}
END
cmake -G Ninja -S . -B ../out > /tmp/cmake.log && ninja -C ../out > /tmp/ninja.log && ../out/demo
ninja -C ../out | tail -n 1
ctest --test-dir ../out 2>&1 | grep -E 'Test +#|tests passed'
cmake --build ../out --target clean > /dev/null && ninja -C ../out -t query demo | head -n 2
cmake -G "Unix Makefiles" -S . -B ../out2 > /tmp/cmake2.log && cmake --build ../out2 -j2 2>&1 | grep -c Built
