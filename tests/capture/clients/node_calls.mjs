// The calls of Node clients that record.py records: `node node_calls.mjs CLIENT CALL`; without CALL a list.
// NODE_MODULES names the folder where the packages are installed.
import { createRequire } from "node:module";
import https from "node:https";
import { Readable } from "node:stream";
import path from "node:path";

const require = createRequire(path.join(process.env.NODE_MODULES ?? process.cwd(), "x.js"));
const API = "https://api.example.org";
const BIG = Buffer.from("0123456789abcdef".repeat(3 * 65536));
const ROW = { name: "Zoë", amount: 4200, tags: ["a", "b"] };
const JSON_TYPE = { "content-type": "application/json" };

async function* pieces() {
  yield Buffer.from("one");
  yield Buffer.from("two");
}

function file(name) {
  return new File(["a,b\n"], name, { type: "text/csv" });
}

function form(name = 'report "ü".csv') {
  const data = new FormData();
  data.set("kind", "csv");
  data.set("file", file(name));
  return data;
}

function plain(options, body) {
  return new Promise((done, fail) => {
    const request = https.request({ host: "api.example.org", ...options }, (got) => {
      got.resume();
      got.on("end", done);
    });
    request.on("error", fail);
    if (body === "pieces") Readable.from(pieces()).pipe(request);
    else request.end(body);
  });
}

const fetched = async (where, options) => (await fetch(where, options)).text();

