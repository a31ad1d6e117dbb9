# about: compile and link a C project of 60 files with gcc, make -j2
# needs: gcc make
# seconds: 3
files=$((60 / SCALE > 6 ? 60 / SCALE : 6))

setup() {
  for ((i = 0; i < files; i++)); do
    cat >"part$i.c" <<END
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
struct node$i { struct node$i *next; int value; char name[16]; };
static struct node$i *push(struct node$i *head, int value) {
  struct node$i *n = malloc(sizeof *n);
  n->next = head, n->value = value;
  snprintf(n->name, sizeof n->name, "n%d", value);
  return n;
}
int part$i(int x) {
  struct node$i *head = NULL;
  for (int k = 0; k < x % 50 + 5; k++) head = push(head, k * $i);
  int sum = 0;
  while (head) {
    struct node$i *n = head;
    sum += n->value + (int)strlen(n->name);
    head = n->next, free(n);
  }
  return sum;
}
END
    objects+=" part$i.o"
  done
  {
    echo '#include <stdio.h>'
    for ((i = 0; i < files; i++)); do echo "int part$i(int);"; done
    echo 'int main(void) { int x = 1;'
    for ((i = 0; i < files; i++)); do echo "x += part$i(x);"; done
    echo 'printf("%d\n", x); return 0; }'
  } >main.c
  printf 'program: main.o%s\n\tgcc -o $@ $^\n%%.o: %%.c\n\tgcc -O2 -c -o $@ $<\n' "$objects" >Makefile
}
prepare() { rm -f ./*.o program; }
run() { make -s -j2 && ./program; }
