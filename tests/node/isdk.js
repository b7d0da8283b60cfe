"use strict";
// A stand-in for @isdk/ipc-server 0.3.6, which is on no registry: net-ipc, changed at run time to
// what docs/from-node.md tells of the other, defects that a peer can see included.
//
// It does what the original does with: CONNECTION (extras and id only), requests as subscriptions
// (strings too), subscriptions kept by id, requests nobody hears, a frame's last byte arriving
// alone, the refusal text, timeout errors, the value of send() and of the server's ping(), paths.
// Unlike the original, `server.close()` works, because tests must end.

const { tmpdir } = require("os");
const { Client: NetClient, Server: NetServer } = require("net-ipc");
const NetConnection = require("net-ipc/src/connection.js");

const CONNECTION = 0, MESSAGE = 1, REQUEST = 2, RESPONSE = 3;
const ORPHAN = "Closing orphaned connection";
const HANDSHAKE_MS = 10000;

const isObject = (value) => value !== null && typeof value === "object";

// Where the original puts a bare name.
function place(path = "isdk-ipc") {
  if (process.platform === "win32" || /^[./]/.test(path)) return path;
  return `${process.env.TMPDIR || process.env.TMP || process.env.TEMP || tmpdir()}/${path}`;
}

// What both ends share, laid over net-ipc's Client and its Connection.
const shared = (Base) => class extends Base {
  constructor(...given) {
    super(...given);
    this._requests = {}; // net-ipc has one table for the whole process
    this._drainQueue = [];
    this._forget();
  }

  // Takes all bytes there are, unless there is just one: that one stays where it is until more
  // come. Other than net-ipc, which leaves unfinished frames in the socket, it so misses the last
  // byte of a frame when that arrives alone.
  _read() {
    const socket = this.connection;
    while (this.connection === socket && socket.readableLength > 1) {
      const chunk = socket.read();
      this._chunks.push(chunk);
      this._size += chunk.length;
      for (let body; (body = this._frame()) !== undefined;) {
        try {
          this._parse(JSON.parse(body));
        } catch (error) {
          socket.emit("error", error);
        }
      }
    }
  }

  // The next whole frame's body, cut off the waiting bytes.
  _frame() {
    if (this._size < this._enough) return undefined;
    const bytes = Buffer.concat(this._chunks);
    const last = bytes.findIndex((byte) => byte > 127);
    if (last < 0) {
      this._keep(bytes, 0);
      return undefined;
    }
    let length = 0;
    for (const digit of bytes.subarray(0, last + 1)) length = length * 128 + (digit & 127);
    const end = last + 1 + length;
    if (bytes.length < end) {
      this._keep(bytes, end);
      return undefined;
    }
    this._keep(bytes.subarray(end), 0);
    return bytes.subarray(last + 1, end);
  }

  _keep(bytes, enough) {
    this._chunks = [bytes];
    this._size = bytes.length;
    this._enough = Math.max(1, enough); // not worth a look before
  }

  _forget() {
    this._keep(Buffer.alloc(0), 0);
  }

  _drain() {
    for (const { resolve } of this._drainQueue.splice(0)) resolve();
  }

  async send(data) {
    const failed = await super.send(data);
    return failed === undefined ? true : failed;
  }

  request(data, timeout) {
    return super.request(data, timeout).catch((reason) => { throw timedOut(reason, "request"); });
  }

  ping(data, timeout) {
    return super.ping(data, timeout).catch((reason) => { throw timedOut(reason, "ping"); });
  }

  subscribe(topic) { return this.request({ sub: topic }); }
  unsubscribe(topic) { return this.request({ unsub: topic }); }
  publish(topic, message) { return this.request({ pub: topic, message }); }
};

function timedOut(reason, op) {
  if (reason !== "request timed out") return reason;
  return Object.assign(new Error("Timeout"), { code: 408, data: { op } });
}

class Client extends shared(NetClient) {
  constructor(options = {}) {
    const { path } = options;
    super({ path: place(path), options: options.options, ...only(options, "reconnect", "retries", "maxRetryTime") });
  }

  _ready() {
    this._forget();
    super._ready();
  }

  _write(op, data, nonce) {
    if (op === CONNECTION) data = { extras: data.extras, id: data.id || undefined };
    return super._write(op, data, nonce);
  }

