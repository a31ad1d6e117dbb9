# about: untar of 10,000 small files into the writable layer
# needs: tar perl
# seconds: 0.6
setup() {
  mkdir tree
  perl -e 'for $i (0..$ARGV[0]-1) { $d = "tree/d".int($i/100); mkdir $d; open F, ">", "$d/f$i.txt" or die;
    print F "line $_ of file $i\n" for 1..10; close F }' $((10000 / SCALE))
  tar cf tree.tar tree && rm -rf tree
}
prepare() { rm -rf tree; }
run() { tar xf tree.tar; }
