# about: a Node.js program that allocates and uses threads
# needs: node
# seconds: 0.8
setup() {
  cat >work.js <<'END'
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
if (isMainThread) {
  let left = 4, sum = 0;
  for (let i = 0; i < 4; i++) {
    const w = new Worker(__filename, { workerData: { size: Number(process.argv[2]), seed: i } });
    w.on('message', (n) => { sum += n; if (--left === 0) console.log(sum); });
  }
} else {
  const map = new Map();
  for (let i = 0; i < workerData.size; i++) map.set((i * 31 + workerData.seed) % 50021, { v: 'value' + i });
  parentPort.postMessage(map.size);
}
END
}
run() { node work.js $((300000 / SCALE)); }
