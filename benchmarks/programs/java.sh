# about: a JVM program that allocates and uses threads
# needs: java javac
# seconds: 1.2
setup() {
  cat >Work.java <<'END'
import java.util.*;
import java.util.concurrent.*;
public class Work {
  public static void main(String[] args) throws Exception {
    int size = Integer.parseInt(args[0]);
    ExecutorService pool = Executors.newFixedThreadPool(4);
    List<Future<Integer>> parts = new ArrayList<>();
    for (int t = 0; t < 16; t++) {
      final int seed = t;
      parts.add(pool.submit(() -> {
        Map<Integer, String> map = new HashMap<>();
        for (int i = 0; i < size; i++) map.put((i * 31 + seed) % 50021, "value" + i);
        return map.size();
      }));
    }
    int sum = 0;
    for (Future<Integer> part : parts) sum += part.get();
    pool.shutdown();
    System.out.println(sum);
  }
}
END
  javac Work.java
}
run() { java -XX:+UseSerialGC -Xmx256m Work $((200000 / SCALE)); }
