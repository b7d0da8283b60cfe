// The window of a desktop program, without the window: what an Electron or Node process does.
//
//     node window.js PATH
//
// It knows the package net-ipc and nothing of interphone. A call is a request in the words of
// JSON-RPC 2.0; with an `id` the engine reports progress, and the call can be taken back.

const { Client } = require("net-ipc");

async function main(path) {
    const client = new Client({ path, reconnect: false });
    await client.connect({ program: "window.js" });

    let heard = [];
    client.on("message", message => {
        if (message.method !== "$/progress") return;
        heard.push(message.params.value);
        if (message.params.token === "too long") {
            client.send({ jsonrpc: "2.0", method: "$/cancelRequest", params: { id: "too long" } });
        }
    });
    const call = (method, params, id) => client.request({ jsonrpc: "2.0", method, params, id });

    const report = (await call("train", { epochs: 4, rate: 0.5 }, "first")).result;
    const progress = heard;
    heard = [];
    const refused = (await call("train", { epochs: "four" })).error;
    const cancelled = (await call("train", { epochs: 1000000 }, "too long")).error;

    await client.close();
    return { progress, report, refused, cancelled, epochs: heard.length };
}

main(...process.argv.slice(2)).then(
    told => console.log(JSON.stringify(told)),
    error => {
        console.error(error);
        process.exit(1);
    },
);
