# normalise: s/\r//g
# script(1), scriptreplay, setsid and expect's helpers, without a person.
export TERM=xterm; cd /tmp
script -qec 'stty rows 33 cols 77; stty size; stty -a | tr ";" "\n" | head -n 12; tty | sed "s/[0-9]*$//"' /dev/null < /dev/null
script -qec 'exit 6' /dev/null < /dev/null; echo "status $?"
script -qec 'kill -TERM $$' /dev/null < /dev/null; echo "status $?"
script -q -c 'for i in 1 2 3; do echo line $i; sleep 0.05; done' -T timing typescript > /dev/null < /dev/null; scriptreplay -d 10 timing typescript
script -qec 'seq 20000' /dev/null < /dev/null | md5sum
ex -s text <<< $'a\none\ntwo\n.\ng/t/s//T/\nw copied\nq!'; cat copied
setsid -w sh -c 'tty; ps -o tty= -p $$; : < /dev/tty' 2>&1 | sed 's/.*: cannot/cannot/'
script -qec 'ps -o stat= -p $$ | cut -c2-; sh -c ": < /dev/tty" && echo has one' /dev/null < /dev/null
unbuffer sh -c 'test -t 1 && echo terminal' | cat
