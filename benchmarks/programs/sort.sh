# about: sort of 1,000,000 lines
# needs: sort perl
# seconds: 1.2
setup() {
  perl -e 'srand 7; printf "%d %x\n", rand 1e9, rand 1e9 for 1..$ARGV[0]' $((1000000 / SCALE)) >lines
}
run() { LC_ALL=C sort lines | tail -n 1; }
