# overlay
perl -e '
my $sum = 0;
for my $i (1..200) { my $pid = fork; if (!$pid) { exit($i % 50) } waitpid($pid, 0); $sum += $? >> 8; }
print "sum $sum\n";
pipe(my $r, my $w); if (!fork) { close $r; print $w "from child\n"; exit } close $w; print scalar <$r>; wait;
$SIG{ALRM} = sub { print "alarm\n" }; alarm 1; select(undef, undef, undef, 3);
open(my $p, "-|", "seq 3") or die; print while <$p>; close $p;
my %h; $h{$_ % 7}++ for 1..100000; print join(",", map { "$_=$h{$_}" } sort keys %h), "\n";
system("exit 4"); print $? >> 8, "\n"; print `echo backtick`;
opendir(my $d, "/etc") or die; my @n = grep { !/^\./ } readdir $d; print scalar(@n) > 10 ? "many\n" : "few\n";
'
echo "status $?"
