// A Prometheus that watches one installation, with the configuration and the rules of deploy/prometheus. Of the
// configuration nothing is changed but the times between scrapes, the addresses, and where the token is.
"use strict";
const fs = require("node:fs");
const http = require("node:http");
const net = require("node:net");
const path = require("node:path");
const { child, elsewhere, until } = require("./local.js");

const deploy = path.join(__dirname, "..", "..", "deploy", "prometheus");

/** A minute of the rules, in seconds, where they are shortened: 5, for workers post every 15 s, and a range of 5 minutes has to hold two posts. */
const MINUTE = 5;

/** Constants within expressions that are shortened too: by name of the alert, the text. All others stand as they are. */
const CONSTANTS = { OrgstreamStreamSilent: "> 360" };

/**
 * The rules with each `for:` and each range at MINUTE seconds a minute, and CONSTANTS. Gives the text, and a line for
 * each thing that was changed.
 */
function shortened() {
  const before = fs.readFileSync(path.join(deploy, "orgstream.rules.yml"), "utf8");
  const counted = new Map();
  const count = (what) => counted.set(what, (counted.get(what) || 0) + 1);
  const seconds = (minutes) => `${minutes * MINUTE}s`;
  let alert;
  const lines = before.split("\n").map((line) => {
    alert = /- alert: (\w+)/.exec(line)?.[1] || alert;
    const constant = CONSTANTS[alert];
    if (constant && line.includes(constant)) {
      const [sign, value] = constant.split(" ");
      const now = `${sign} ${value / 60 * MINUTE}`;
      count(`${alert}: ${constant} -> ${now}`);
      line = line.replace(constant, now);
    }
    if (line.trim().startsWith("#")) return line;
    return line
      .replace(/^( *for: )(\d+)m$/, (_, key, minutes) => (count(`for: ${minutes}m -> ${seconds(minutes)}`), key + seconds(minutes)))
      .replace(/\[(\d+)m(?::(\d+)m)?\]/g, (range, minutes, step) => {
        const now = `[${seconds(minutes)}${step ? ":" + seconds(step) : ""}]`;
        count(`${range} -> ${now}`);
        return now;
      });
  });
  const text = lines.join("\n");
  const left = text.split("\n").filter((line) => /for: \d+m|\[\d+[mhd]/.test(line));
  const missed = Object.keys(CONSTANTS).filter((name) => ![...counted.keys()].some((what) => what.startsWith(name)));
  if (left.length || missed.length) throw new Error("not shortened: " + [...left, ...missed].join("; "));
  return { text, changes: [...counted].map(([what, times]) => `${what} (${times})`).sort() };
}

/** Names of all alerts of a text of rules. */
const names = (rules) => [...rules.matchAll(/- alert: (\w+)/g)].map((match) => match[1]);

/** A port of this machine that was free just now. */
function port() {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.on("error", reject).listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

/** In the place of Alertmanager: keeps the names of the alerts that it is told of. */
async function alertmanager() {
  const told = new Set();
  const server = http.createServer((request, response) => {
    let body = "";
    request.on("data", (data) => { body += data; });
    request.on("end", () => {
      if (request.url.endsWith("/alerts")) for (const alert of JSON.parse(body)) told.add(alert.labels.alertname);
      response.end();
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { addr: `127.0.0.1:${server.address().port}`, told };
}

function replaced(text, changes) {
  for (const [from, to] of changes) {
    if (!text.includes(from)) throw new Error("prometheus.yml has no " + from);
    text = text.replaceAll(from, to);
  }
  return text;
}

/** Starts one that scrapes `target`, with these rules. `every`, in seconds, is how often, else as the file says. */
async function prometheus({ target, token, rules, every }) {
  const folder = fs.mkdtempSync(path.join(elsewhere, "prometheus-"));
  fs.writeFileSync(path.join(folder, "orgstream.token"), token);
  fs.writeFileSync(path.join(folder, "orgstream.rules.yml"), rules);
  const manager = await alertmanager();
  const config = replaced(fs.readFileSync(path.join(deploy, "prometheus.yml"), "utf8"), [
    ["scheme: https", "scheme: http"],
    ["/etc/prometheus/orgstream.token", path.join(folder, "orgstream.token")],
    ["your-app-1234567890ab.herokuapp.com:443", target],
    ["127.0.0.1:9093", manager.addr],
    ...(every ? [["scrape_interval: 15s", `scrape_interval: ${every}s`], ["evaluation_interval: 15s", `evaluation_interval: ${every}s`]] : []),
  ]);
  fs.writeFileSync(path.join(folder, "prometheus.yml"), config);
  const address = `127.0.0.1:${await port()}`;
  const running = child("prometheus", [
    `--config.file=${folder}/prometheus.yml`, `--storage.tsdb.path=${folder}/data`, `--web.listen-address=${address}`,
    "--log.level=warn",
  ], { PATH: process.env.PATH, HOME: folder });
  const ask = async (where) => {
    const answer = await (await fetch(`http://${address}/api/v1/${where}`)).json();
    if (answer.status !== "success") throw new Error(`${where}: ${JSON.stringify(answer)}`);
    return answer.data;
  };
  const query = async (expression) => (await ask("query?query=" + encodeURIComponent(expression))).result;
  await until("Prometheus", () => ask("status/runtimeinfo").catch(() => null));
  await until("its first scrape", async () => (await query('up{job="orgstream"} == 1')).length);
  return { child: running, told: manager.told, query, alerts: async () => (await ask("alerts")).alerts };
}

module.exports = { MINUTE, shortened, names, prometheus, original: () => fs.readFileSync(path.join(deploy, "orgstream.rules.yml"), "utf8") };
