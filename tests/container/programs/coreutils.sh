# overlay
# normalise: /^total [0-9]+$/d
# ls, find, sort, tar, dd, sums, xargs, timeout, attributes.
ls -lR --time-style=full-iso /usr /etc | grep -v '^total' | sha256sum
ls /usr | head -20
find / -xdev -not -path '/proc/*' -not -path '/sys/*' -not -path '/dev/*' -not -path /program | sort | sha256sum
find /usr -xdev -type f -size +100k | wc -l
find / -xdev | wc -l
grep -r root /etc 2>/dev/null | sort | sha256sum
seq 1000000 | awk '{ print ($1 * 7919) % 1000003 }' | sort -n | sha256sum
mkdir /tmp/t && cd /tmp/t
tar cf a.tar -C / usr/share/doc etc && tar tf a.tar | wc -l
mkdir out && tar xf a.tar -C out && (cd out && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
find out | wc -l
dd if=/dev/zero of=zero bs=1M count=20 2>/dev/null; sha256sum zero; stat -c '%s %a %u %g %h %F' zero
dd if=zero of=part bs=1000 skip=3 count=5 conv=notrunc 2>/dev/null; wc -c < part
seq 20 | xargs -P4 -n1 sh -c 'echo $0' | sort -n | paste -sd,
timeout 0.2 sleep 5; echo "timeout $?"
timeout 5 true; echo "timeout $?"
id; id -u nobody
touch f; chmod 4751 f; chown 12:34 f; stat -c '%a %u %g' f; chmod u-s f; stat -c %A f
mkfifo p; (echo through > p) & cat p; wait
ln f g; ln -s f h; stat -c %h f; readlink h; ls -l h | cut -c1-10
cp -a /etc etc2; diff -r /etc etc2 && echo same
mv etc2 etc3; rm -r etc3; ls
truncate -s 1G big; stat -c %s big; du -k big; rm big
touch -d '2001-02-03 04:05:06 UTC' f; stat -c %Y f
split -n 4 zero s.; ls s.* | wc -l; cat s.* | cmp - zero && echo equal
mktemp -d | cut -c1-9; nproc > /dev/null && echo nproc
env -i A=b env; printf 'a\0b' | od -c | head -1
head -c 100 /dev/zero | base64 | md5sum; tac <(seq 3); seq 5 | shuf --random-source=<(yes) | wc -l
comm <(seq 3) <(seq 2 4); join <(echo 1 a) <(echo 1 b); uniq -c <(printf 'a\na\n')
rmdir /nonexistent; echo "rmdir $?"
[ -w /etc/passwd ] && echo writable; [ -x /bin/ls ] && echo executable
tail -f /etc/passwd --pid=$$ -n1 & sleep 0.1; kill $!; wait $! ; echo "tail $?"
sync; df / >/dev/null; echo "df $?"
