"use strict";
// Drives net-ipc, or our stand-in for @isdk/ipc-server, by lines of JSON.
//
//   in   {"id": 1, "do": "request", "key": "a", "data": 5}
//   out  {"id": 1, "ok": 5}   or   {"id": 1, "error": {"message", "code", "data"}}
//   out  {"event": "message", "key": "a", "data": 5, "peer": "id of the connection"}
//
// Clients and servers are named by a key of the caller's choice. The commands are the functions of
// `commands`, at the end. Values that JSON lacks are tagged as in the recorded vectors:
//
//   {"$undefined": true}  {"$float": "NaN"}  {"$bytes": hex}  {"$date_ms": n}  {"$bigint": "n"}
//   {"$map": [[k, v]]}  {"$error": {message, code, data}}  {"$digest": {length, sha256}}
//   {"$object": {...}} is an object of which a key begins with "$".

const { createHash } = require("crypto");
const readline = require("readline");
const families = { net: require("net-ipc"), isdk: require("./isdk.js") };

const ends = new Map(); // key -> the entry that create() makes

// Values

const tags = {
  $undefined: () => undefined,
  $float: (text) => Number(text),
  $bytes: (hex) => Buffer.from(hex, "hex"),
  $date_ms: (number) => new Date(number === null ? NaN : number),
  $bigint: (text) => BigInt(text),
  $map: (pairs) => new Map(pairs.map(([key, value]) => [decode(key), decode(value)])),
  $object: (object) => mapObject(object, decode),
};

function decode(value) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(decode);
  const keys = Object.keys(value);
  const read = keys.length === 1 && Object.hasOwn(tags, keys[0]) && tags[keys[0]];
  return read ? read(value[keys[0]]) : mapObject(value, decode);
}

function encode(value, limit = Infinity) {
  const inner = (item) => encode(item, limit);
  switch (typeof value) {
    case "undefined": case "function": case "symbol":
      return { $undefined: true };
    case "bigint":
      return { $bigint: String(value) };
    case "number":
      if (Object.is(value, -0)) return { $float: "-0" };
      return Number.isFinite(value) ? value : { $float: String(value) };
    case "string":
      return value.length > limit ? inner(new Digest(value)) : value;
    case "boolean":
      return value;
  }
  if (value === null) return null;
  if (Array.isArray(value)) return Array.from(value, inner);
  if (value instanceof Uint8Array) {
    const bytes = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
    return bytes.length > limit ? inner(new Digest(bytes)) : { $bytes: bytes.toString("hex") };
  }
  if (value instanceof Digest) return { $digest: { ...value } };
  if (value instanceof Date) return { $date_ms: Number.isNaN(+value) ? null : +value };
  if (value instanceof Map) {
    return { $map: [...value].map(([key, item]) => [inner(key), inner(item)]) };
  }
  if (value instanceof Error) return { $error: describe(value) };
  const object = mapObject(value, inner);
  return Object.keys(value).some((key) => key.startsWith("$")) ? { $object: object } : object;
}

function mapObject(object, change) {
  const changed = {};
  for (const key of Object.keys(object)) { // `__proto__` stays an ordinary key
    Object.defineProperty(changed, key,
      { value: change(object[key]), enumerable: true, configurable: true, writable: true });
  }
  return changed;
}

class Digest {
  constructor(content) {
    this.length = content.length;
    this.sha256 = createHash("sha256").update(Buffer.from(content)).digest("hex");
  }
}

function describe(error) {
  if (error === null || typeof error !== "object") return { message: String(error) };
  return { message: error.message, code: error.code, data: encode(error.data) };
}

function settled(results) {
  return results.map(({ status, value, reason }) =>
    status === "fulfilled" ? { value } : { error: describe(reason) });
}

// Lines

function write(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}

