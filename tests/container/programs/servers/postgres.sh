# seconds: 600
# normalise: s/PID [0-9]+/PID/
# PostgreSQL: initdb, pgbench, notifications, crash recovery after kill -9 of the server and of one backend, dump and restore.
B=$(echo /usr/lib/postgresql/*/bin); export PATH=$B:$PATH PGHOST=/tmp PGDATABASE=postgres PGUSER=postgres
mkdir -p /tmp/pg && chown postgres /tmp/pg && cd /tmp
as() { setpriv --reuid=postgres --regid=postgres --clear-groups env PATH="$PATH" HOME=/tmp "$@"; }
start() { as pg_ctl -D /tmp/pg/data -l /tmp/pg/log -t 120 -w -o "-k /tmp -c shared_buffers=16MB -c max_connections=40" start > /tmp/ctl 2>&1; tail -n 1 /tmp/ctl; }
as initdb -D /tmp/pg/data -A trust --locale=C -E UTF8 > /tmp/initdb.log 2>&1; echo "initdb $?"
start
psql -Atc 'SELECT 6 * 7'; psql -h 127.0.0.1 -Atc 'SELECT 1'; psql -h ::1 -Atc 'SELECT 2'
pgbench -i -q -s 1 > /tmp/i 2>&1; echo "pgbench -i $?"
pgbench -n -c 8 -j 2 -t 50 2> /dev/null | grep -E 'number of transactions|failed'
pgbench -n -S -M prepared -c 8 -j 2 -t 200 -h 127.0.0.1 2> /dev/null | grep -E 'number of transactions|failed'
psql -Atc 'SELECT count(*), sum(abalance) = (SELECT sum(delta) FROM pgbench_history) FROM pgbench_accounts'
psql -Atq <<'END'
CREATE TABLE t(id serial PRIMARY KEY, v text); INSERT INTO t(v) SELECT md5(i::text) FROM generate_series(1, 20000) i;
CREATE INDEX ON t(v); ANALYZE t; SELECT count(*) FROM t WHERE v LIKE 'a%'; VACUUM FULL t;
SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET min_parallel_table_scan_size = 0; SET parallel_tuple_cost = 0; SELECT sum(length(v)) FROM t;
BEGIN; DELETE FROM t; ROLLBACK; SELECT count(*) FROM t; LISTEN x; NOTIFY x, 'payload'; CREATE DATABASE other; CHECKPOINT;
SET statement_timeout = '100ms'; SELECT pg_sleep(10);
END
echo "psql $?"
# One backend is killed: the others are restarted by the postmaster; what was committed stays.
psql -Atc 'SELECT pg_sleep(60)' > /tmp/s 2>&1 & job=$!
for i in $(seq 100); do b=$(psql -Atc "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND pid <> pg_backend_pid()"); [ -n "$b" ] && break; sleep 0.1; done
kill -9 $b; wait $job; echo "client $?"
for i in $(seq 300); do psql -Atc 'SELECT count(*) FROM t' > /tmp/n 2> /dev/null && break; sleep 0.1; done; cat /tmp/n
# The server is killed under load.
pgbench -n -c 4 -T 60 > /dev/null 2>&1 & job=$!
for i in $(seq 100); do [ "$(psql -Atc 'SELECT count(*) > 420 FROM pgbench_history')" = t ] && break; sleep 0.1; done
kill -9 "$(head -n 1 /tmp/pg/data/postmaster.pid)"; wait $job; echo "pgbench $?"
sleep 1; start; grep -c 'database system was not properly shut down' /tmp/pg/log
psql -Atc 'SELECT sum(abalance) = (SELECT sum(delta) FROM pgbench_history) FROM pgbench_accounts; SELECT count(*) FROM t'
pg_dump -t t > /tmp/dump.sql && psql -q other < /tmp/dump.sql > /dev/null && psql -At other -c 'SELECT count(*) FROM t'
as pg_ctl -D /tmp/pg/data -m fast -w stop > /dev/null; echo "stop $?"
as pg_controldata -D /tmp/pg/data | grep state
