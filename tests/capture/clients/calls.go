// The calls of Go's net/http that record.py records: `calls CLIENT CALL`; without CALL a list.
package main

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const api = "https://api.example.org"

func send(method, path string, body io.Reader, headers ...string) {
	request, err := http.NewRequest(method, api+path, body)
	if err != nil {
		panic(err)
	}
	for at := 0; at < len(headers); at += 2 {
		request.Header.Set(headers[at], headers[at+1])
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ExpectContinueTimeout = 5 * time.Second
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		panic(err)
	}
	io.Copy(io.Discard, answer.Body)
}

func form() (io.Reader, string) {
	var data bytes.Buffer
	writer := multipart.NewWriter(&data)
	writer.WriteField("kind", "csv")
	part, _ := writer.CreateFormFile("file", "report ü.csv")
	part.Write([]byte("a,b\n"))
	writer.Close()
	return &data, writer.FormDataContentType()
}

func main() {
	big := []byte(strings.Repeat("0123456789abcdef", 3*65536))
	kind := []string{"Content-Type", "application/json"}
	calls := map[string]func(){
		"get":         func() { send("GET", "/v1/items?q="+url.QueryEscape("a b|c")+"&raw={x}|[y]", nil) },
		"post_json":   func() { send("POST", "/v1/items", strings.NewReader(`{"a": 1}`), kind...) },
		"post_stream": func() { send("POST", "/v1/items", io.MultiReader(strings.NewReader("one"), strings.NewReader("two"))) },
		"post_form": func() {
			values := url.Values{"a": {"1 2"}, "b": {"x", "é"}}
			http.PostForm(api+"/v1/items", values)
		},
		"post_multipart": func() { body, what := form(); send("POST", "/v1/items", body, "Content-Type", what) },
		"put_3mb":        func() { send("PUT", "/v1/blobs/big", bytes.NewReader(big)) },
		"put_3mb_expect": func() { send("PUT", "/v1/blobs/big", bytes.NewReader(big), "Expect", "100-continue") },
		"delete":         func() { send("DELETE", "/v1/items/7", nil) },
		"delete_body":    func() { send("DELETE", "/v1/items", strings.NewReader(`{}`), kind...) },
		"head":           func() { send("HEAD", "/v1/items/7", nil) },
		"post_empty":     func() { send("POST", "/v1/items/7/run", nil) },
	}
	if len(os.Args) < 3 {
		for name := range calls {
			fmt.Println(name)
		}
		return
	}
	calls[os.Args[2]]()
}
