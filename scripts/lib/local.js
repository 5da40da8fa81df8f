// What the scripts share that try the whole thing on this machine: the program, its database, an org in memory. All of
// it listens on loopback alone and is gone when the script ends.
"use strict";
const { spawn, execFileSync } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const program = process.env.ORGSTREAM_PROGRAM || path.join(__dirname, "..", "..", "target", "debug", "orgstream");
const admin = process.env.ORGSTREAM_TEST_POSTGRES;
// A dyno's folder: whatever lies in the current one is not ours.
const elsewhere = fs.mkdtempSync(path.join(os.tmpdir(), "orgstream-script-"));

const children = new Set();
process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
  fs.rmSync(elsewhere, { recursive: true, force: true });
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => process.exit(1));

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until `look` gives something, a minute unless told. */
async function until(what, look, seconds = 60) {
  const end = Date.now() + seconds * 1000;
  do {
    const found = await look();
    if (found) return found;
    await sleep(100);
  } while (Date.now() < end);
  throw new Error(`waited ${seconds} s for: ${what}`);
}

/** A child whose words are kept in `said`, and which is killed when the script ends. One that ends by itself with a
 * failure is told of. */
function child(command, args, env) {
  const one = spawn(command, args, { cwd: elsewhere, env, stdio: ["ignore", "pipe", "pipe"] });
  children.add(one);
  one.said = "";
  // The end is of interest; a long run says much.
  for (const stream of [one.stdout, one.stderr]) stream.on("data", (data) => { one.said = (one.said + data).slice(-200000); });
  one.on("exit", (code) => {
    children.delete(one);
    if (code) console.error(`${path.basename(command)} ${args[0]} ended with ${code}: ${one.said.slice(-4000)}`);
  });
  return one;
}

/** `orgstream` with these arguments. */
const start = (args, env) => child(program, args, { ORGSTREAM_LOG: "warn", PATH: process.env.PATH, ...env });

/** Runs `orgstream` to its end, and gives what it prints. */
const run = (args, env) => execFileSync(program, args, { env, cwd: elsewhere, encoding: "utf8" });

const sql = (url, text) => execFileSync("psql", ["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", url, "-c", text], { encoding: "utf8" });

/** A new database, migrated. */
function database(name) {
  sql(admin, `create database ${name}`);
  const url = admin.replace(/\/[^/]*$/, "/" + name);
  run(["migrate"], { DATABASE_URL: url });
  return url;
}

/** An org in memory: its addresses, and what its admin API does. */
async function emulator(...args) {
  const started = start(["emulator", "--json", ...args], {});
  const line = await until("the emulator", () => started.said.includes("\n") && started.said.split("\n")[0]);
  const org = JSON.parse(line);
  const ask = async (method, where, body) => {
    const answer = await fetch(org.admin_url + where, { method, body: body && JSON.stringify(body), headers: { "content-type": "application/json" } });
    if (!answer.ok) throw new Error(`${where}: ${await answer.text()}`);
    return answer.json();
  };
  org.get = (where) => ask("GET", where);
  org.tell = (where, body = {}) => ask("POST", where, body);
  org.calm = () => ask("DELETE", "/faults");
  org.publish = (topic, events) => org.tell("/publish", { topic, events });
  return org;
}

/** The section that signs in to that org. */
const salesforce = (org, more = "") => `
[salesforce]
login_url = "${org.login_url}"
pubsub_endpoint = "${org.pubsub_endpoint}"
auth = "client_credentials"
client_id = "${org.client_id}"
client_secret = "${org.client_secret}"
${more}
`;

const subscription = (name, topic, handler, more = "") =>
  `[[subscription]]\nname = "${name}"\ntopic = "${topic}"\nstart = "earliest"\n${more}\n[[subscription.handler]]\n${handler}\n`;

/** A worker dyno. */
const worker = (name, url, config) => start(["run"], { DYNO: name, DATABASE_URL: url, ORGSTREAM_CONFIG: config });

/** The status page, and where it is. */
async function web(url, config, token, addr = "127.0.0.1:0") {
  const started = start(["web"], {
    ORGSTREAM_LOG: "info", DATABASE_URL: url, ORGSTREAM_WEB_TOKEN: token, ORGSTREAM_WEB_ADDR: addr, ORGSTREAM_CONFIG: config,
  });
  const line = await until("the status page", () => /status page served.*/.exec(started.said));
  return { child: started, addr: /addr=(\S+)/.exec(line[0])[1] };
}

/** Of each subscription its name, its state, and whether somebody holds it. */
const subscriptions = (url) => sql(url, "select name || ' ' || state || ' ' || coalesce(lease_until > now(), false) from orgstream.subscription order by name").trim().split("\n");

module.exports = {
  program, admin, elsewhere, sleep, until, child, start, run, sql, database, emulator, salesforce, subscription, worker, web, subscriptions,
};
