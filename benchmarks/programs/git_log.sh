# about: git log -p of 200 commits in a 10,000-file tree
# needs: git perl
# seconds: 0.4
setup() {
  files=$((10000 / SCALE))
  perl -e 'for $i (0..$ARGV[0]-1) { $d = "d".int($i/100); mkdir $d; open F, ">", "$d/f$i.txt" or die;
    print F "line $_ of file $i\n" for 1..10; close F }' $files
  git init -q .
  # One stream instead of hundreds of commands.
  perl -e 'print "commit refs/heads/main\ncommitter a <a\@b> 1700000000 +0000\ndata 1\nx\n";
    for $i (0..$ARGV[0]-1) { $d = "d".int($i/100); $t = join "", map {"line $_ of file $i\n"} 1..10;
      printf "M 100644 inline %s/f%d.txt\ndata %d\n%s\n", $d, $i, length $t, $t }
    for $c (1..200/$ARGV[1]) { printf "commit refs/heads/main\ncommitter a <a\@b> %d +0000\ndata 1\ny\n", 1700000000+$c;
      for $k (1..5) { $i = ($c*37+$k*11) % $ARGV[0]; $t = "changed $c $k\n" x 10;
        printf "M 100644 inline d%d/f%d.txt\ndata %d\n%s\n", int($i/100), $i, length $t, $t } }' \
    $files $SCALE | git fast-import --quiet && git symbolic-ref HEAD refs/heads/main && git reset -q
}
run() { git --no-pager log -p; }
