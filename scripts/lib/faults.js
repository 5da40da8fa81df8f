// Faults, and the alerts that each has to bring: those and no others, and none once it is mended.
//
// What is not brought about: OrgstreamStoreConnectionsUsedUp (its gauge is as of a moment each 15 s, and the worker needs
// a free connection to tell it). Made smaller than they would be: a position is aged by SQL (paused, or it would move on),
// a lag of hours too, thousands of parked events are copies of one, and of the deliveries of the last half hour a
// reading is made up. All else happens to the processes.
"use strict";
const { sleep, sql, admin, until } = require("./local.js");
const { Installation, TOKEN, TOPICS } = require("./installation.js");
const { MINUTE, shortened, names, prometheus } = require("./prometheus.js");

const ALL = Object.keys(TOPICS);
const of = (alert, subjects = ALL) => subjects.map((subject) => `Orgstream${alert} ${subject}`);
const BOTH = ["worker.1", "worker.2"];

/** Seconds that a fault may take to be told of, and its end to be seen. */
const DEADLINE = 150;

/** Does it again and again until it is told to stop. */
function repeatedly(act) {
  let stopped = false;
  const loop = (async () => { while (!stopped) await act(); })();
  return () => { stopped = true; return loop; };
}

const discard = (all) => all.run("dead-letters", "discard", "--all", "--yes");
const aged = (hours) => ({
  on: (all) => {
    all.run("pause", "contacts");
    all.sql(`update orgstream.subscription set position_time = now() - interval '${hours} hours', position_at = now() where name = 'contacts'`);
  },
  off: (all) => all.run("resume", "contacts"),
});
/** Of so many deliveries all but `left` are gone, in the last half hour. */
async function deliver(all, left) {
  all.publishing = false;
  await all.accounts(400);
  const state = async () => (await all.org.get("/state")).deliveries;
  let deliveries;
  // Until all of them have come.
  do { deliveries = await state(); await sleep(3000); } while (await state() !== deliveries);
  const limit = deliveries + left;
  all.sql(`insert into orgstream.allocation select org_id, now() - interval '30 minutes', ${limit}, ${limit} from orgstream.org`);
  await all.org.tell("/settings", { delivery_limit: limit });
}
async function delivered(all) {
  await all.org.tell("/settings", { delivery_limit: null });
  await all.org.tell("/deliveries/reset");
  all.publishing = true;
}
async function restart(all, topics) {
  await all.endWorkers("SIGTERM");
  all.startWorkers(topics);
}
let stop;
// Nobody shortens the 15 s after which a worker posts that a handler is down; until then the subscription is just blocked.
// With times as they are that is over before anything fires (scripts/alerts calm).
const POSTED_LATE = of("StreamBlocked", ["accounts"]);

