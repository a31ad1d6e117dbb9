# about: grep -r in a 10,000-file tree
# needs: grep perl
# seconds: 0.15
setup() {
  perl -e 'for $i (0..$ARGV[0]-1) { $d = "d".int($i/100); mkdir $d; open F, ">", "$d/f$i.txt" or die;
    print F "line $_ of file $i\n" for 1..10; close F }' $((10000 / SCALE))
}
run() { grep -r 'line 7 of file [0-9]*34' .; }
