// An independent reading of proxy/SPEC.md: a log folder is verified with nothing of Holdgate's.
//
//   node verify.mjs LOG_FOLDER JWKS_FILE [JOSE_FOLDER] < proofs
//
// Checkpoint (c2sp.org/signed-note), tiles (c2sp.org/tlog-tiles), every receipt (RFC 7515, RFC 8785), and every
// c2sp.org/tlog-proof given on standard input as JSON {"<receipt id>": "<text>"}. JOSE_FOLDER is the npm package
// `jose`; without it signatures are verified with Node's own crypto. Prints counts as JSON; any mistake is exit 1.
import { createHash, createPublicKey, verify as verifyWithNode } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, jwksFile, joseFolder] = process.argv.slice(2);
const fail = (text) => { console.error(text); process.exit(1); };
const sha256 = (...parts) => { const hash = createHash("sha256"); parts.forEach((p) => hash.update(p)); return hash.digest(); };
const leafHash = (leaf) => sha256(Buffer.from([0]), leaf);
const nodeHash = (left, right) => sha256(Buffer.from([1]), left, right);

function merkle(hashes) { // RFC 6962 2.1
  if (hashes.length === 0) return sha256();
  if (hashes.length === 1) return hashes[0];
  let k = 1;
  while (k * 2 < hashes.length) k *= 2;
  return nodeHash(merkle(hashes.slice(0, k)), merkle(hashes.slice(k)));
}

function included(leaf, index, size, path) { // RFC 9162 2.1.3.2
  let [fn, sn, node] = [index, size - 1, leaf];
  for (const p of path) {
    if (sn === 0) return null;
    if (fn % 2 === 1 || fn === sn) {
      node = nodeHash(p, node);
      while (fn % 2 === 0 && fn !== 0) { fn = Math.floor(fn / 2); sn = Math.floor(sn / 2); }
    } else node = nodeHash(node, p);
    fn = Math.floor(fn / 2); sn = Math.floor(sn / 2);
  }
  return sn === 0 ? node : null;
}

const vkey = readFileSync(join(folder, "key.vkey"), "utf8").trim();
const [, logName, keyId, keyText] = /^([^+]+)\+([0-9a-f]{8})\+(.+)$/.exec(vkey) ?? fail("not a vkey");
const logKey = Buffer.from(keyText, "base64");
if (sha256(logName + "\n", logKey).subarray(0, 4).toString("hex") !== keyId) fail("the key id is wrong");
const spki = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), logKey.subarray(1)]);
const logPublic = createPublicKey({ key: spki, format: "der", type: "spki" });

function checkpointOf(note) {
  const at = note.indexOf("\n\n");
  const text = note.slice(0, at + 1);
  const ours = note.slice(at + 2).split("\n").filter((line) => line.startsWith(`\u2014 ${logName} `));
  const signature = Buffer.from(ours[0].split(" ")[2], "base64");
  if (signature.subarray(0, 4).toString("hex") !== keyId) fail("signed by another key");
  if (!verifyWithNode(null, Buffer.from(text), logPublic, signature.subarray(4))) fail("the checkpoint's signature is wrong");
  const [origin, size, root] = text.split("\n");
  if (origin !== logName) fail("the checkpoint is of another log");
  return { size: Number(size), root };
}

const path = (n) => {
  let name = String(n % 1000).padStart(3, "0");
  for (n = Math.floor(n / 1000); n; n = Math.floor(n / 1000)) name = `x${String(n % 1000).padStart(3, "0")}/${name}`;
  return name;
};
function tile(level, n, width) {
  return readFileSync(join(folder, "tile", String(level), path(n) + (width === 256 ? "" : `.p/${width}`)));
}

const head = checkpointOf(readFileSync(join(folder, "checkpoint"), "utf8"));
const leaves = [];
for (let n = 0; n * 256 < head.size; n++) {
  const width = Math.min(256, head.size - n * 256);
  const data = tile("entries", n, width);
  let at = 0;
  for (let i = 0; i < width; i++) {
    const length = data.readUInt16BE(at);
    leaves.push(data.subarray(at + 2, at + 2 + length));
    at += 2 + length;
  }
  if (at !== data.length) fail(`bundle ${n} goes on`);
}
let hashes = leaves.map(leafHash);
if (merkle(hashes).toString("base64") !== head.root) fail("the leaves are not what was signed");
for (let level = 0; hashes.length; level++) {
  for (let n = 0; n * 256 < hashes.length; n++) {
    const wanted = hashes.slice(n * 256, n * 256 + 256);
    if (!tile(level, n, wanted.length).equals(Buffer.concat(wanted))) fail(`tile ${level}/${n} is wrong`);
  }
  const full = Math.floor(hashes.length / 256);
  hashes = Array.from({ length: full }, (_, n) => merkle(hashes.slice(n * 256, n * 256 + 256)));
}

const jwks = JSON.parse(readFileSync(jwksFile, "utf8"));
const jose = joseFolder ? await import(pathToFileURL(join(joseFolder, "dist/webapi/index.js"))) : null;
const joseKeys = jose ? jose.createLocalJWKSet(jwks) : null;
async function payloadOf(jws) {
  if (jose) {
    const { payload, protectedHeader } = await jose.compactVerify(jws, joseKeys, { algorithms: ["EdDSA", "Ed25519"] });
    return [protectedHeader, Buffer.from(payload)];
  }
  const [header, payload, signature] = jws.split(".");
  const said = JSON.parse(Buffer.from(header, "base64url"));
  const key = createPublicKey({ key: jwks.keys.find((k) => k.kid === said.kid), format: "jwk" });
  if (!verifyWithNode(null, Buffer.from(`${header}.${payload}`), key, Buffer.from(signature, "base64url"))) fail("a receipt's signature is wrong");
  return [said, Buffer.from(payload, "base64url")];
}
const canonical = (value) => Array.isArray(value) ? `[${value.map(canonical).join(",")}]`
  : value !== null && typeof value === "object" ? `{${Object.keys(value).sort().map((k) => `${JSON.stringify(k)}:${canonical(value[k])}`).join(",")}}`
  : JSON.stringify(value);

const counts = { size: head.size, decision: 0, outcome: 0, admin: 0, approval: 0, proofs: 0, jose: Boolean(jose) };
const indexOf = new Map();
for (const [index, leaf] of leaves.entries()) {
  const [header, payload] = await payloadOf(leaf.toString("ascii")).catch((error) => fail(`leaf ${index}: ${error}`));
  const statement = JSON.parse(payload);
  if (header.typ !== "holdgate-receipt+jws" || statement.iss !== logName) fail(`leaf ${index} is no receipt of this log`);
  if (canonical(statement) !== payload.toString("utf8")) fail(`leaf ${index} is not canonical`);
  counts[statement.type] += 1;
  indexOf.set(statement.id, index);
}
for (const [id, text] of Object.entries(JSON.parse(readFileSync(0, "utf8") || "{}"))) {
  const at = text.indexOf("\n\n");
  const [first, second, ...lines] = text.slice(0, at).split("\n");
  if (first !== "c2sp.org/tlog-proof@v1" || second !== `index ${indexOf.get(id)}`) fail(`the proof of ${id} is of something else`);
  const signed = checkpointOf(text.slice(at + 2));
  const root = included(leafHash(leaves[indexOf.get(id)]), indexOf.get(id), signed.size, lines.map((line) => Buffer.from(line, "base64")));
  if (root?.toString("base64") !== signed.root) fail(`the proof of ${id} does not verify`);
  counts.proofs += 1;
}
console.log(JSON.stringify(counts));
