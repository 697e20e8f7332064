// The calls of Apache HttpClient 4 and OkHttp 3 that record.py records: `java -cp ... Libraries.java CLIENT CALL`.
import java.util.List;
import okhttp3.FormBody;
import okhttp3.MediaType;
import okhttp3.MultipartBody;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.RequestBody;
import org.apache.http.HttpEntity;
import org.apache.http.client.entity.UrlEncodedFormEntity;
import org.apache.http.client.methods.HttpDelete;
import org.apache.http.client.methods.HttpGet;
import org.apache.http.client.methods.HttpPost;
import org.apache.http.client.methods.HttpPut;
import org.apache.http.client.methods.HttpUriRequest;
import org.apache.http.entity.ByteArrayEntity;
import org.apache.http.entity.ContentType;
import org.apache.http.entity.StringEntity;
import org.apache.http.entity.mime.HttpMultipartMode;
import org.apache.http.entity.mime.MultipartEntityBuilder;
import org.apache.http.impl.client.HttpClients;
import org.apache.http.message.BasicNameValuePair;

public class Libraries {
  static final String ITEMS = "https://api.example.org/v1/items";
  static final byte[] BIG = "0123456789abcdef".repeat(3 * 65536).getBytes();
  static final List<String> APACHE = List.of(
      "get", "post_json", "post_text", "post_form", "post_multipart", "post_multipart_strict", "put_3mb", "delete");
  static final List<String> OK = List.of("get", "post_json", "post_form", "post_multipart", "put_3mb", "delete");

  public static void main(String[] words) throws Exception {
    boolean apache = words[0].equals("apache-httpclient");
    if (words.length == 1) {
      System.out.println(String.join("\n", apache ? APACHE : OK));
    } else if (apache) {
      HttpClients.createSystem().execute(apache(words[1])).close();
    } else {
      new OkHttpClient().newCall(ok(words[1])).execute().close();
      System.exit(0);
    }
  }

  static HttpUriRequest apache(String call) throws Exception {
    return switch (call) {
      case "get" -> new HttpGet(ITEMS + "?q=a%20b");
      case "post_json" -> post(new StringEntity("{\"a\": 1}", ContentType.APPLICATION_JSON));
      case "post_text" -> post(new StringEntity("text"));
      case "post_form" -> post(new UrlEncodedFormEntity(List.of(new BasicNameValuePair("a", "1 2"))));
      case "post_multipart" -> post(form(MultipartEntityBuilder.create().setMode(HttpMultipartMode.BROWSER_COMPATIBLE)));
      case "post_multipart_strict" -> post(form(MultipartEntityBuilder.create()));
      case "delete" -> new HttpDelete(ITEMS + "/7");
      default -> {
        HttpPut put = new HttpPut("https://api.example.org/v1/blobs/big");
        put.setEntity(new ByteArrayEntity(BIG));
        yield put;
      }
    };
  }

  static HttpPost post(HttpEntity entity) {
    HttpPost post = new HttpPost(ITEMS);
    post.setEntity(entity);
    return post;
  }

  static HttpEntity form(MultipartEntityBuilder form) {
    byte[] file = "a,b\n".getBytes();
    return form.addTextBody("kind", "csv").addBinaryBody("file", file, ContentType.create("text/csv"), "a.csv").build();
  }

  static Request ok(String call) {
    Request.Builder request = new Request.Builder().url(ITEMS);
    MediaType json = MediaType.parse("application/json; charset=utf-8");
    return switch (call) {
      case "get" -> request.build();
      case "post_json" -> request.post(RequestBody.create(json, "{\"a\": 1}")).build();
      case "post_form" -> request.post(new FormBody.Builder().add("a", "1 2").add("b", "é").build()).build();
      case "post_multipart" -> request.post(new MultipartBody.Builder().setType(MultipartBody.FORM)
          .addFormDataPart("kind", "csv")
          .addFormDataPart("file", "a.csv", RequestBody.create(MediaType.parse("text/csv"), "a,b\n"))
          .build()).build();
      case "put_3mb" -> request.url("https://api.example.org/v1/blobs/big").put(RequestBody.create(null, BIG)).build();
      default -> request.delete().build();
    };
  }
}
