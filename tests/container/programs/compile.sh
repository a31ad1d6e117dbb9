# overlay
# gcc and make: a project of 10 files, built with -j2 and run.
mkdir /tmp/project && cd /tmp/project || exit 1
for i in $(seq 10); do
  printf '#include <stdio.h>\nint f%d(int x) { return x * %d + 1; }\n' "$i" "$i" > "f$i.c"
done
{
  echo '#include <stdio.h>'
  for i in $(seq 10); do echo "int f$i(int);"; done
  echo 'int main(void) { int x = 1;'
  for i in $(seq 10); do echo "x = f$i(x) % 1000003;"; done
  echo 'printf("%d\n", x); return x % 100; }'
} > main.c
cat > Makefile <<'END'
OBJECTS = main.o f1.o f2.o f3.o f4.o f5.o f6.o f7.o f8.o f9.o f10.o
program: $(OBJECTS)
	$(CC) -o $@ $^
%.o: %.c
	$(CC) -O2 -c -o $@ $<
END
make -s -j2 CC=gcc && ./program; echo "status $?"
make -s; touch f3.c; make -n | grep -c gcc
gcc -x c -static -o hello - <<'END' && ./hello
#include <stdio.h>
int main(void) { puts("static"); return 0; }
END
gcc -x c -no-pie -o nopie - <<'END' && ./nopie a b
#include <stdio.h>
int main(int c, char **v) { printf("%d %s\n", c, v[c - 1]); return 0; }
END
gcc -c -x c - -o bad.o <<< 'int main(void) { return undeclared; }' 2>/dev/null; echo "bad $?"