async function obey(line) {
  const { id, do: name, ...fields } = JSON.parse(line);
  try {
    if (!Object.hasOwn(commands, name)) throw new Error(`no such command: ${name}`);
    const given = mapObject(fields, decode);
    const value = await commands[name](given);
    const { digest: limit } = ends.get(given.key) || {};
    write({ id, ok: encode(value, limit) });
  } catch (error) {
    write({ id, error: describe(error) });
  }
}

// Ends

const eventNames = {
  client: ["ready", "message", "request", "error", "close", "status", "pub"],
  server: ["ready", "connect", "disconnect", "message", "request", "error", "close"],
};

function create(role, { key, kind = "net", options = {}, events, reply = "echo", ids, digest: limit = 65536 }) {
  if (ends.has(key)) throw new Error(`there is a ${key} already`);
  const Class = families[kind][role === "client" ? "Client" : "Server"];
  if (ids) options = { ...options, generateID: () => ids.shift() };
  // On Windows net-ipc puts this in front, even if it is there.
  if (options.path) options = { ...options, path: options.path.replace("\\\\.\\pipe\\", "") };
  const entry = {
    key, kind, role, end: new Class(options), digest: limit, reply,
    forwarded: new Set(events || eventNames[role]), counts: {}, inOrder: true, last: undefined,
    held: new Map(), nextHeld: 1,
  };
  ends.set(key, entry);
  for (const name of eventNames[role]) {
    if (name !== "request") entry.end.on(name, (...values) => note(entry, name, values));
  }
  setReply(entry, reply);
  return entry;
}

function note(entry, name, values, more = {}) {
  entry.counts[name] = (entry.counts[name] || 0) + 1;
  const line = { event: name, key: entry.key, ...more };
  let [data, second] = values;
  if (entry.role === "server" && (name === "connect" || name === "disconnect")) {
    line.peer = data && data.id;
    data = second;
  } else if (name === "pub") {
    line.topic = data;
    data = second;
  } else if (second && typeof second === "object") {
    line.peer = second.id;
  }
  if (name === "message" && typeof data === "number") {
    if (entry.last !== undefined && data !== entry.last + 1) entry.inOrder = false;
    entry.last = data;
  }
  if (entry.forwarded.has(name)) write({ ...line, data: encode(data, entry.digest) });
}

// How requests are answered: "echo", "none" (heard, never answered), "unheard" (no listener at
// all), "manual" (the event carries a token for the command `reply`), or {"value": a fixed one}.
function setReply(entry, policy) {
  entry.reply = policy;
  entry.end.removeAllListeners("request");
  if (policy === "unheard") return;
  entry.end.on("request", (data, answer, peer) => {
    const send = (value) => Promise.resolve(answer(value)).catch((e) => note(entry, "error", [e]));
    const more = {};
    if (policy === "manual") {
      more.token = entry.nextHeld++;
      entry.held.set(more.token, send);
    }
    note(entry, "request", [data, peer], more);
    if (policy === "echo") send(data);
    else if (policy && typeof policy === "object") send(policy.value);
  });
}

function find({ key }) {
  const entry = ends.get(key);
  if (!entry) throw new Error(`there is no ${key}`);
  return entry;
}

// The client itself, or the server's connection that `peer` names (the first, if none is named).
function speaker(given) {
  const { end, role } = find(given);
  if (role === "client") return end;
  const { connections } = end;
  const found = given.peer === undefined ? connections[0] : connections.find((c) => c.id === given.peer);
  if (!found) throw new Error(`no connection ${given.peer}`);
  return found;
}

// The whole end, or one connection of a server if `peer` is given.
function target(given) {
  return given.peer === undefined ? find(given).end : speaker(given);
}

const flow = (given, verb) => {
  const one = target(given);
  if (typeof one[verb] === "function") one[verb]();
  else one.connection[verb](); // net-ipc's client has no pause() of its own
};

