# PHP: files, streams, proc_open, pcntl, sockets, sqlite by PDO, its own web server with curl.
cat > /tmp/a.php <<'END'
<?php
$d = sys_get_temp_dir() . '/php'; mkdir($d);
for ($i = 0; $i < 100; $i++) file_put_contents("$d/$i", str_repeat('x', $i));
echo count(scandir($d)), ' ', array_sum(array_map('filesize', glob("$d/*"))), "\n";
$p = proc_open(['cat'], [['pipe', 'r'], ['pipe', 'w']], $pipes);
fwrite($pipes[0], "through cat\n"); fclose($pipes[0]); echo stream_get_contents($pipes[1]); echo proc_close($p), "\n";
echo shell_exec('echo shell; exit 3'); exec('exit 4', $o, $s); echo "$s\n";
if (function_exists('pcntl_fork')) {
  pcntl_async_signals(true); pcntl_signal(SIGUSR1, function () { echo "signal\n"; }); posix_kill(posix_getpid(), SIGUSR1);
  $kids = []; for ($i = 0; $i < 5; $i++) { $pid = pcntl_fork(); if ($pid == 0) exit($i); $kids[] = $pid; }
  foreach ($kids as $k) { pcntl_waitpid($k, $st); echo pcntl_wexitstatus($st), ' '; } echo "\n";
}
$s = stream_socket_server('tcp://127.0.0.1:0', $e, $m); $name = stream_socket_get_name($s, false);
$c = stream_socket_client("tcp://$name"); $a = stream_socket_accept($s); fwrite($c, "hello\n"); echo fgets($a);
stream_set_timeout($c, 0, 20000); var_dump(fgets($c)); $r = [$c]; $w = $x = null; var_dump(stream_select($r, $w, $x, 0, 10000));
$f = fopen("$d/lock", 'c+'); var_dump(flock($f, LOCK_EX | LOCK_NB)); ftruncate($f, 100); echo fstat($f)['size'], "\n";
if (extension_loaded('pdo_sqlite')) { $b = new PDO('sqlite:/tmp/php.db'); $b->exec('CREATE TABLE t(a)'); $b->beginTransaction();
  for ($i = 0; $i < 1000; $i++) $b->exec("INSERT INTO t VALUES($i)"); $b->commit(); echo $b->query('SELECT sum(a) FROM t')->fetchColumn(), "\n"; }
echo hash('sha256', str_repeat('a', 100000)), ' ', strlen(random_bytes(10)), ' ', gethostname(), ' ', gethostbyname('localhost'), "\n";
echo @file_get_contents('/none') === false ? error_get_last()['message'] : '', "\n";
$t = hrtime(true); usleep(20000); var_dump(hrtime(true) - $t >= 20000000);
$g = []; for ($i = 0; $i < 100000; $i++) { $o = new stdClass; $o->o = $o; } echo gc_collect_cycles() >= 0 ? "gc\n" : ''; exit(8);
END
php /tmp/a.php; echo "status $?"
mkdir /tmp/www; echo '<?php echo $_SERVER["REQUEST_METHOD"], " ", $_GET["a"] ?? strlen(file_get_contents("php://input")), "\n";' > /tmp/www/index.php
cd /tmp/www; head -c 500000 /dev/zero > zeros
PHP_CLI_SERVER_WORKERS=4 php -S 127.0.0.1:8090 > /tmp/php.log 2>&1 & pid=$!
for i in $(seq 100); do curl -s 'http://127.0.0.1:8090/?a=1' > /tmp/first && break; sleep 0.1; done; cat /tmp/first
curl -s --data-binary @zeros http://127.0.0.1:8090/; curl -s http://127.0.0.1:8090/zeros | wc -c
for i in $(seq 20); do curl -s "http://127.0.0.1:8090/?a=$i" > /tmp/o$i & jobs="$jobs $!"; done; wait $jobs; cat /tmp/o* | sort | uniq | wc -l
kill $pid; wait $pid 2> /dev/null; echo "status $?"
