// The calls of Java's two HTTP clients that record.py records: `java Calls.java CLIENT CALL`; without CALL a list.
import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.util.List;

public class Calls {
  static final String API = "https://api.example.org";
  static final byte[] BIG = "0123456789abcdef".repeat(3 * 65536).getBytes();
  static final List<String> NEW = List.of(
      "get", "post_json", "post_stream", "post_empty", "put_3mb", "put_3mb_expect", "delete", "head", "plain_h2c");
  static final List<String> OLD = List.of("get", "post_form", "post_json", "post_stream", "put_3mb", "delete");

  public static void main(String[] words) throws Exception {
    boolean old = words[0].equals("java-urlconnection");
    if (words.length == 1) {
      System.out.println(String.join("\n", old ? OLD : NEW));
    } else if (old) {
      old(words[1]);
    } else {
      modern(words[1]);
    }
  }

  static HttpRequest.Builder to(String path) {
    return HttpRequest.newBuilder(URI.create(API + path)).header("Authorization", "Bearer not-a-secret");
  }

  static void modern(String call) throws Exception {
    BodyPublisher json = BodyPublishers.ofString("{\"name\": \"Zo\u00eb\"}");
    BodyPublisher stream = BodyPublishers.ofInputStream(() -> new ByteArrayInputStream("onetwo".getBytes()));
    String type = "Content-Type", kind = "application/json";
    HttpRequest.Builder request = switch (call) {
      case "get" -> to("/v1/items?q=a%20b");
      case "post_json" -> to("/v1/items").header(type, kind).POST(json);
      case "post_stream" -> to("/v1/items").header(type, "text/plain").POST(stream);
      case "post_empty" -> to("/v1/items/7/run").POST(BodyPublishers.noBody());
      case "put_3mb" -> to("/v1/blobs/big").PUT(BodyPublishers.ofByteArray(BIG));
      case "put_3mb_expect" -> to("/v1/blobs/big").expectContinue(true).PUT(BodyPublishers.ofByteArray(BIG));
      case "delete" -> to("/v1/items/7").DELETE();
      case "head" -> to("/v1/items/7").method("HEAD", BodyPublishers.noBody());
      case "plain_h2c" -> HttpRequest.newBuilder(URI.create("http://api.example.org/v1/items"));
      default -> throw new IllegalArgumentException(call);
    };
    HttpClient.newHttpClient().send(request.build(), HttpResponse.BodyHandlers.ofString());
  }

  static void old(String call) throws Exception {
    String path = call.startsWith("put") ? "/v1/blobs/big" : "/v1/items";
    HttpURLConnection connection = (HttpURLConnection) new URL(API + path).openConnection();
    connection.setRequestProperty("Authorization", "Bearer not-a-secret");
    byte[] body = null;
    switch (call) {
      case "post_form" -> body = "a=1+2".getBytes();
      case "post_json" -> {
        connection.setRequestProperty("Content-Type", "application/json; charset=utf8");
        body = "{}".getBytes();
      }
      case "post_stream" -> {
        connection.setChunkedStreamingMode(1024);
        body = "onetwo".getBytes();
      }
      case "put_3mb" -> {
        connection.setRequestMethod("PUT");
        connection.setFixedLengthStreamingMode(BIG.length);
        body = BIG;
      }
      case "delete" -> connection.setRequestMethod("DELETE");
      default -> { }
    }
    if (body != null) {
      connection.setDoOutput(true);
      connection.getOutputStream().write(body);
      connection.getOutputStream().close();
    }
    try (InputStream in = connection.getInputStream()) {
      in.readAllBytes();
    }
  }
}
