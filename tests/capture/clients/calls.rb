# The calls of Ruby's net/http that record.py records: `ruby calls.rb CLIENT CALL`; without CALL a list.
require "json"
require "net/http"
require "stringio"

ITEMS = URI("https://api.example.org/v1/items")
BLOB = URI("https://api.example.org/v1/blobs/big")
ROW = JSON.generate({ name: "Zoë" })

def send_to(where, request)
  Net::HTTP.start(where.host, where.port, use_ssl: true) { |http| http.request(request) }
end

def post(body: nil, type: nil)
  request = Net::HTTP::Post.new(ITEMS)
  request["Content-Type"] = type if type
  request.body = body
  request
end

CALLS = {
  "get" => -> { Net::HTTP.get(ITEMS) },
  "get_query" => -> { Net::HTTP.get(URI("https://api.example.org/v1/items?" + URI.encode_www_form(q: "a b", t: [1, 2]))) },
  "post_json" => -> { send_to(ITEMS, post(body: ROW, type: "application/json")) },
  "post_form" => -> { Net::HTTP.post_form(ITEMS, "a" => "1 2", "b" => "é") },
  "post_multipart" => lambda {
    request = Net::HTTP::Post.new(ITEMS)
    file = ["file", StringIO.new("a,b\n"), { filename: "report ü.csv", content_type: "text/csv" }]
    request.set_form([["kind", "csv"], file], "multipart/form-data")
    send_to(ITEMS, request)
  },
  "post_stream" => lambda {
    request = Net::HTTP::Post.new(ITEMS)
    request["Transfer-Encoding"] = "chunked"
    request["Content-Type"] = "text/plain"
    request.body_stream = StringIO.new("onetwo")
    send_to(ITEMS, request)
  },
  "put_3mb" => lambda {
    request = Net::HTTP::Put.new(BLOB)
    request.body = "0123456789abcdef" * (3 * 65_536)
    send_to(BLOB, request)
  },
  "delete" => -> { send_to(ITEMS, Net::HTTP::Delete.new(URI("https://api.example.org/v1/items/7"))) },
}.freeze

ARGV[1] ? CALLS.fetch(ARGV[1]).call : puts(CALLS.keys)
