# Redis: redis-benchmark, pipelines, AOF and RDB saves with their forks, replication, blocking lists, recovery after kill -9.
mkdir -p /tmp/r && cd /tmp/r
start() { redis-server --port 6390 --unixsocket /tmp/r/socket --dir /tmp/r --daemonize yes --logfile /tmp/r/log "$@" > /dev/null; wait_up 6390; }
wait_up() { for i in $(seq 200); do [ "$(redis-cli -p "$1" ping 2> /dev/null)" = PONG ] && return; sleep 0.1; done; echo "port $1 is not up"; cat /tmp/r/log; }
# The clients wait for what the server does in the background.
info() { for i in $(seq 300); do redis-cli -p 6390 info "$1" | tr -d '\r' | grep -qx "$2" && { echo "$2"; return; }; sleep 0.1; done; echo "no $2"; }
start --appendonly yes --appendfsync everysec --save 900 1
redis-cli -p 6390 set greeting hello
redis-benchmark -p 6390 -q -n 2000 -c 50 -t set,get,incr,lpush,rpop,sadd,hset,zadd,mset --csv | cut -d, -f1 | tr '\n' ' '; echo
redis-benchmark -s /tmp/r/socket -q -n 10000 -c 20 -P 16 -t set,get --csv | cut -d, -f1 | tr '\n' ' '; echo
redis-benchmark -p 6390 -q -n 2000 -d 10000 -r 1000 -t set,get --threads 2 --csv | cut -d, -f1 | tr '\n' ' '; echo
seq 10000 | sed 's/.*/SET key:& value&/' | redis-cli -p 6390 --pipe | tail -n 1
redis-cli -p 6390 eval 'local s = 0; for i = 1, 1000 do s = s + redis.call("GET", "key:" .. i):len() end; return s' 0
redis-cli -p 6390 bgsave; info persistence rdb_bgsave_in_progress:0; info persistence rdb_last_bgsave_status:ok
redis-cli -p 6390 bgrewriteaof; info persistence aof_rewrite_in_progress:0; info persistence aof_last_bgrewrite_status:ok
redis-check-rdb dump.rdb | grep -c 'RDB looks OK'
(redis-cli -p 6390 blpop queue 20 > blocked) & waiter=$!
info clients blocked_clients:1; redis-cli -p 6390 rpush queue job; wait $waiter; cat blocked
(timeout 20 redis-cli -p 6390 subscribe news | head -n 6 > heard) & sub=$!
for i in $(seq 100); do [ "$(redis-cli -p 6390 publish news x)" = 1 ] && break; sleep 0.1; done; wait $sub; cat heard
redis-server --port 6391 --dir /tmp --daemonize yes --replicaof '127.0.0.1 6390' --logfile /tmp/log2 --dbfilename two.rdb > /dev/null
wait_up 6391; info replication connected_slaves:1
for i in $(seq 200); do [ "$(redis-cli -p 6391 get key:10000)" = value10000 ] && break; sleep 0.1; done; redis-cli -p 6391 get key:10000
redis-cli -p 6391 shutdown nosave
redis-cli -p 6390 config set maxmemory 20mb; redis-cli -p 6390 config set maxmemory-policy allkeys-lru
redis-cli -p 6390 incr counter; sleep 1.5
kill -9 "$(redis-cli -p 6390 info server | tr -d '\r' | sed -n 's/process_id://p')"
start --appendonly yes
redis-cli -p 6390 get greeting; redis-cli -p 6390 get key:777; redis-cli -p 6390 get counter
redis-cli -p 6390 shutdown save; for i in $(seq 100); do [ -e socket ] || break; sleep 0.1; done
ls | grep -E 'dump|append' | sort
