# about: sqlite3: 100,000 inserts in transactions, then queries
# needs: sqlite3 perl
# seconds: 0.6
setup() {
  perl -e 'print "create table t(id integer primary key, name text, value real);\n";
    for $b (0..99) { print "begin;\n";
      for $i (1..1000/$ARGV[0]) { printf "insert into t(name, value) values(\x27name%d\x27, %f);\n", $i*$b%977, $i/7 }
      print "commit;\n" }
    print "create index n on t(name);\n";
    printf "select count(*), sum(value) from t where name=\x27name%d\x27;\n", $_ for 1..200;' $SCALE >script.sql
}
prepare() { rm -f data.db; }
run() { sqlite3 data.db <script.sql | tail -n 1; }
