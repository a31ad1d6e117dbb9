# about: perl: fork, exit and wait, 1,000 times
# needs: perl
# seconds: 0.4
setup() { :; }
run() { perl -e 'for (1..$ARGV[0]) { my $p = fork // die; exit 0 unless $p; waitpid $p, 0; }' $((1000 / SCALE)); }
