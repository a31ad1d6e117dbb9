# about: git status in a 10,000-file tree
# needs: git perl
# seconds: 0.15
setup() {
  files=$((10000 / SCALE))
  perl -e 'for $i (0..$ARGV[0]-1) { $d = "d".int($i/100); mkdir $d; open F, ">", "$d/f$i.txt" or die;
    print F "line $_ of file $i\n" for 1..10; close F }' $files
  export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
  git init -q . && git add . && git commit -q -m first
}
run() { git status; }
