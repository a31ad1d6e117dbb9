# about: find in a 10,000-file tree
# needs: find perl
# seconds: 0.05
setup() {
  perl -e 'for $i (0..$ARGV[0]-1) { $d = "d".int($i/100); mkdir $d; open F, ">", "$d/f$i.txt" or die;
    print F "line $_ of file $i\n" for 1..10; close F }' $((10000 / SCALE))
}
run() { find . -name '*7.txt' -size -10k; }
