# about: redis-benchmark over loopback: SET and GET of 50 clients, one after the other
# needs: redis-server redis-benchmark
# seconds: 2
setup() {
  redis-server --port 7777 --save '' --daemonize yes
  for _ in $(seq 100); do redis-cli -p 7777 ping && return; sleep 0.1; done
  return 1
}
run() { redis-benchmark -p 7777 -c 50 -n $((100000 / SCALE)) -t set,get -q; }