const CLIENTS = {
  "node-fetch-builtin": () => ({
    get: () => fetched(API + "/v1/items?q=a b|c&f={\"a\":[1]}&x=^`~&y='z'"),
    get_path: () => fetched(API + "/v1/it's/a|b/[id]/x,y"),
    get_path_semicolon: () => fetched(API + "/v1/items;v=1"),
    post_json: () => fetched(API + "/v1/items", { method: "POST", body: JSON.stringify(ROW), headers: JSON_TYPE }),
    post_text: () => fetched(API + "/v1/items", { method: "POST", body: "text" }),
    post_form: () => fetched(API + "/v1/items", { method: "POST", body: new URLSearchParams({ a: "1 2", b: "é" }) }),
    post_multipart: () => fetched(API + "/v1/items", { method: "POST", body: form() }),
    post_stream: () => fetched(API + "/v1/items", { method: "POST", body: Readable.from(pieces()), duplex: "half" }),
    put_3mb: () => fetched(API + "/v1/blobs/big", { method: "PUT", body: BIG }),
    delete: () => fetched(API + "/v1/items/7", { method: "DELETE" }),
    delete_body: () => fetched(API + "/v1/items", { method: "DELETE", body: "{}", headers: JSON_TYPE }),
  }),
  "node-https": () => ({
    get: () => plain({ path: "/v1/items?q=a%20b", headers: { Accept: "application/json" } }),
    get_agent: () => plain({ path: "/v1/items", agent: new https.Agent({ keepAlive: true }) }),
    post_length: () => plain({ path: "/v1/items", method: "POST", headers: { ...JSON_TYPE, "Content-Length": 2 } }, "{}"),
    post_end: () => plain({ path: "/v1/items", method: "POST", headers: JSON_TYPE }, "{}"),
    post_stream: () => plain({ path: "/v1/items", method: "POST" }, "pieces"),
    post_empty: () => plain({ path: "/v1/items/7/run", method: "POST" }),
    delete: () => plain({ path: "/v1/items/7", method: "DELETE" }),
    put_3mb: () => plain({ path: "/v1/blobs/big", method: "PUT" }, BIG),
    post_expect: () => plain({ path: "/v1/items", method: "POST", headers: { ...JSON_TYPE, Expect: "100-continue" } }, "{}"),
  }),
  undici: () => {
    const { request, FormData: Form, fetch: own } = require("undici");
    const data = new Form();
    data.set("file", file("a.csv"));
    return {
      request_get: () => request(API + "/v1/items", { query: { q: "a b" } }),
      request_post: () => request(API + "/v1/items", { method: "POST", body: JSON.stringify(ROW), headers: JSON_TYPE }),
      fetch_multipart: () => own(API + "/v1/items", { method: "POST", body: data }),
    };
  },
  axios: () => {
    const axios = require("axios").default ?? require("axios");
    const Form = require("form-data");
    const old = () => {
      const data = new Form();
      data.append("kind", "csv");
      data.append("file", Buffer.from("a,b\n"), { filename: "ü.csv", contentType: "text/csv" });
      return data;
    };
    return {
      get: () => axios.get(API + "/v1/items", { params: { q: "a b:c$,[x]", list: [1, 2], when: new Date(0) } }),
      post_json: () => axios.post(API + "/v1/items", ROW),
      post_form: () => axios.post(API + "/v1/items", new URLSearchParams({ a: "1 2" })),
      post_multipart: () => axios.post(API + "/v1/items", form()),
      post_form_data: () => axios.post(API + "/v1/items", old()),
      post_object_form: () => axios.postForm(API + "/v1/items", { "a[]": [1, 2], b: { c: 3 } }),
      put_3mb: () => axios.put(API + "/v1/blobs/big", BIG),
      delete_body: () => axios.delete(API + "/v1/items", { data: { ids: [1] } }),
    };
  },
  got: () => {
    const load = () => import(require.resolve("got")).then((m) => m.default);
    return {
      get: async () => (await load())(API + "/v1/items", { searchParams: { q: "a b" } }).text(),
      post_json: async () => (await load()).post(API + "/v1/items", { json: ROW }).text(),
      post_form: async () => (await load()).post(API + "/v1/items", { form: { a: "1 2" } }).text(),
      post_multipart: async () => (await load()).post(API + "/v1/items", { body: form() }).text(),
    };
  },
  "node-fetch": () => {
    const load = () => import(require.resolve("node-fetch")).then((m) => m.default);
    return {
      get: async () => (await load())(API + "/v1/items"),
      post_json: async () => (await load())(API + "/v1/items", { method: "POST", body: "{}", headers: JSON_TYPE }),
      post_stream: async () => (await load())(API + "/v1/items", { method: "POST", body: Readable.from(pieces()) }),
      post_multipart: async () => (await load())(API + "/v1/items", { method: "POST", body: form() }),
    };
  },
  superagent: () => {
    const agent = require("superagent");
    return {
      get: () => agent.get(API + "/v1/items").query({ q: "a b" }),
      post_json: () => agent.post(API + "/v1/items").send(ROW),
      post_form: () => agent.post(API + "/v1/items").type("form").send({ a: "1 2", b: ["x", "y"] }),
      post_multipart: () => agent.post(API + "/v1/items").field("kind", "csv").attach("file", Buffer.from("a,b\n"), "a.csv"),
    };
  },
  "aws-sdk-js": () => {
    const { S3Client, PutObjectCommand, GetObjectCommand, ListObjectsV2Command, DeleteObjectsCommand } =
      require("@aws-sdk/client-s3");
    const { DynamoDBClient, PutItemCommand } = require("@aws-sdk/client-dynamodb");
    const { Upload } = require("@aws-sdk/lib-storage");
    const settings = {
      region: "eu-central-1",
      credentials: { accessKeyId: "AKIDEXAMPLE", secretAccessKey: "capture" },
      maxAttempts: 1,
    };
    const s3 = new S3Client(settings);
    const put = { Bucket: "acme-reports", Key: "q1/report 2026+é.csv" };
    const big = { params: { Bucket: "acme-reports", Key: "big", Body: Readable.from([BIG, BIG]) }, client: s3 };
    return {
      s3_put: () => s3.send(new PutObjectCommand({ ...put, Body: "hello" })),
      s3_put_3mb: () => s3.send(new PutObjectCommand({ ...put, Body: BIG })),
      s3_put_stream: () =>
        s3.send(new PutObjectCommand({ ...put, Body: Readable.from([BIG]), ContentLength: BIG.length })),
      s3_put_sha256: () => s3.send(new PutObjectCommand({ ...put, Body: "hello", ChecksumAlgorithm: "SHA256" })),
      s3_put_gzip_stream: () =>
        s3.send(new PutObjectCommand({ ...put, Body: Readable.from([require("zlib").gzipSync("a,b\n")]), ContentLength: 24, ContentEncoding: "gzip" })),
      s3_upload_multipart: () => new Upload({ ...big, queueSize: 1, partSize: 5 << 20 }).done(),
      s3_get: () => s3.send(new GetObjectCommand({ ...put, Range: "bytes=0-9" })),
      s3_list: () => s3.send(new ListObjectsV2Command({ Bucket: "acme-reports", Prefix: "q1/" })),
      s3_delete_objects: () =>
        s3.send(new DeleteObjectsCommand({ Bucket: "acme-reports", Delete: { Objects: [{ Key: "a" }, { Key: "b" }] } })),
      dynamodb_put: () =>
        new DynamoDBClient(settings).send(new PutItemCommand({ TableName: "orders", Item: { k: { S: "1" } } })),
    };
  },
  "stripe-node": () => {
    const Stripe = require("stripe").default ?? require("stripe");
    const stripe = new Stripe("sk_test_not_a_secret", { maxNetworkRetries: 0 });
    return {
      refund: () => stripe.refunds.create({ charge: "ch_1", amount: 100, metadata: { ticket: "A 7" } }),
      payment: () => stripe.paymentIntents.create({ amount: 1999, currency: "eur", payment_method_types: ["card"] }),
      customers: () => stripe.customers.list({ limit: 3, created: { gte: 1 } }),
      file: () => stripe.files.create({ purpose: "dispute_evidence", file: { data: Buffer.from("%PDF"), name: "a.pdf", type: "application/pdf" } }),
    };
  },
  "slack-web-api": () => {
    const { WebClient } = require("@slack/web-api");
    const slack = new WebClient("xoxb-not-a-secret", { retryConfig: { retries: 0 } });
    const blocks = [{ type: "section", text: { type: "mrkdwn", text: "*hi* & <b>" } }];
    return {
      post: () => slack.chat.postMessage({ channel: "C1", text: "hi", blocks }),
      list: () => slack.conversations.list({ limit: 5 }),
      upload: () => slack.filesUploadV2({ channel_id: "C1", content: "a,b\n", filename: "ü.csv" }),
    };
  },
  "openai-node": () => {
    const OpenAI = require("openai").default ?? require("openai");
    const client = new OpenAI({ apiKey: "sk-not-a-secret", maxRetries: 0 });
    const chat = { model: "gpt-5-mini", messages: [{ role: "user", content: "hi" }] };
    return {
      chat: () => client.chat.completions.create(chat),
      chat_stream: () => client.chat.completions.create({ ...chat, stream: true }),
      embeddings: () => client.embeddings.create({ model: "text-embedding-3-small", input: "a" }),
      file_upload: () => client.files.create({ file: file("ü.jsonl"), purpose: "batch" }),
    };
  },
  "anthropic-node": () => {
    const Anthropic = require("@anthropic-ai/sdk").default ?? require("@anthropic-ai/sdk");
    const client = new Anthropic({ apiKey: "sk-ant-not-a-secret", maxRetries: 0 });
    const chat = { model: "claude-sonnet-4-5", max_tokens: 64, messages: [{ role: "user", content: "hi" }] };
    return {
      messages: () => client.messages.create(chat),
      messages_stream: () => client.messages.create({ ...chat, stream: true }),
    };
  },
  octokit: () => {
    const load = async () => {
      const { Octokit } = await import(require.resolve("octokit"));
      return new Octokit({ auth: "not-a-secret", retry: { enabled: false }, throttle: { enabled: false } });
    };
    const where = { owner: "acme", repo: "app" };
    return {
      issue_create: async () => (await load()).rest.issues.create({ ...where, title: "Bug ü", labels: ["bug"] }),
      pull_merge: async () => (await load()).rest.pulls.merge({ ...where, pull_number: 7, sha: "0".repeat(40) }),
      file_put: async () =>
        (await load()).rest.repos.createOrUpdateFileContents({ ...where, path: "docs/a b.md", message: "m", content: "eA==" }),
      graphql: async () => (await load()).graphql("query($n: Int!) { viewer { repositories(first: $n) { totalCount } } }", { n: 1 }),
    };
  },
  "gcs-node": () => {
    const { Storage } = require("@google-cloud/storage");
    const storage = () => new Storage({ projectId: "acme", authClient: anonymous(), retryOptions: { autoRetry: false } });
    const object = () => storage().bucket("acme-reports").file("q1/report 2026+é.csv");
    return {
      save_simple: () => object().save("a,b\n", { resumable: false, contentType: "text/csv" }),
      save_resumable: () => object().save(BIG, { resumable: true, contentType: "text/csv" }),
      list: () => storage().bucket("acme-reports").getFiles({ prefix: "q1/" }),
      delete: () => object().delete(),
    };
  },
  "azure-node": () => {
    const { BlobServiceClient, StorageSharedKeyCredential } = require("@azure/storage-blob");
    const key = new StorageSharedKeyCredential("acme", "bm90LWEtc2VjcmV0");
    const service = new BlobServiceClient("https://acme.blob.core.windows.net", key, { retryOptions: { maxTries: 1 } });
    const blob = service.getContainerClient("reports").getBlockBlobClient("q1/report 2026+é.csv");
    return {
      upload: () => blob.upload("a,b\n", 4, { blobHTTPHeaders: { blobContentType: "text/csv" } }),
      stage_block: () => blob.stageBlock("YQ==", BIG, BIG.length),
      download: () => blob.download(0, 10),
    };
  },
  "twilio-node": () => {
    const client = () => require("twilio")("AC00000000000000000000000000000000", "not-a-secret");
    return { message_create: () => client().messages.create({ to: "+431", from: "+432", body: "hi & bye" }) };
  },
  "sendgrid-node": () => {
    const mail = require("@sendgrid/mail");
    mail.setApiKey("SG.not-a-secret");
    return { mail_send: () => mail.send({ to: ["b@example.org"], from: "a@example.org", subject: "hi", text: "text" }) };
  },
};

function anonymous() {
  // A token that is already there: nothing is asked for one.
  const { OAuth2Client } = require("google-auth-library");
  const client = new OAuth2Client();
  client.setCredentials({ access_token: "ya29.not-a-secret" });
  return client;
}

const [client, call] = process.argv.slice(2);
if (!client) console.log(Object.keys(CLIENTS).join("\n"));
else if (!call) console.log(Object.keys(CLIENTS[client]()).join("\n"));
else {
  await CLIENTS[client]()[call]();
  process.exit(0);
}
