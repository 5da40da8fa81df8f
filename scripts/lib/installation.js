// One installation: an org in memory, a database, two workers, `orgstream web`, a receiver of a webhook.
"use strict";
const http = require("node:http");
const net = require("node:net");
const local = require("./local.js");

const TOKEN = "a token for trying alerts only";
const LOG = 'name = "journal"\ntype = "log"';
const TOPICS = { accounts: "/data/AccountChangeEvent", contacts: "/data/ContactChangeEvent", orders: "/event/Order__e" };

/** The far side of the webhook: answers with `status`, or is not there. */
class Receiver {
  status = 204;
  async open(port = 0) {
    this.server = http.createServer((request, response) => {
      request.resume();
      request.on("end", () => response.writeHead(this.status).end());
    });
    await new Promise((resolve) => this.server.listen(port, "127.0.0.1", resolve));
    this.port = this.server.address().port;
  }
  close() {
    this.server.close();
    this.server.closeAllConnections();
  }
}

/** Between `orgstream web` and the database, so that the way can be cut for it alone; `frozen`, nothing passes. */
class Way {
  frozen = false;
  #pairs = new Set();
  constructor(url) { this.target = new URL(url); }
  async open() {
    this.server = net.createServer((near) => {
      const far = net.connect(Number(this.target.port), this.target.hostname);
      const pair = [near, far];
      this.#pairs.add(pair);
      for (const [from, to] of [[near, far], [far, near]]) {
        from.on("data", (data) => { if (!this.frozen) to.write(data); });
        from.on("error", () => {});
        from.on("close", () => { to.destroy(); this.#pairs.delete(pair); });
      }
    });
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    const url = new URL(this.target);
    url.port = this.server.address().port;
    return url.href;
  }
  /** As after a failover: what was on its way is lost, new connections are as good as ever. */
  thaw() {
    this.frozen = false;
    for (const pair of this.#pairs) for (const one of pair) one.destroy();
  }
}

class Installation {
  workers = new Map();
  publishing = true;
  #number = 0;

  /** `orgs` are arguments of the emulator, `times` settings of `[salesforce]`, `store` those of `[store]`. */
  static async begin(name, { orgs, times, store }) {
    const self = new Installation();
    self.name = name;
    self.url = local.database(name);
    self.org = await local.emulator(...orgs);
    self.receiver = new Receiver();
    await self.receiver.open();
    self.sections = local.salesforce(self.org, times) + `[store]\n${store}\n`;
    self.way = new Way(self.url);
    const way = await self.way.open();
    self.openWeb = async (addr) => { self.web = await local.web(way, self.sections + self.config(), TOKEN, addr); };
    await self.openWeb();
    self.startWorkers();
    await self.live();
    self.traffic();
    return self;
  }

  /** Its subscriptions; `topics` changes or leaves out (null) some. */
  config(topics = {}) {
    const hook = `name = "fulfilment"\ntype = "webhook"\nurl = "http://127.0.0.1:${this.receiver.port}/"\nretry = { attempts = 2, initial = "50ms", max = "1s" }`;
    const all = Object.entries({ ...TOPICS, ...topics }).filter(([, topic]) => topic);
    return all.map(([name, topic]) => local.subscription(name, topic, name === "accounts" ? hook : LOG)).join("");
  }

  startWorker(name, topics) {
    const child = local.worker(name, this.url, this.sections + this.config(topics));
    this.workers.set(name, child);
    return child;
  }
  startWorkers(topics) {
    for (const name of ["worker.1", "worker.2"]) this.startWorker(name, topics);
  }
  async end(child, signal) {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await ended;
  }
  /** Ends one worker, or all. */
  async endWorkers(signal, names = [...this.workers.keys()]) {
    const ended = names.map((name) => this.workers.get(name));
    for (const name of names) this.workers.delete(name);
    await Promise.all(ended.map((child) => this.end(child, signal)));
  }

  live(count = Object.keys(TOPICS).length) {
    return local.until(`${count} live`, () => local.subscriptions(this.url).filter((line) => line.endsWith("live true")).length >= count);
  }
  sql(text) { return local.sql(this.url, text); }
  run(...args) { return local.run(args, { DATABASE_URL: this.url, ORGSTREAM_CONFIG: this.sections + this.config() }); }

  account(more = {}) {
    const id = `001A0000${String(++this.#number).padStart(7, "0")}AAA`;
    return { ChangeEventHeader: { entityName: "Account", recordIds: [id], changeType: "UPDATE", ...more }, ...(more.changeType ? {} : { Name: "Acme " + this.#number }) };
  }
  accounts(count) { return this.org.publish(TOPICS.accounts, Array.from({ length: count }, () => this.account())); }

  /** An event of each topic every second, unless `publishing` is false. */
  async traffic() {
    for (;;) {
      await local.sleep(1000);
      if (!this.publishing) continue;
      const n = ++this.#number;
      await this.accounts(1);
      await this.org.publish(TOPICS.contacts, [{ ChangeEventHeader: { recordIds: [`003A0000${String(n).padStart(7, "0")}AAA`] }, Email: "ng@example.com" }]);
      await this.org.publish(TOPICS.orders, [{ OrderNumber__c: "A-" + n, Amount__c: 12.5, City__c: "Lisbon" }]);
    }
  }
}

module.exports = { Installation, TOKEN, TOPICS };
