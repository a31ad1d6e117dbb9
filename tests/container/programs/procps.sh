# ps, mount, df and friends: what must not differ is compared.
ps -o comm= -p $$
sleep 30 & pid=$!
until [ "$(ps -o comm=,stat= -p $pid)" = "sleep           S" ]; do sleep 0.01; done
ps -o pid=,comm=,stat= -p $pid | sed "s/^ *$pid /PID /"
ps aux | awk 'NR == 1 { print } /sleep 30/ && !/awk/ { print $1, $11, $12 }'
pgrep -x sleep | sed "s/$pid/PID/"
kill $pid; wait $pid; echo "sleep $?"
mount | grep -E ' on (/proc|/dev/pts|/dev/shm|/sys) ' | awk '{print $3, $5}' | sort
awk '$2 == "/proc" { print $3 }' /proc/mounts
free | awk 'NR == 1 { print } NR > 1 { print $1, ($2 >= 0) }'
uptime | grep -c 'load average'
cat /proc/sys/kernel/ostype; hostname; uname -sm
top -b -n1 | awk 'NR == 1 { print $1 } /PID USER/ { print $1, $2 }'
df /dev/shm | awk 'NR == 1 { print $1, $6 }'
cat /proc/self/comm; tr '\0' ' ' < /proc/self/cmdline; echo
grep -c processor /proc/cpuinfo
vmstat > /dev/null; echo "vmstat $?"
pidof bash > /dev/null; echo "pidof $?"
readlink /proc/self/exe
