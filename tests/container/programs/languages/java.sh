# Java: javac, threads and locks, garbage collection with small heaps, NIO sockets, processes, files, crash by exception.
cd /tmp
cat > Main.java <<'END'
import java.io.*;
import java.net.*;
import java.net.http.*;
import java.nio.*;
import java.nio.channels.*;
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
import java.util.stream.*;

public class Main {
  static void threads() throws Exception {
    ExecutorService pool = Executors.newFixedThreadPool(16);
    LongAdder sum = new LongAdder();
    List<Future<Integer>> results = new ArrayList<>();
    for (int i = 0; i < 200; i++) { final int n = i; results.add(pool.submit(() -> { sum.add(n); Thread.sleep(1); return n * n; })); }
    long squares = 0;
    for (Future<Integer> f : results) squares += f.get();
    pool.shutdown();
    System.out.println("pool " + sum + " " + squares + " " + pool.awaitTermination(10, TimeUnit.SECONDS));
    final int[] counter = {0};
    Object lock = new Object();
    Thread[] all = new Thread[100];
    for (int i = 0; i < all.length; i++) { all[i] = new Thread(() -> { for (int j = 0; j < 1000; j++) synchronized (lock) { counter[0]++; } }); all[i].start(); }
    for (Thread t : all) t.join();
    System.out.println("counter " + counter[0]);
    SynchronousQueue<Integer> q = new SynchronousQueue<>();
    new Thread(() -> { try { for (int i = 0; i < 5000; i++) q.put(i); } catch (InterruptedException e) { } }).start();
    long got = 0; for (int i = 0; i < 5000; i++) got += q.take();
    System.out.println("handed " + got);
    Thread sleeper = new Thread(() -> { try { Thread.sleep(100000); } catch (InterruptedException e) { System.out.println("interrupted"); } });
    sleeper.start(); sleeper.interrupt(); sleeper.join();
    ScheduledExecutorService s = Executors.newScheduledThreadPool(2);
    System.out.println("scheduled " + s.schedule(() -> 5, 20, TimeUnit.MILLISECONDS).get()); s.shutdown();
    System.out.println("parallel " + IntStream.range(0, 1000000).parallel().filter(i -> i % 3 == 0).count());
  }
  static void garbage() {
    Map<Integer, byte[]> kept = new HashMap<>();
    long bytes = 0;
    for (int i = 0; i < 20000; i++) { byte[] b = new byte[10000]; b[i % 10000] = 1; bytes += b.length; kept.put(i % 500, b); }
    System.gc();
    System.out.println("garbage " + bytes + " " + kept.size());
  }
  static void sockets() throws Exception {
    ServerSocket server = new ServerSocket(0, 100, InetAddress.getLoopbackAddress());
    Thread t = new Thread(() -> { try { for (int i = 0; i < 50; i++) try (Socket s = server.accept()) { s.getInputStream().transferTo(s.getOutputStream()); } } catch (IOException e) { e.printStackTrace(); } });
    t.start();
    long total = 0;
    for (int i = 0; i < 50; i++) try (Socket s = new Socket(server.getInetAddress(), server.getLocalPort())) {
      s.getOutputStream().write(new byte[5000]); s.shutdownOutput(); total += s.getInputStream().readAllBytes().length; }
    t.join(); System.out.println("echo " + total);
    Selector sel = Selector.open();
    ServerSocketChannel ch = ServerSocketChannel.open().bind(new InetSocketAddress("127.0.0.1", 0));
    ch.configureBlocking(false); ch.register(sel, SelectionKey.OP_ACCEPT);
    int port = ((InetSocketAddress) ch.getLocalAddress()).getPort(), clients = 30;
    for (int i = 0; i < clients; i++) { final int n = i; new Thread(() -> { try (SocketChannel c = SocketChannel.open(new InetSocketAddress("127.0.0.1", port))) {
        c.write(ByteBuffer.wrap(("client " + n).getBytes())); } catch (IOException e) { e.printStackTrace(); } }).start(); }
    int closed = 0, read = 0;
    while (closed < clients) {
      sel.select();
      for (Iterator<SelectionKey> it = sel.selectedKeys().iterator(); it.hasNext();) {
        SelectionKey k = it.next(); it.remove();
        if (k.isAcceptable()) { SocketChannel c = ch.accept(); c.configureBlocking(false); c.register(sel, SelectionKey.OP_READ); }
        else { ByteBuffer b = ByteBuffer.allocate(100); int n = ((SocketChannel) k.channel()).read(b); if (n < 0) { k.channel().close(); closed++; } else read += n; }
      }
    }
    System.out.println("selector " + read);
    try { new Socket("127.0.0.1", 1); } catch (ConnectException e) { System.out.println("refused"); }
    ServerSocket slow = new ServerSocket(0); slow.setSoTimeout(30);
    try { slow.accept(); } catch (SocketTimeoutException e) { System.out.println("timed out"); }
    DatagramSocket u = new DatagramSocket(0, InetAddress.getLoopbackAddress());
    u.send(new DatagramPacket("hello".getBytes(), 5, u.getLocalSocketAddress()));
    DatagramPacket p = new DatagramPacket(new byte[10], 10); u.receive(p); System.out.println("datagram " + p.getLength());
    System.out.println("interfaces " + NetworkInterface.networkInterfaces().map(NetworkInterface::getName).collect(Collectors.toList()));
    com.sun.net.httpserver.HttpServer http = com.sun.net.httpserver.HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
    http.createContext("/", e -> { byte[] b = ("asked " + e.getRequestURI()).getBytes(); e.sendResponseHeaders(200, b.length); e.getResponseBody().write(b); e.close(); });
    http.start();
    HttpClient client = HttpClient.newHttpClient();
    System.out.println(client.send(HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + http.getAddress().getPort() + "/x")).build(), HttpResponse.BodyHandlers.ofString()).body());
    http.stop(0);
  }
  static void files() throws Exception {
    Path d = Files.createTempDirectory("java");
    for (int i = 0; i < 100; i++) Files.writeString(d.resolve("f" + i), "content " + i);
    try (Stream<Path> w = Files.walk(d)) { System.out.println("walked " + w.count()); }
    Path f = d.resolve("f1");
    Files.setLastModifiedTime(f, java.nio.file.attribute.FileTime.fromMillis(1000000000000L));
    System.out.println(Files.getLastModifiedTime(f) + " " + java.nio.file.attribute.PosixFilePermissions.toString(Files.getPosixFilePermissions(f)) + " " + Files.getOwner(f));
    try (FileChannel c = FileChannel.open(d.resolve("mapped"), StandardOpenOption.CREATE, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
      MappedByteBuffer m = c.map(FileChannel.MapMode.READ_WRITE, 0, 1 << 20); m.putInt(1000, 42); m.force();
      ByteBuffer b = ByteBuffer.allocate(4); c.read(b, 1000); System.out.println("mapped " + b.getInt(0));
      try (FileLock l = c.lock()) { System.out.println("locked " + l.isValid()); }
      c.truncate(10); System.out.println("size " + c.size());
    }
    WatchService w = d.getFileSystem().newWatchService();
    d.register(w, StandardWatchEventKinds.ENTRY_CREATE);
    Files.createFile(d.resolve("new"));
    WatchKey k = w.poll(10, TimeUnit.SECONDS); System.out.println("watched " + k.pollEvents().get(0).context());
    try { Files.readString(d.resolve("none")); } catch (NoSuchFileException e) { System.out.println("none"); }
    Process p = new ProcessBuilder("sh", "-c", "cat; echo err >&2; exit 3").redirectErrorStream(true).start();
    p.getOutputStream().write("in\n".getBytes()); p.getOutputStream().close();
    System.out.println(new String(p.getInputStream().readAllBytes()).replace('\n', ' ') + p.waitFor());
    Process q = new ProcessBuilder("sleep", "100").start(); q.destroy(); System.out.println("destroyed " + q.waitFor());
    System.out.println("processors " + (Runtime.getRuntime().availableProcessors() > 0) + " " + ProcessHandle.current().isAlive());
  }
  static int depth(int n) { return depth(n + 1) + 1; }
  public static void main(String[] args) throws Exception {
    Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook")));
    threads(); garbage(); sockets(); files();
    try { depth(0); } catch (StackOverflowError e) { System.out.println("stack overflow"); }
    try { String s = null; s.length(); } catch (NullPointerException e) { System.out.println("null pointer"); }
    try { long[][] l = new long[1000][]; for (int i = 0; i < 1000; i++) l[i] = new long[1000000]; } catch (OutOfMemoryError e) { System.out.println("out of memory"); }
    System.exit(4);
  }
}
END
javac Main.java; echo "javac $?"
java -Xmx64m Main 2>&1; echo "status $?"
java -XX:+UseSerialGC -Xmx32m -Xshare:off -version > /dev/null 2>&1; echo "status $?"
java -XX:+UseParallelGC -Xmx96m -XX:-UsePerfData Main 2>&1; echo "status $?"
java -Xcomp -XX:TieredStopAtLevel=1 -version > /dev/null 2>&1; echo "status $?"
java -cp . None 2>&1 | head -n 1
# kill -3 prints the threads, and the program goes on.
cat > Wait.java <<'END'
public class Wait { public static void main(String[] a) throws Exception { System.out.println("ready"); Thread.sleep(60000); } }
END
java Wait.java > wait.log 2>&1 & pid=$!
for i in $(seq 200); do grep -q ready wait.log && break; sleep 0.1; done
kill -QUIT $pid; for i in $(seq 100); do grep -q 'Full thread dump' wait.log && break; sleep 0.1; done
grep -c 'Full thread dump' wait.log; kill $pid; wait $pid; echo "status $?"
