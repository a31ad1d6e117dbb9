# about: tar of 10,000 small files
# needs: tar perl
# seconds: 0.2
setup() {
  mkdir tree
  perl -e 'for $i (0..$ARGV[0]-1) { $d = "tree/d".int($i/100); mkdir $d; open F, ">", "$d/f$i.txt" or die;
    print F "line $_ of file $i\n" for 1..10; close F }' $((10000 / SCALE))
}
run() { tar cf - tree | cat >/dev/null; }
