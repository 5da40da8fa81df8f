// The public npm client, unmodified, counting what comes: what `scripts/bench` compares orgstream with.
//
// Environment: ENDPOINT (host:port; TLS), TOKEN, INSTANCE_URL, TOPIC, COUNT, FROM (earliest or latest).
// Standard output: one line of JSON when COUNT events have come; then it waits for the end of its standard input, so that
// its memory can be looked at. With FROM=latest the ID of an event is the time at which it was published, in
// microseconds, and the figures hold the time from there to the callback.

import PubSubApiClient from 'salesforce-pubsub-api-client';

const { env } = process;
const logger = { debug() {}, info() {}, warn: console.error, error: console.error };
const count = Number(env.COUNT);
const latencies = [];
let received = 0;
let began;
let cpu;

function microseconds() {
    return (performance.timeOrigin + performance.now()) * 1000;
}

function report() {
    const seconds = (performance.now() - began) / 1000;
    const used = process.cpuUsage(cpu);
    latencies.sort((a, b) => a - b);
    const at = (share) => latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * share))] ?? null;
    const figures = {
        events: received - 1,
        seconds,
        cpu_seconds: (used.user + used.system) / 1e6,
        p50_us: at(0.5),
        p99_us: at(0.99)
    };
    process.stdout.write(`${JSON.stringify(figures)}\n`);
}

function onEvent(event) {
    received += 1;
    if (received === 1) {
        began = performance.now();
        cpu = process.cpuUsage();
    }
    if (env.FROM === 'latest' && /^\d+$/.test(event.id)) {
        latencies.push(microseconds() - Number(event.id));
    }
    if (received === count) {
        report();
    }
}

const client = new PubSubApiClient(
    {
        authType: 'user-supplied',
        accessToken: env.TOKEN,
        instanceUrl: env.INSTANCE_URL,
        pubSubEndpoint: env.ENDPOINT,
        rejectUnauthorizedSsl: false
    },
    logger
);
await client.connect();
const callback = (subscription, type, data) => {
    if (type === 'event') {
        onEvent(data);
    } else if (type === 'error') {
        console.error('failed:', data);
        process.exit(1);
    }
};
// Without a number of its own the client asks for 100, and for 100 more when they have come.
if (env.FROM === 'latest') {
    client.subscribe(env.TOPIC, callback);
} else {
    client.subscribeFromEarliestEvent(env.TOPIC, callback);
}
process.stdin.on('end', () => process.exit(0)).resume();
