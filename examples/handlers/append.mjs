#!/usr/bin/env node
// A program for orgstream's `exec` handler: appends each event to a file, several of them at a time.
//
//     [[subscription.handler]]
//     type = "exec"
//     command = ["node", "examples/handlers/append.mjs", "events.jsonl"]
//     in_flight = 20       # of different records, for one process; answered in any order
//     workers = 1
//
// Put what you want done with an event into `handle`; the rest can stay as it is. An event may come again
// after a crash, with the same `id`.

import { fdatasync, openSync, writeSync } from "node:fs";
import { promisify } from "node:util";

/** The event itself is wrong: it is parked for a person to look at. Every other error means: not now. */
class Reject extends Error {}

const path = process.argv[2] ?? "events.jsonl";
const onDisk = promisify(fdatasync);
let file;
let torn = false;

/** Resolves once the event is kept for good. `text` is what it was read from: numbers in it may be longer than
 *  JavaScript's. */
async function handle(event, text) {
  if (event.data === undefined) throw new Reject("the event has no data");
  file ??= openSync(path, "a");
  const line = Buffer.from(`${torn ? "\n" : ""}${text}\n`);
  torn = writeSync(file, line) < line.length;
  if (torn) throw new Error("the disk is full");
  await onDisk(file); // meanwhile the next event is taken
}

// Standard output is for answers alone. Write all else with console.error: it goes to orgstream's log.
const answer = (id, said) => process.stdout.write(`${JSON.stringify({ id, ...said })}\n`);

async function take(line) {
  const event = JSON.parse(line);
  try {
    await handle(event, line);
    answer(event.id, { ok: true });
  } catch (error) {
    answer(event.id, error instanceof Reject ? { reject: error.message } : { retry: error.message });
  }
}

// Standard input ends when orgstream stops or is gone, and with it this program. What is left then is half a
// line, whose writer is gone: the event comes again. (So not readline, which takes it for a whole one.)
let begun = "";
process.stdin.setEncoding("utf8");
for await (const chunk of process.stdin) {
  const lines = (begun + chunk).split("\n");
  begun = lines.pop();
  lines.forEach(take);
}
