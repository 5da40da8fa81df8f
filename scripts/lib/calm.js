// The rules as they are, on a healthy installation whose workers are replaced as hosts do it.
"use strict";
const { Installation, TOKEN } = require("./installation.js");
const { prometheus, original } = require("./prometheus.js");
const { sleep, until } = require("./local.js");

/** The ways of replacing workers, and the minute of each. */
const REPLACED = [
  [2, "one after the other: SIGTERM, wait for the end, start anew", async (all) => {
    for (const name of ["worker.1", "worker.2"]) {
      await all.endWorkers("SIGTERM", [name]);
      all.startWorker(name);
      await all.live();
    }
  }],
  [4, "all at once, the new ones started beside the old ones for 20 s, as Heroku does", async (all) => {
    const old = [...all.workers.values()];
    all.startWorkers();
    await sleep(20000);
    await Promise.all(old.map((child) => all.end(child, "SIGTERM")));
    await all.live();
  }],
  [6, "one killed, and started anew at once", async (all) => {
    await all.endWorkers("SIGKILL", ["worker.1"]);
    all.startWorker("worker.1");
    await all.live();
  }],
];

/** Faults that need times as they are: what is done, undone, and the one alert that has to fire. */
const FAULTS = [
  ["the webhook answers 500", "OrgstreamHandlerDown", (all) => { all.receiver.status = 500; }, (all) => { all.receiver.status = 204; }],
  ["the database accepts connections and answers orgstream web nothing", "OrgstreamDatabaseAway", (all) => { all.way.frozen = true; }, (all) => all.way.thaw()],
];

/** True where that alert fires, no other one before it, and none after it is mended. */
async function fault(all, watch, minute, [what, wanted, on, off]) {
  const say = (text) => console.log(`${minute().toFixed(1)} min: ${text}`);
  const firing = async () => (await watch.alerts()).filter((one) => one.state === "firing").map((one) => one.labels.alertname).join();
  await on(all);
  say(what);
  const fired = await until("an alert", firing, 480);
  await off(all);
  say(`${fired} fires; mended`);
  await until("none", async () => !(await firing()), 120);
  say("none fires");
  return fired === wanted;
}

/** True where no alert fired within so many minutes. Those that were pending are told. */
async function calm(minutes) {
  const all = await Installation.begin("calm", { orgs: [], times: "", store: "" });
  const watch = await prometheus({ target: all.web.addr, token: TOKEN, rules: original() });
  const began = Date.now();
  const minute = () => (Date.now() - began) / 60000;
  const seen = new Map();
  const left = [...REPLACED];
  let doing = Promise.resolve();
  while (minute() < minutes) {
    if (left.length && minute() >= left[0][0]) {
      const [, what, replace] = left.shift();
      console.log(`${minute().toFixed(1)} min: workers replaced, ${what}`);
      doing = doing.then(() => replace(all)).then(() => console.log(`${minute().toFixed(1)} min: all live again`));
    }
    for (const { state, labels, annotations } of await watch.alerts()) {
      const name = `${state} ${labels.alertname} ${labels.subscription || labels.dyno || ""}`;
      if (!seen.has(name)) console.log(`${minute().toFixed(1)} min: ${name}: ${annotations.summary}`);
      seen.set(name, (seen.get(name) || 0) + 1);
    }
    await sleep(1000);
  }
  await doing;
  for (const [what, expression] of [
    ["events finished", 'sum(orgstream_events_finished_total)'],
    ["highest lag of any subscription", "max(max_over_time(orgstream_stored_lag_seconds[1h]))"],
    ["takeovers of a subscription in all", "max by (subscription) (delta(orgstream_stored_epoch[15m]))"],
  ]) console.log(`${what}: ${(await watch.query(expression)).map((one) => `${one.metric.subscription || ""} ${Number(one.value[1]).toFixed(1)}`.trim()).join(", ") || "-"}`);
  const fired = [...seen.keys()].filter((name) => name.startsWith("firing"));
  console.log(fired.length ? `fired: ${fired.join(", ")}` : `no alert fired in ${minutes} minutes`);
  let well = !fired.length;
  for (const one of FAULTS) well = await fault(all, watch, minute, one) && well;
  return well;
}

module.exports = { calm };
