# overlay
# Programs as scripts, PATH look-up, busybox, big environments, deep pipelines.
cat > /tmp/s.sh <<'END'
#!/bin/sh
echo "script $0 $# $1"
END
chmod +x /tmp/s.sh; /tmp/s.sh 'a b'; PATH=$PATH:/tmp s.sh
printf '#!/usr/bin/env python3\nimport sys\nprint("py", sys.argv[1:])\n' > /tmp/p; chmod +x /tmp/p; /tmp/p 1 2
/bin/busybox ls /usr | head -3; /bin/busybox sh -c 'for i in 1 2 3; do echo $i; done | /bin/busybox sort -r'
/tmp; echo "directory $?"
nosuchcommand 2>/dev/null; echo "missing $?"
echo data > /tmp/notexec; /tmp/notexec 2>/dev/null; echo "noexec $?"
seq 100000 | cat | cat | cat | cat | cat | cat | tail -1
export BIG=$(head -c 100000 /dev/zero | tr '\0' x); sh -c 'echo ${#BIG}'
head -c 3000000 /dev/zero | tr '\0' 'x' | xargs -n 1 -s 200000 echo 2>/dev/null | wc -c
i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i + 1)); done; echo "trues $i"
for i in $(seq 50); do (sleep 0.1) & done; wait; echo "parallel"
(trap '' TERM; kill -TERM $BASHPID; echo survived)
bash -c 'kill -SEGV $$'; echo "segv $?"
bash -c 'ulimit -t 1; while :; do :; done' 2>/dev/null; echo "cpu limit $?"
