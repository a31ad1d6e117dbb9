# normalise: s/\(node:[0-9]+\)/(node)/
# Node.js: timers, streams, child_process, worker_threads, fs.watch, HTTP and TCP servers, crypto, signals.
cd /tmp
cat > main.js <<'END'
const fs = require('fs'), fsp = fs.promises, path = require('path'), http = require('http'), net = require('net');
const dgram = require('dgram'), dns = require('dns'), os = require('os'), crypto = require('crypto'), zlib = require('zlib');
const { spawn, execFile, fork, execSync, spawnSync } = require('child_process');
const { Worker, isMainThread, parentPort, workerData, threadId } = require('worker_threads');
const sleep = ms => new Promise(r => setTimeout(r, ms));
const once = require('events').once;

async function timers() {
  const order = [];
  process.nextTick(() => order.push('tick'));
  setTimeout(() => order.push('late'), 60);
  setTimeout(() => order.push('early'), 20);
  let n = 0;
  const i = setInterval(() => { if (++n == 3) clearInterval(i); }, 5);
  await sleep(300);
  console.log('timers', order.join(), n);
}
async function children() {
  const cat = spawn('cat');
  let text = '';
  cat.stdout.on('data', d => text += d);
  for (let i = 0; i < 1000; i++) cat.stdin.write(`line ${i}\n`);
  cat.stdin.end();
  const [code] = await once(cat, 'close');
  console.log('cat', code, text.length, crypto.createHash('sha256').update(text).digest('hex'));
  const sleeper = spawn('sleep', ['100']);
  sleeper.kill('SIGTERM');
  console.log('killed', await once(sleeper, 'exit'));
  console.log('missing', (await once(spawn('/no/such'), 'error'))[0].code);
  console.log('exec', execSync('echo $((6 * 7)); echo error >&2', { stdio: ['ignore', 'pipe', 'ignore'] }).toString().trim());
  const sync = spawnSync('sh', ['-c', 'cat; exit 7'], { input: 'x'.repeat(200000) });
  console.log('sync', sync.status, sync.stdout.length);
  const child = fork(__filename, ['child']);
  child.send({ value: 20 });
  const exit = once(child, 'exit');
  console.log('forked', (await once(child, 'message'))[0], await exit);
}
async function workers() {
  const shared = new SharedArrayBuffer(8);
  const cells = new Int32Array(shared);
  const all = [];
  for (let i = 0; i < 4; i++) {
    const w = new Worker(__filename, { workerData: { shared, i } });
    all.push(Promise.all([once(w, 'message'), once(w, 'exit')]).then(([[m], [code]]) => `${m} ${code}`));
  }
  console.log('workers', JSON.stringify((await Promise.all(all)).sort()), cells[0]);
  const waiter = new Worker(`const { workerData, parentPort } = require('worker_threads');
    const c = new Int32Array(workerData); parentPort.postMessage('ready');
    parentPort.postMessage(Atomics.wait(c, 1, 0));`, { eval: true, workerData: shared });
  await once(waiter, 'message');
  await sleep(50);
  Atomics.store(cells, 1, 1); Atomics.notify(cells, 1);
  const [m] = await once(waiter, 'message');
  console.log('atomics', m === 'ok' || m === 'not-equal');
}
async function watch() {
  fs.mkdirSync('watched', { recursive: true });
  const seen = new Set();
  const w = fs.watch('watched', (event, name) => seen.add(`${event} ${name}`));
  await sleep(50);
  fs.writeFileSync('watched/a', 'one'); fs.writeFileSync('watched/a', 'two');
  fs.renameSync('watched/a', 'watched/b'); fs.unlinkSync('watched/b');
  for (let i = 0; i < 40 && seen.size < 3; i++) await sleep(50);
  w.close();
  console.log('watch', [...seen].sort().join());
  fs.writeFileSync('polled', '1');
  const changed = new Promise(r => fs.watchFile('polled', { interval: 50 }, (now, before) => r([before.size, now.size])));
  await sleep(100); fs.writeFileSync('polled', '12345');
  console.log('watchFile', await changed);
  fs.unwatchFile('polled');
}
async function files() {
  await fsp.mkdir('tree/a/b', { recursive: true });
  await Promise.all([...Array(200).keys()].map(i => fsp.writeFile(`tree/a/b/${i}`, 'x'.repeat(i))));
  const sizes = await Promise.all((await fsp.readdir('tree/a/b')).map(async n => (await fsp.stat(`tree/a/b/${n}`)).size));
  console.log('files', sizes.length, sizes.reduce((a, b) => a + b));
  await fsp.cp('tree', 'copy', { recursive: true });
  console.log('copied', fs.readdirSync('copy/a/b').length);
  const big = crypto.createHash('sha256').update('seed').digest();
  await new Promise((resolve, reject) => require('stream').pipeline(
    require('stream').Readable.from((function* () { for (let i = 0; i < 2000; i++) yield Buffer.alloc(1000, big); })()),
    zlib.createGzip(), fs.createWriteStream('stream.gz'), e => e ? reject(e) : resolve()));
  console.log('gunzip', zlib.gunzipSync(fs.readFileSync('stream.gz')).length);
  await fsp.rm('tree', { recursive: true });
  for (const f of [() => fs.readFileSync('none'), () => fs.mkdirSync('copy'), () => fs.readdirSync('stream.gz'), () => fs.rmdirSync('copy')])
    try { f(); } catch (e) { console.log(e.code, e.syscall); }
}
async function network() {
  const server = http.createServer((req, res) => {
    if (req.method == 'POST') { res.writeHead(201); req.pipe(res); } else res.end(`you asked for ${req.url}`);
  });
  server.listen(0, '127.0.0.1'); await once(server, 'listening');
  const port = server.address().port;
  const get = (p, options = {}, body) => new Promise((resolve, reject) => {
    const r = http.request({ port, host: '127.0.0.1', path: p, ...options }, res => {
      let n = 0, text = ''; res.on('data', d => { n += d.length; text += d; }); res.on('end', () => resolve([res.statusCode, n, text.slice(0, 30)]));
    });
    r.on('error', reject); r.end(body);
  });
  console.log('http', await get('/path'));
  console.log('post', await get('/', { method: 'POST' }, 'y'.repeat(1000000)));
  const agent = new http.Agent({ keepAlive: true, maxSockets: 10 });
  const many = await Promise.all([...Array(500).keys()].map(i => get(`/${i}`, { agent })));
  console.log('many', many.filter(m => m[0] == 200).length);
  agent.destroy(); server.close();
  const echo = net.createServer(s => s.pipe(s)); echo.listen('/tmp/socket'); await once(echo, 'listening');
  const c = net.connect('/tmp/socket'); c.end('through a unix socket');
  console.log('unix', (await once(c, 'data'))[0].toString()); echo.close();
  const v6 = net.createServer(s => s.end(s.remoteFamily)); v6.listen(0, '::1'); await once(v6, 'listening');
  console.log('v6', (await once(net.connect(v6.address().port, '::1'), 'data'))[0].toString()); v6.close();
  const u = dgram.createSocket('udp4'); u.bind(0, '127.0.0.1'); await once(u, 'listening');
  u.send('datagram', u.address().port, '127.0.0.1');
  console.log('udp', (await once(u, 'message'))[0].toString()); u.close();
  console.log('refused', (await once(net.connect(1, '127.0.0.1'), 'error'))[0].code);
  console.log('localhost', (await dns.promises.lookup('localhost', { family: 4 })).address);
}
async function rest() {
  console.log('lo', os.networkInterfaces().lo.map(i => i.cidr).join(), os.hostname(), os.platform(), os.endianness());
  console.log('cpus', os.cpus().length > 0, os.totalmem() > 1e6, os.freemem() > 0, os.uptime() > 0, os.loadavg().length);
  console.log('pbkdf2', crypto.pbkdf2Sync('a', 'b', 10000, 16, 'sha256').toString('hex'), crypto.randomBytes(8).length);
  const got = once(process, 'SIGUSR2'); const alive = setInterval(() => {}, 1000); process.kill(process.pid, 'SIGUSR2'); console.log((await got)[0]); clearInterval(alive);
  let garbage = []; for (let i = 0; i < 300; i++) { garbage.push(new Array(10000).fill(i)); if (i % 50 == 0) garbage = []; }
  const m = process.memoryUsage(); console.log('memory', m.rss > 1e7, m.heapUsed > 1e6);
  const cpu = process.cpuUsage(), r = process.resourceUsage();
  console.log('usage', cpu.user > 0, r.maxRSS > 10000, r.minorPageFault >= 0);
  const t = process.hrtime.bigint(); await sleep(20); console.log('clock', process.hrtime.bigint() - t >= 19000000n);
}
if (process.argv[2] == 'child') {
  process.once('message', m => { process.send(m.value * 2 + 2); process.disconnect(); });
} else if (!isMainThread) {
  const c = new Int32Array(workerData.shared);
  for (let i = 0; i < 10000; i++) Atomics.add(c, 0, 1);
  parentPort.postMessage(workerData.i);
} else (async () => {
  for (const f of [timers, children, workers, watch, files, network, rest]) await f();
  process.exitCode = 3;
})();
END
node main.js; echo "status $?"
node -e 'process.abort()' 2> /dev/null; echo "status $?"
node -e 'throw new Error("x")' 2>&1 | grep -c 'Error: x'
echo 'console.log([1,2,3].map(x => x * x))' | node -
printf '1 + 1\n.exit\n' | node -i | head -n 3
