// The client of another language: the package net-ipc, which knows nothing of interphone.
//
//     node client.js PATH COUNT QUESTION...
//
// It asks the daemon the questions in turn, COUNT times in all, then something the daemon must
// refuse, and prints what it got as JSON.

const { Client } = require("net-ipc");

async function main(path, count, ...questions) {
    const client = new Client({ path, reconnect: false });
    await client.connect({ program: "client.js" });

    const hits = await client.request({ search: questions[0], limit: 3 });
    const times = [];
    for (let i = 0; i < count; i++) {
        const start = performance.now();
        await client.request(questions[i % questions.length]);
        times.push((performance.now() - start) / 1000);
    }

    const start = performance.now();
    const refused = await client.request({ search: 42 });
    const refusedIn = (performance.now() - start) / 1000;

    await client.close();
    return { node: process.version, hits, times, refused, refusedIn };
}

main(...process.argv.slice(2)).then(
    told => console.log(JSON.stringify(told)),
    error => {
        console.error(error);
        process.exit(1);
    },
);