  _parse(packet) {
    if (packet.t === MESSAGE && isObject(packet.d) && packet.d.pub && packet.d.message) {
      const { pub: topic, message } = packet.d;
      this.emit("pub", topic, message); // for the agent; the original has only the next line
      if (topic !== "pub") this.emit(topic, message);
    } else {
      super._parse(packet);
    }
  }
}

class Connection extends shared(NetConnection) {
  // No HTTP: GET hears nothing until the time for CONNECTION is over.
  _init() {
    const socket = this.connection;
    const head = socket.read(3);
    if (!head) return;
    socket.removeAllListeners("readable");
    if (head.toString() === "IPC") {
      socket.on("readable", this._read.bind(this));
      this._read();
    } else if (head.toString() !== "GET") {
      socket.end("HTTP/1.1 404 Not Found");
    }
  }

  _write(op, data, nonce) {
    return super._write(op, op === CONNECTION ? { id: data.id } : data, nonce);
  }

  close(reason, allowReconnect) {
    return super.close(reason === "closing orphaned connection" ? ORPHAN : reason, allowReconnect);
  }

  _parse(packet) {
    if (packet.t === CONNECTION && isObject(packet.d)) {
      super._parse({ ...packet, d: { extras: packet.d.extras, id: packet.d.id } });
    } else if (packet.t === REQUEST && this.connectedAt) {
      this._serve(packet).catch((error) => this.connection && this.connection.emit("error", error));
    } else {
      super._parse(packet);
    }
  }

  // Publish/subscribe first, then the listeners. A string has a truthy `sub`: the method that
  // every string inherits. Nobody there: no answer, ever.
  async _serve(packet) {
    const asked = packet.d === undefined || packet.d === null ? {} : packet.d;
    const { server } = this;
    let result;
    if (asked.pub) {
      await server._deliver(String(asked.pub), asked);
      result = true;
    } else if (asked.sub) {
      result = server._subscribe(this, [asked.sub].flat());
    } else if (asked.unsub) {
      result = server._unsubscribe(this, [asked.unsub].flat());
    } else {
      await undefined; // listeners come a little later than messages do
      if (server.listenerCount("request")) super._parse(packet);
      return;
    }
    await this._tryWrite(RESPONSE, { result }, packet.n);
  }
}

class Server extends NetServer {
  constructor(options = {}) {
    super({ path: place(options.path), ...only(options, "max", "retries", "generateID", "listenOptions") });
    this._topics = new Map(); // topic -> Map of id -> the connection that subscribed, dead or alive
  }

  publish(topic, message) {
    const whole = isObject(topic) ? topic : { pub: topic, message };
    return this._deliver(String(whole.pub), whole);
  }

  async ping(data, timeout) {
    const { connections } = this;
    return Promise.allSettled(connections.map(async (c) => ({ id: c.id, ping: await c.ping(data, timeout) })));
  }

  async _deliver(topic, whole) {
    for (const connection of [...(this._topics.get(topic) || new Map()).values()]) {
      await connection.send(whole).catch(() => {});
    }
  }

  _subscribe(connection, topics) {
    const fresh = topics.map(String).filter((topic) => {
      if (!this._topics.has(topic)) this._topics.set(topic, new Map());
      const subscribers = this._topics.get(topic);
      return !subscribers.has(connection.id) && subscribers.set(connection.id, connection);
    });
    return fresh.length > 0;
  }

  _unsubscribe({ id }, topics) {
    const gone = topics.map(String).filter((topic) => (this._topics.get(topic) || new Map()).delete(id));
    return gone.length > 0;
  }

  // net-ipc makes its own kind of connection here.
  _onconnection(socket) {
    const connection = new Connection(socket, this);
    connection.id = this.options.idGen ? this.options.idGen() : connection._nonce();
    const late = setTimeout(() => connection.close(), HANDSHAKE_MS);
    socket.once("close", () => clearTimeout(late));
    socket.once("ready", (extras) => {
      clearTimeout(late);
      connection.connectedAt = Date.now();
      this.connections.push(connection);
      this.emit("connect", connection, extras);
    });
  }
}

function only(options, ...names) {
  return Object.fromEntries(names.filter((name) => name in options).map((name) => [name, options[name]]));
}

module.exports = { Client, Server };