/** Side by side, each on an installation of its own. */
const LANES = [[
  {
    name: "stream silent", alerts: of("StreamSilent", ["contacts"]),
    on: (all) => all.org.tell("/faults", { rpc: "Subscribe", kind: "silence", topic: TOPICS.contacts }),
    off: (all) => all.org.calm(),
  }, {
    name: "topic denied", alerts: of("StreamBlocked", ["orders"]),
    on: async (all) => {
      await all.org.tell("/settings", { denied_topics: [TOPICS.orders] });
      await all.org.tell("/connections/drop");
    },
    off: (all) => all.org.tell("/settings", { denied_topics: [] }),
  }, {
    name: "platform not available", alerts: [...of("StreamNotLive", ["contacts"]), ...of("ReconnectFlapping", ["contacts"])],
    on: async (all) => {
      await all.org.tell("/faults", { rpc: "Subscribe", kind: "error", code: "service.unavailable", topic: TOPICS.contacts });
      await all.org.tell("/connections/drop");
    },
    off: (all) => all.org.calm(),
  }, {
    name: "stream ends again and again", alerts: of("ReconnectFlapping", ["contacts"]),
    on: (all) => all.org.tell("/faults", { rpc: "Subscribe", kind: "end", topic: TOPICS.contacts, after_events: 2 }),
    off: (all) => all.org.calm(),
  }, {
    name: "sign-in refused", alerts: ["OrgstreamTokenRefreshFailing", ...of("StreamBlocked")],
    on: async (all) => {
      await all.org.tell("/faults", { rpc: "Token", kind: "error", code: "invalid_grant", message: "user is inactive" });
      await all.org.tell("/tokens/expire");
      await all.org.tell("/connections/drop");
    },
    off: (all) => all.org.calm(),
  },
], [
  // What starts workers anew stands apart, or the sum of it would be flapping.
  {
    name: "one worker killed", alerts: ["OrgstreamWorkerGone"],
    on: (all) => all.endWorkers("SIGKILL", ["worker.1"]),
    off: (all) => all.startWorker("worker.1"),
  }, {
    name: "metrics not posted", alerts: of("SnapshotStale", BOTH),
    on: (all) => all.sql(`create function orgstream.not_posted() returns trigger language plpgsql as 'begin return null; end';
      create trigger not_posted before insert or update on orgstream.worker_snapshot for each row
        when (new.at > now() - interval '1 minute') execute function orgstream.not_posted();
      update orgstream.worker_snapshot set at = now() - interval '2 minutes'`),
    off: (all) => all.sql("drop function orgstream.not_posted cascade"),
  }, {
    name: "both workers killed",
    alerts: ["OrgstreamNoWorker", "OrgstreamWorkerGone", ...of("SubscriptionUnowned"), ...of("LagWithoutWorker"), ...of("LagHigh"), ...of("LagVeryHigh")],
    on: async (all) => {
      await all.endWorkers("SIGKILL");
      all.sql("update orgstream.subscription set caught_up_at = now() - interval '2 hours'");
    },
    off: (all) => all.startWorkers(),
  }, {
    name: "the database refuses some calls", alerts: of("StoreErrors", BOTH),
    on: (all) => all.sql(`create function orgstream.broken() returns trigger language plpgsql as 'begin raise exception ''broken''; end';
      create trigger broken before insert or update on orgstream.subscription_sample for each row execute function orgstream.broken()`),
    off: (all) => all.sql("drop function orgstream.broken cascade"),
  }, {
    name: "left out of the configuration", alerts: of("SubscriptionUnowned", ["orders"]),
    on: (all) => restart(all, { orders: null }),
    off: (all) => restart(all),
  }, {
    name: "database away", alerts: ["OrgstreamDatabaseAway"],
    on: (all) => {
      sql(admin, `alter database ${all.name} allow_connections false`);
      sql(admin, `select pg_terminate_backend(pid) from pg_stat_activity where datname = '${all.name}'`);
    },
    off: (all) => sql(admin, `alter database ${all.name} allow_connections true`),
  }, {
    name: "orgstream web killed", alerts: ["OrgstreamWebDown"],
    on: (all) => all.end(all.web.child, "SIGKILL"),
    off: (all) => all.openWeb(all.web.addr),
  }, {
    name: "topic changed under its name", alerts: [...of("SubscriptionRefused", ["accounts"]), ...of("SubscriptionUnowned", ["accounts"])],
    on: (all) => restart(all, { accounts: "/data/Employee__ChangeEvent" }),
    off: (all) => restart(all),
  }, {
    name: "workers crash in a loop", alerts: of("LeaseFlapping"),
    on: (all) => {
      stop = repeatedly(async () => { await all.endWorkers("SIGKILL"); all.startWorkers(); await sleep(6000); });
    },
    off: () => stop(),
  },
], [
  {
    name: "handler refuses connections", alerts: of("HandlerDown", ["accounts"]), may: POSTED_LATE,
    on: (all) => all.receiver.close(),
    off: (all) => all.receiver.open(all.receiver.port),
  }, {
    name: "handler answers 500", alerts: of("HandlerDown", ["accounts"]), may: POSTED_LATE,
    on: (all) => { all.receiver.status = 500; },
    off: (all) => { all.receiver.status = 204; },
  }, {
    name: "handler rejects an event", alerts: of("DeadLettersOpen", ["accounts"]),
    on: async (all) => {
      all.receiver.status = 422;
      await until("parked", () => Number(all.sql("select count(*) from orgstream.dead_letter where state = 'open'")));
      all.receiver.status = 204;
    },
    off: discard,
  }, {
    name: "handler rejects everything", alerts: [...of("DeadLettersOpen", ["accounts"]), ...of("DeadLettersGrowing", ["accounts"])],
    on: async (all) => {
      all.receiver.status = 422;
      await all.accounts(80);
    },
    off: async (all) => {
      all.receiver.status = 204;
      await sleep(2000);
      discard(all);
    },
  }, {
    name: "thousands are parked", alerts: [...of("DeadLettersOpen", ["accounts"]), ...of("DeadLettersGrowing", ["accounts"]), ...of("ParkingNearlyFull", ["accounts"])],
    on: async (all) => {
      all.receiver.status = 422;
      await until("parked", () => Number(all.sql("select count(*) from orgstream.dead_letter where state = 'open'")));
      all.receiver.status = 204;
      const columns = "org_id, subscription, topic, handler, reason, error, attempts, event_uuid, replay_id, schema_id, payload, record_ids, received_at";
      all.sql(`insert into orgstream.dead_letter (${columns}, identity) select ${columns}, identity || n
        from (select * from orgstream.dead_letter where state = 'open' limit 1) one, generate_series(1, 8000) n`);
    },
    off: discard,
  }, {
    name: "an event cannot be decoded", alerts: [...of("DecodeFailures", ["contacts"]), ...of("DeadLettersOpen", ["contacts"])],
    on: (all) => all.org.tell("/faults", { rpc: "Subscribe", kind: "corrupt_payload", topic: TOPICS.contacts, times: 1 }),
    off: discard,
  }, {
    name: "a change without its content", alerts: of("HolesOpen", ["accounts"]),
    on: (all) => all.org.publish(TOPICS.accounts, [all.account({ changeType: "GAP_UPDATE" })]),
    off: (all) => all.run("holes", "ack", "--all"),
  },
  { name: "position ageing", alerts: of("PositionAgeing", ["contacts"]), ...aged(62) },
  { name: "position nearly lost", alerts: [...of("PositionAgeing", ["contacts"]), ...of("PositionNearlyLost", ["contacts"])], ...aged(69) },
  {
    name: "allocation nearly spent", alerts: ["OrgstreamDeliveriesNearlySpent", "OrgstreamDeliveriesForecast"],
    on: (all) => deliver(all, 20),
    off: delivered,
  }, {
    name: "allocation spent", alerts: ["OrgstreamDeliveriesSpent", "OrgstreamDeliveriesNearlySpent", ...of("StreamBlocked")],
    on: async (all) => {
      await deliver(all, 1);
      all.publishing = true;
    },
    off: delivered,
  },
]];