// `bytes` ASCII characters that neither repeat soon nor compress to nothing.
function bigText(bytes) {
  const words = Array.from({ length: 30000 }, (_, i) => `${(i * 2654435761 >>> 0).toString(36)} `);
  const block = words.join("");
  return block.repeat(Math.ceil(bytes / block.length)).slice(0, bytes);
}

const commands = {
  versions: () => ({ node: process.versions.node, net_ipc: require("net-ipc/package.json").version }),

  "create-server": async (given) => {
    const { end } = create("server", given);
    if (given.start !== false) await end.start();
  },
  "create-client": (given) => { create("client", given); },
  start: async (given) => { await find(given).end.start(); },
  connect: async (given) => {
    const { end } = find(given);
    await end.connect(given.payload);
    return { id: end.id, status: end.status };
  },
  forget: ({ key }) => ends.delete(key),

  send: (given) => speaker(given).send(given.data),
  request: (given) => speaker(given).request(given.data, given.timeout),
  ping: (given) => speaker(given).ping(given.data, given.timeout),
  broadcast: (given) => find(given).end.broadcast(given.data),
  survey: async (given) => settled(await find(given).end.survey(given.data, given.timeout)),
  "server-ping": async (given) => settled(await find(given).end.ping(given.data, given.timeout)),

  // Many at once: numbers 0 to count-1, or `data` count times. Sends are not awaited. After a burst
  // that had to wait for the socket, net-ipc's close() never ends (it forgets half of those who
  // wait): use `destroy`.
  burst: async (given) => {
    const from = speaker(given);
    const values = Array.from({ length: given.count }, (_, i) => ("data" in given ? given.data : i));
    if (given.as === "request") {
      const results = await Promise.allSettled(values.map((v) => from.request(v, given.timeout)));
      const same = results.filter((r, i) => r.status === "fulfilled" && r.value === values[i]).length;
      return { answered: results.filter((r) => r.status === "fulfilled").length, same };
    }
    for (const value of values) from.send(value).catch(() => {});
    return { sent: values.length };
  },

  // One long text; only its length and hash come back, and those of the answer.
  big: async (given) => {
    const text = bigText(given.bytes);
    if (given.as === "request") {
      const answer = await speaker(given).request(text, given.timeout);
      return { sent: new Digest(text), answer: typeof answer === "string" ? new Digest(answer) : answer };
    }
    await speaker(given).send(text);
    return { sent: new Digest(text) };
  },

  subscribe: (given) => speaker(given).subscribe(given.topic),
  unsubscribe: (given) => speaker(given).unsubscribe(given.topic),
  // A server publishes to its subscribers; with `peer`, one of its connections asks the other end.
  publish: (given) => target(given).publish(given.topic, given.message),

  "set-reply": (given) => setReply(find(given), given.reply),
  reply: (given) => {
    const { held } = find(given);
    const send = held.get(given.token);
    if (!send) throw new Error(`no request ${given.token} waits`);
    held.delete(given.token);
    return send(given.data);
  },
  events: (given) => { find(given).forwarded = new Set(given.events); },

  pause: (given) => flow(given, "pause"),
  resume: (given) => flow(given, "resume"),
  close: async (given) => {
    const { role } = find(given);
    if (role === "server" && given.peer === undefined) await find(given).end.close(given.allow_reconnect);
    else return speaker(given).close(given.reason, given.allow_reconnect);
  },
  destroy: (given) => speaker(given).destroy(given.reason),

  peers: (given) => find(given).end.connections.map((c) => c.id),
  status: (given) => {
    const { end, counts, inOrder, role } = find(given);
    const { compress, messagepack } = end.options;
    const common = { counts, in_order: inOrder };
    return role === "client" ? { ...common, status: end.status, id: end.id, compress, messagepack } : common;
  },
};

readline.createInterface({ input: process.stdin })
  .on("line", obey)
  .on("close", () => process.exit(0));
write({ event: "hello", data: process.versions.node });
