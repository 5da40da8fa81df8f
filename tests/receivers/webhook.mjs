// A webhook receiver as a process, for the tests of the webhook handler: HTTP/1.1 and HTTP/2, TLS with client
// certificates, signatures. It answers 200 only when what it got is on disk.
//
//     node webhook.mjs SETTINGS     one JSON object; prints {"port":…} when it listens
//
// It ends when its standard input does.
//
// Settings, all but `journal` optional:
//
//     journal   file that gets a line of JSON for each request that was accepted
//     port      to listen on; any by default
//     cert, key PEM: speak TLS, HTTP/2 where the client can
//     ca        PEM: want a client certificate of this CA
//     http1     speak no HTTP/2
//     path      all others are answered 404
//     token     what `authorization` has to be, else 401
//     secret    of Standard Webhooks: signatures are verified, else 401
//     library   folder with the npm package `standardwebhooks`: it verifies them too
//     max_body  bytes; more is answered 413
//     poison    text in a body that is answered 422
import { createHmac, timingSafeEqual } from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import http2 from 'node:http2';
import https from 'node:https';
import { createRequire } from 'node:module';
import path from 'node:path';

process.stdin.resume().on('end', () => process.exit(0));

const settings = JSON.parse(process.argv[2]);
const library = settings.library
  ? createRequire(path.join(settings.library, 'package.json'))('standardwebhooks')
  : undefined;

// A reading of the specification of its own, independent of the handler's and of the library's.
function signed(headers, body) {
  const [id, seconds] = [headers['webhook-id'], headers['webhook-timestamp']];
  if (!id || id.includes('.') || Math.abs(Date.now() / 1000 - Number(seconds)) > 300) return false;
  const secret = Buffer.from(settings.secret.replace(/^whsec_/, ''), 'base64');
  const wanted = createHmac('sha256', secret).update(`${id}.${seconds}.`).update(body).digest();
  const ours = headers['webhook-signature'].split(' ').some((one) => {
    const [version, text] = one.split(',');
    const found = Buffer.from(text, 'base64');
    return version === 'v1' && found.length === wanted.length && timingSafeEqual(found, wanted);
  });
  if (library) {
    try {
      new library.Webhook(settings.secret).verify(body.toString(), headers);
    } catch (error) {
      console.error(`standardwebhooks: ${error}`);
      return false;
    }
  }
  return ours;
}

// One write and one fsync for all that came meanwhile.
const journal = fs.openSync(settings.journal, 'a');
let waiting = [];
function flush() {
  const now = waiting;
  waiting = [];
  let status = 200;
  try {
    fs.writeSync(journal, now.map(({ line }) => `${JSON.stringify(line)}\n`).join(''));
    if (settings.journal !== '/dev/full') fs.fsyncSync(journal);
  } catch (error) {
    status = error.code === 'ENOSPC' ? 507 : 500;
  }
  for (const { answer } of now) answer(status);
}
function keep(line, answer) {
  if (waiting.length === 0) setImmediate(flush);
  waiting.push({ line, answer });
}

const sockets = new Map();
function numbered(socket) {
  if (!sockets.has(socket)) sockets.set(socket, sockets.size);
  return sockets.get(socket);
}

function receive(request, response) {
  const answer = (status) => {
    response.statusCode = status;
    response.end();
  };
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    const { headers } = request;
    const body = Buffer.concat(chunks);
    if (settings.path && request.url !== settings.path) return answer(404);
    if (settings.token && headers.authorization !== settings.token) return answer(401);
    if (request.method !== 'POST') return answer(405);
    if (settings.max_body && body.length > settings.max_body) return answer(413);
    if (settings.poison && body.includes(settings.poison)) return answer(422);
    if (settings.secret && !signed(headers, body)) return answer(401);
    const socket = request.stream?.session?.socket ?? request.socket;
    const names = Object.keys(headers).filter((name) => /^(ce-|webhook-|idempotency-|content-type)/.test(name));
    const line = {
      http: request.httpVersion,
      // HTTP/2 hands out stand-ins for the socket; its session is one.
      connection: numbered(request.stream?.session ?? socket),
      client: settings.ca ? socket.getPeerCertificate().subject.CN : undefined,
      headers: Object.fromEntries(names.map((name) => [name, headers[name]])),
      body: body.toString(),
    };
    keep(line, answer);
  });
  request.on('error', () => {});
}

const tls = settings.cert && {
  cert: settings.cert,
  key: settings.key,
  ca: settings.ca,
  requestCert: Boolean(settings.ca),
  rejectUnauthorized: true,
};
const server = !tls
  ? http.createServer(receive)
  : settings.http1
    ? https.createServer(tls, receive)
    : http2.createSecureServer({ ...tls, allowHTTP1: true }, receive);
server.listen(settings.port ?? 0, '127.0.0.1', () => console.log(JSON.stringify(server.address())));