/** As a person would name it: the alert, and what it is about. */
const subject = ({ labels }) => `${labels.alertname} ${labels.subscription || labels.dyno || ""}`.trim();

/** What is wrong with what a person is told. */
function unreadable({ annotations }) {
  const told = `${annotations.summary}\n${annotations.description}`;
  return /<no value>|<error|\{\{|NaN|Inf|^ |  |\n | $/.test(told) && told;
}

class Lane {
  rows = [];
  firstSeen = new Map();
  constructor(name) { this.name = name; }

  say(...words) { console.log(`${this.name}:`, ...words); }

  async alerts() {
    const alerts = await this.watch.alerts();
    for (const alert of alerts) {
      const wrong = alert.state === "firing" && unreadable(alert);
      if (wrong) throw new Error(`${subject(alert)} says: ${wrong}`);
    }
    return alerts;
  }

  /** Nothing fires and nothing is about to, three times in a row. */
  async healthy(what) {
    let calm = 0, last = [];
    const began = Date.now();
    while (calm < 3) {
      last = await this.alerts();
      calm = last.length ? 0 : calm + 1;
      if (Date.now() - began > DEADLINE * 1000) throw new Error(`${what}: still ${last.map((one) => `${one.state} ${subject(one)}`).join(", ")}`);
      if (calm < 3) await sleep(700);
    }
  }

  async try(fault) {
    await this.all.live();
    await this.healthy("before " + fault.name);
    this.watch.told.clear();
    const began = Date.now();
    const took = () => ((Date.now() - began) / 1000).toFixed(0);
    const wanted = new Set(fault.alerts);
    const may = new Set(fault.may);
    const times = new Map();
    const look = async () => {
      const all = (await this.alerts()).filter((one) => one.state === "firing").map(subject);
      const firing = all.filter((one) => !may.has(one));
      for (const one of firing) {
        if (!wanted.has(one)) throw new Error(`${fault.name}: ${one} fires, which is not expected`);
        if (!times.has(one)) times.set(one, took());
      }
      return firing;
    };
    await fault.on(this.all);
    for (;;) {
      const firing = await look();
      if (firing.length === wanted.size) break;
      if (took() > DEADLINE) throw new Error(`${fault.name}: ${[...wanted].filter((one) => !firing.includes(one)).join(", ")} did not fire`);
      await sleep(300);
    }
    const fired = took();
    // What comes along later than the last of them is not expected either.
    for (let n = 0; n < 5; n++) { await look(); await sleep(1000); }
    const untold = [...wanted].map((one) => one.split(" ")[0]).filter((one) => !this.watch.told.has(one));
    if (untold.length) throw new Error(`${fault.name}: Alertmanager was not told of ${untold.join(", ")}`);
    const mended = Date.now();
    await fault.off(this.all);
    while ((await look()).length) {
      if (Date.now() - mended > DEADLINE * 1000) throw new Error(`${fault.name}: does not clear: ${await look()}`);
      await sleep(300);
    }
    const cleared = ((Date.now() - mended) / 1000).toFixed(0);
    this.say(`${fault.name}: fired after ${fired} s, cleared ${cleared} s after it was mended`);
    this.rows.push({ fault: fault.name, alerts: fault.alerts, fired, cleared, times });
  }

  async run(faults, rules) {
    const s = (minutes) => `${minutes * MINUTE * 1000}ms`;
    this.all = await Installation.begin(this.name, {
      orgs: ["--keepalive", "2s"],
      // As the defaults, at MINUTE; the allocation is asked for and tried again sooner.
      times: `silence_limit = "${s(5)}"\nlimits_interval = "1s"\nreconnect = { initial = "500ms", max = "${s(0.5)}" }\nblocked_retry = { initial = "${s(1)}", max = "${s(5)}" }\nallocation_retry = { initial = "${s(1)}", max = "${s(2)}" }`,
      store: 'lease = "4s"',
    });
    this.watch = await prometheus({ target: this.all.web.addr, token: TOKEN, rules, every: 1 });
    for (const fault of faults) {
      try {
        await this.try(fault);
      } catch (error) {
        this.say(`FAILED: ${error.message}`);
        this.rows.push({ fault: fault.name, failed: error.message });
        // The next one starts in health, if there is health to be had.
        try { await fault.off(this.all); } catch {}
      }
    }
  }
}

/** Tries these faults, or all. True where each brought what it had to, and that cleared. */
async function tryFaults(wanted) {
  const rules = shortened();
  console.log("shortened: " + rules.changes.join("; "));
  const chosen = (fault) => !wanted.length || wanted.some((name) => fault.name.includes(name));
  const faults = LANES.map((lane) => lane.filter(chosen)).filter((lane) => lane.length);
  const lanes = faults.map((_, n) => new Lane(`lane${n + 1}`));
  const began = Date.now();
  await Promise.all(lanes.map((lane, n) => lane.run(faults[n], rules.text)));
  const rows = lanes.flatMap((lane) => lane.rows);
  console.log("\n| fault | alerts, and the seconds after which each fired | cleared after |\n| --- | --- | --- |");
  for (const { fault, failed, times, cleared } of rows) {
    console.log(`| ${fault} | ${failed ? "FAILED: " + failed : [...times].map(([alert, at]) => `${alert} ${at}`).join(", ")} | ${cleared ?? ""} |`);
  }
  const brought = new Set(rows.flatMap((row) => row.failed ? [] : row.alerts).map((one) => one.split(" ")[0]));
  console.log(`not brought about: ${names(rules.text).filter((name) => !brought.has(name)).join(", ") || "none"}`);
  console.log(`${rows.filter((row) => !row.failed).length} of ${rows.length} faults as expected, in ${((Date.now() - began) / 60000).toFixed(1)} minutes`);
  return rows.every((row) => !row.failed);
}

module.exports = { tryFaults };
