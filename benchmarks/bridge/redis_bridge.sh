# about: redis in a container, redis-benchmark across a bridge: SET and GET of 50 clients
# needs: redis-server redis-benchmark
# seconds: 3
setup() {
  redis-server --port 7777 --save '' --bind 0.0.0.0 --protected-mode no --daemonize yes
  for _ in $(seq 100); do redis-cli -p 7777 ping && return; sleep 0.1; done
  return 1
}
run() { redis-benchmark -h "$SERVER" -p 7777 -c 50 -n $((100000 / SCALE)) -t set,get -q; }
