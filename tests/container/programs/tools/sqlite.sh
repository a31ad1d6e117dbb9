# overlay
# sqlite3: transactions, indexes, both journal modes, several writers at once, backup, recovery after kill -9.
set -e
cd /tmp
sqlite3 a.db <<'END'
PRAGMA journal_mode=DELETE;
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, value REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
INSERT INTO t SELECT i, 'name ' || (i * 7919 % 50000), i / 3.0 FROM n;
CREATE INDEX by_name ON t(name);
SELECT count(*), sum(id), max(name) FROM t WHERE name LIKE 'name 1%';
UPDATE t SET value = value * 2 WHERE id % 3 = 0;
DELETE FROM t WHERE id % 5 = 0;
VACUUM;
PRAGMA integrity_check;
END
sqlite3 w.db 'PRAGMA journal_mode=WAL; CREATE TABLE t(writer, i);'
for w in 1 2 3 4; do
  (for i in $(seq 25); do sqlite3 -cmd '.timeout 20000' w.db "INSERT INTO t VALUES($w, $i)"; done) &
done
wait
sqlite3 w.db 'SELECT writer, count(*), sum(i) FROM t GROUP BY writer; PRAGMA integrity_check;'
sqlite3 w.db '.backup copy.db' && sqlite3 copy.db 'SELECT count(*) FROM t'
sqlite3 w.db .dump | sqlite3 dumped.db && sqlite3 dumped.db 'SELECT count(*) FROM t'
# A writer that is killed in its transaction leaves nothing of it.
mkfifo in
sqlite3 a.db < in > out & pid=$!
exec 7> in
echo 'BEGIN IMMEDIATE; UPDATE t SET value = 0; SELECT count(*) FROM t WHERE value = 0;' >&7
for i in $(seq 200); do [ -s out ] && break; sleep 0.1; done; cat out
kill -9 $pid; exec 7>&-; wait $pid || echo "killed $?"
sqlite3 a.db 'SELECT count(*) FROM t WHERE value = 0; PRAGMA integrity_check;'
sqlite3 -csv a.db 'SELECT id, name FROM t LIMIT 2' && sqlite3 a.db 'SELECT * FROM missing' 2>&1 | grep -c 'no such table'
