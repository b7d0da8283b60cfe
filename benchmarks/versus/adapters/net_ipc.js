// net-ipc between two Node programs, told what to do as worker.py is.
// node net_ipc.js VARIANT server|client ADDRESS

"use strict";
const { Server, Client } = require("net-ipc");
const { once } = require("node:events");
const readline = require("node:readline");

const [variant, role, address] = process.argv.slice(2);
const options = { path: address, messagepack: variant === "mp", retries: 0 };
const say = facts => process.stdout.write(JSON.stringify(facts) + "\n");
const now = () => Number(process.hrtime.bigint()) / 1e9;
const item = id => ({ id, name: "a name", value: 1.5, tags: ["a", "b"] });
const turn = () => new Promise(setImmediate);
// Not by awaiting what send returns: with several under way, net-ipc settles half of them only.
const drained = async ({ connection: socket }) => {
    if (socket && socket.writableNeedDrain) await once(socket, "drain");
};

class Sinks {
    constructor(count) {
        this.next = new Array(count).fill(0);
        this.last = this.waiting = 0;
    }
    expect(count) {
        this.next.fill(0);
        this.last = count;
        this.waiting = this.next.length;
    }
    take(at, value) {
        if (value.id !== this.next[at]) say({ error: `item ${value.id} came where ${this.next[at]} should` });
        this.next[at] = value.id + 1;
        if (this.next[at] === this.last && !--this.waiting) say({ done: now() });
    }
    missing() {
        return this.next.reduce((sum, next) => sum + this.last - next, 0);
    }
}

async function serve() {
    const sinks = new Sinks(1);
    const server = new Server(options);
    server.on("request", (value, answer) => answer(value));
    server.on("message", value => sinks.take(0, value));
    server.on("error", error => say({ error: String(error) }));
    await server.start();
    say({ ready: true, pids: [] });
    for await (const line of readline.createInterface({ input: process.stdin })) {
        const [command, number] = line.split(" ");
        if (command === "sink") {
            sinks.expect(+number);
            say({ ok: true });
        } else if (command === "publish") {
            const started = now();
            for (let at = 0; at < +number; at++) {
                server.broadcast(item(at));
                for (const connection of server.connections) await drained(connection);
                if (at % 64 === 0) await turn();
            }
            say({ started, ended: now() });
        }
    }
    process.exit(0);
}

async function drive() {
    let clients = [], sinks = new Sinks(0);
    const open = async sink => {
        const client = new Client(options);
        client.on("error", error => say({ error: String(error) }));
        if (sink) client.on("message", sink);
        await client.connect();
        return client;
    };
    const requests = async (seconds, atOnce) => {
        const took = [], started = now(), deadline = started + seconds;
        const worker = async number => {
            for (let before, at = started; at < deadline || !took.length; number++) {
                const answer = await clients[0].request(item(number));
                if (answer.id !== number) say({ error: `another answer than that to ${number}` });
                before = at;
                took.push((at = now()) - before);
            }
        };
        await Promise.all(Array.from({ length: atOnce }, (_, number) => worker(number * 2 ** 32)));
        say({ started, ended: now(), count: took.length });
        took.sort((a, b) => a - b);
        say({ p50: took[took.length >> 1], p99: took[Math.floor(took.length * 0.99)] });
    };
    const echo = async (size, seconds) => {
        const data = Buffer.alloc(size, "x"), started = now();
        const value = variant === "mp" ? data : data.toString("base64");
        let count = 0;
        for (; !count || now() < started + seconds; count++) {
            const answer = await clients[0].request(value, 60000);
            const bytes = variant === "mp" ? answer : Buffer.from(answer, "base64");
            if (bytes.length !== size) say({ error: "other bytes came back" });
        }
        say({ started, ended: now(), count });
    };
    const connects = async (count, atOnce) => {
        const started = now();
        await Promise.all(Array.from({ length: atOnce }, async () => {
            for (let at = 0; at < Math.floor(count / atOnce); at++) {
                const client = await open();
                await client.request(item(at));
                await client.close();
            }
        }));
        say({ started, ended: now(), count: Math.floor(count / atOnce) * atOnce });
    };
    say({ ready: true });
    for await (const line of readline.createInterface({ input: process.stdin })) {
        const [command, ...rest] = line.split(" ");
        if (command === "open" || command === "hold") {
            for (let at = 0; at < +(rest[0] ?? 1); at++) clients.push(await open());
            say({ ok: true });
        } else if (command === "close" || command === "drop") {
            await Promise.all(clients.map(client => client.close()));
            clients = [];
            say({ ok: true });
        } else if (command === "requests") {
            await requests(+rest[0], +rest[1]);
        } else if (command === "send") {
            const started = now();
            for (let at = 0; at < +rest[0]; at++) {
                clients[0].send(item(at));
                await drained(clients[0]);
            }
            say({ started, ended: now() });
        } else if (command === "echo") {
            await echo(+rest[0], +rest[1]);
        } else if (command === "connects") {
            await connects(+rest[0], +rest[1]);
        } else if (command === "subscribe") {
            sinks = new Sinks(+rest[0]);
            for (let at = 0; at < +rest[0]; at++) clients.push(await open(value => sinks.take(at, value)));
            say({ ok: true });
        } else if (command === "hear") {
            sinks.expect(+rest[0]);
            say({ ok: true });
        } else if (command === "missing") {
            say({ missing: sinks.missing() });
        }
    }
    process.exit(0);
}

(role === "server" ? serve() : drive()).catch(error => {
    say({ error: String(error && error.stack || error) });
    process.exit(1);
});
