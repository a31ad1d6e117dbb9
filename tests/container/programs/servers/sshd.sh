# sshd with its own clients on localhost: commands, terminals, files by scp and sftp, forwarded ports, many sessions at once.
# seconds: 300
cd /root; umask 022; mkdir -p /run/sshd .ssh; chmod 700 .ssh
useradd -m -s /bin/bash -p '*' alice; mkdir -m 700 /home/alice/.ssh
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/key; ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519
cp .ssh/id_ed25519.pub .ssh/authorized_keys; cp .ssh/id_ed25519.pub /home/alice/.ssh/authorized_keys; chown -R alice:alice /home/alice/.ssh
cat > /etc/ssh/sshd_config <<'END'
Port 2222
ListenAddress 127.0.0.1
ListenAddress ::1
HostKey /etc/ssh/key
UsePAM no
PasswordAuthentication no
MaxStartups 100
MaxSessions 100
AllowStreamLocalForwarding yes
Subsystem sftp internal-sftp
PidFile /run/sshd.pid
END
cat > .ssh/config <<'END'
Host *
  Port 2222
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  BatchMode yes
END
/usr/sbin/sshd -t && echo "configuration $?"
/usr/sbin/sshd -E /tmp/sshd.log
for i in $(seq 100); do ssh 127.0.0.1 true 2> /dev/null && break; sleep 0.1; done
ssh 127.0.0.1 'id -un; pwd; echo $((6 * 7)); exit 3'; echo "status $?"
ssh alice@127.0.0.1 'id -un; pwd; touch /root/x 2> /dev/null || echo refused; ps -o user= -p $$'
ssh ::1 'echo six; kill -TERM $$'; echo "status $?"
seq 200000 | ssh 127.0.0.1 'sort -rn | tail -n 2; cat > /dev/null'
ssh 127.0.0.1 'head -c 20000000 /dev/zero; echo to stderr >&2' 2> err | md5sum; cat err
ssh -tt alice@127.0.0.1 'tty | sed s/[0-9]*$/N/; stty size; stty -a | grep -o "isig"; test -t 0 && echo terminal' < /dev/null | tr -d '\r'
printf 'echo $((6 * 7)) from a shell\nexit 5\n' | ssh -tt 127.0.0.1 > shell.out 2>&1; echo "status $?"; grep -c '42 from a shell' shell.out
head -c 5000000 /dev/urandom > big; mkdir -p tree/a/b; for i in $(seq 40); do echo $i > tree/a/b/$i; done
scp -q big alice@127.0.0.1:copy && cmp big /home/alice/copy && echo copied; scp -qr 127.0.0.1:tree again && diff -r tree again && echo trees
scp -qO big 127.0.0.1:old && cmp big old && echo old protocol
printf 'mkdir d\ncd d\nput big\nrename big large\nls -1\nchmod 600 large\nget large got\nsymlink large l\nrm l\n' | sftp -q -b - alice@127.0.0.1 | grep -v '^sftp>'; cmp big got && stat -c '%a %U %s' /home/alice/d/large
rsync -a -e ssh tree/ alice@127.0.0.1:rsynced && diff -r tree /home/alice/rsynced && echo rsync
(for i in $(seq 3); do echo "answer $i" | nc -l -N 127.0.0.1 7000 > /dev/null; done) & server=$!
ssh -f -N -M -S /tmp/control -L 127.0.0.1:7001:127.0.0.1:7000 -R 127.0.0.1:7002:127.0.0.1:7000 -D 127.0.0.1:7003 127.0.0.1
for port in 7001 7002; do for i in $(seq 50); do nc -d 127.0.0.1 $port > out; test -s out && break; sleep 0.1; done; cat out; done
for i in $(seq 50); do nc -d -X 5 -x 127.0.0.1:7003 127.0.0.1 7000 > out; test -s out && break; sleep 0.1; done; cat out
wait $server
for i in $(seq 20); do ssh -S /tmp/control 127.0.0.1 "echo session $i" & done | sort -k2n; wait
ssh -S /tmp/control -O exit 127.0.0.1 2> /dev/null; echo "exit $?"
for i in $(seq 20); do ssh 127.0.0.1 "echo connection $i" & done | sort -k2n; wait
ssh bob@127.0.0.1 true 2> /dev/null; echo "unknown user $?"; ssh -o IdentityFile=/dev/null -o IdentitiesOnly=yes 127.0.0.1 true 2> /dev/null; echo "no key $?"
ssh -f 127.0.0.1 'sleep 1000'; sleep 0.2; pkill -f 'sleep 1000'; kill -HUP "$(cat /run/sshd.pid)"
for i in $(seq 100); do ssh 127.0.0.1 'echo after the restart' 2> /dev/null && break; sleep 0.1; done
kill "$(cat /run/sshd.pid)"; for i in $(seq 100); do pgrep -x sshd > /dev/null || break; sleep 0.1; done; pgrep -x sshd | wc -l; grep -c 'Accepted publickey' /tmp/sshd.log | awk '{print ($1 > 30)}'
