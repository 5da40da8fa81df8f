// The public npm client, unmodified, against an org: real or emulated.
//
//   node check.mjs subscribe TOPIC COUNT [REPLAY_ID]   from EARLIEST, or after a replay ID (a number)
//   node check.mjs publish TOPIC FIELDS...             each FIELDS a JSON object
//
// Standard output: one JSON object a line, an event or a publish result each; whole numbers that do not
// fit a double are strings. Exit code 0 when COUNT events came or everything was published, else 1.
//
// Environment: LOGIN_URL, PUBSUB_ENDPOINT (host:port; TLS), CLIENT_ID, and CLIENT_SECRET, or USERNAME
// and PRIVATE_KEY (PEM) for the JWT flow, or ACCESS_TOKEN and INSTANCE_URL; TIMEOUT_MS (30000).
// The client brings its own list of trusted certificates, so the emulator's is not checked; sign-in over
// https trusts NODE_EXTRA_CA_CERTS.

import PubSubApiClient from 'salesforce-pubsub-api-client';

const { env } = process;

function authentication() {
    const loginUrl = env.LOGIN_URL;
    if (env.ACCESS_TOKEN) {
        return {
            authType: 'user-supplied',
            accessToken: env.ACCESS_TOKEN,
            instanceUrl: env.INSTANCE_URL
        };
    }
    if (env.PRIVATE_KEY) {
        return {
            authType: 'oauth-jwt-bearer',
            loginUrl,
            clientId: env.CLIENT_ID,
            username: env.USERNAME,
            privateKey: env.PRIVATE_KEY
        };
    }
    return {
        authType: 'oauth-client-credentials',
        loginUrl,
        clientId: env.CLIENT_ID,
        clientSecret: env.CLIENT_SECRET
    };
}

// Standard output is for results alone.
const log = (...parts) => console.error(...parts);
const logger = { debug() {}, info: log, warn: log, error: log };

function print(value) {
    const text = JSON.stringify(value, (_, part) => (typeof part === 'bigint' ? part.toString() : part));
    process.stdout.write(`${text}\n`);
}

function fail(reason) {
    console.error('failed:', reason);
    process.exit(1);
}

function subscribe(client, topic, count, replayId) {
    return new Promise((resolve, reject) => {
        let received = 0;
        const callback = (subscription, type, data) => {
            if (type === 'event') {
                print(data);
                received += 1;
                if (received === count) {
                    resolve();
                }
            } else if (type === 'error') {
                reject(data);
            } else if (type === 'end') {
                reject(new Error(`the stream ended after ${received} events`));
            }
        };
        // Without a number of its own the client asks for 100 and keeps asking.
        if (replayId === undefined) {
            client.subscribeFromEarliestEvent(topic, callback);
        } else {
            client.subscribeFromReplayId(topic, callback, null, Number(replayId));
        }
    });
}

async function publish(client, topic, events) {
    for (const fields of events) {
        const result = await client.publish(topic, JSON.parse(fields));
        if (result.error) {
            throw new Error(result.error.msg);
        }
        print(result);
    }
}

setTimeout(() => fail('timed out'), Number(env.TIMEOUT_MS ?? 30000)).unref();

try {
    const client = new PubSubApiClient(
        {
            ...authentication(),
            pubSubEndpoint: env.PUBSUB_ENDPOINT,
            rejectUnauthorizedSsl: false
        },
        logger
    );
    await client.connect();
    const [command, topic, ...rest] = process.argv.slice(2);
    if (command === 'subscribe') {
        await subscribe(client, topic, Number(rest[0]), rest[1]);
    } else if (command === 'publish') {
        await publish(client, topic, rest);
    } else {
        throw new Error(`unknown command ${command}`);
    }
    client.close();
    process.exit(0);
} catch (error) {
    fail(error);
}
