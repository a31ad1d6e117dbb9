# about: PostgreSQL: pgbench, read and write, of 8 clients, over loopback
# needs: pgbench pg_ctlcluster
# seconds: 3
pg() { setpriv --reuid=postgres --regid=postgres --clear-groups env PATH="$PATH" HOME=/tmp "$@"; }
setup() {
  PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
  mkdir -p /tmp/pg && chown postgres /tmp/pg && pg initdb -D /tmp/pg/data -A trust --locale=C -E UTF8 &&
    pg pg_ctl -D /tmp/pg/data -l /tmp/pg/log -t 120 -w -o "-k /tmp -c max_connections=40" start &&
    pgbench -U postgres -h 127.0.0.1 -i -q -s 5 postgres
}
run() { pgbench -U postgres -h 127.0.0.1 -n -M prepared -c 8 -j 2 -t $((1000 / SCALE)) postgres; }
