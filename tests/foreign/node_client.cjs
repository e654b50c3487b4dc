// grpc-js, as a Node team would use it: proto-loader on the contract's files, no generated code.
//
// Talks to line_client.py in lines of JSON: {id, op, …} in, {id, …} out. Decodes the status details itself.
'use strict';

const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const readline = require('node:readline');

const { address, includeDirs, retries, shown } = JSON.parse(process.argv[2]);

const definition = loader.loadSync(
  [
    'central/licensing/v1/licensing.proto',
    'grpc/health/v1/health.proto',
    'google/rpc/status.proto',
    'google/rpc/error_details.proto',
  ],
  { includeDirs, keepCase: true, enums: String, longs: String, defaults: true, oneofs: true },
);
const { central, grpc: standard } = grpc.loadPackageDefinition(definition);

const options = { 'grpc.enable_http_proxy': 0 };
if (retries) options['grpc.service_config'] = JSON.stringify(retries);
// TLS has no word for an address as the server's name.
if (shown) options['grpc.ssl_target_name_override'] = 'localhost';
const credentials = shown ? channelCredentials(shown) : grpc.credentials.createInsecure();
const licensing = new central.licensing.v1.LicensingService(address, credentials, options);
const health = new standard.health.v1.Health(address, credentials, options);

// TLS with the certificate, if there is one; the token, if there is one, goes with every call.
function channelCredentials({ ca, certificate, key, token }) {
  const pem = (text) => (text ? Buffer.from(text) : null);
  const tls = grpc.credentials.createSsl(pem(ca), pem(key), pem(certificate));
  if (!token) return tls;
  const bearer = grpc.credentials.createFromMetadataGenerator((_, done) => {
    const metadata = new grpc.Metadata();
    metadata.set('authorization', `Bearer ${token}`);
    done(null, metadata);
  });
  return grpc.credentials.combineChannelCredentials(tls, bearer);
}

const nameOf = (code) => Object.keys(grpc.status).find((name) => grpc.status[name] === code);

function details(metadata) {
  const found = {};
  const [bytes] = metadata.get('grpc-status-details-bin');
  if (!bytes) return found;
  for (const { type_url: url, value } of definition['google.rpc.Status'].deserialize(bytes).details) {
    const name = url.replace('type.googleapis.com/', '');
    if (name in found) throw new Error(`${name} stands twice`);
    found[name] = definition[name].deserialize(value);
    const delay = found[name].retry_delay;
    if (delay) found[name].retry_delay = Number(delay.seconds) + delay.nanos / 1e9;
  }
  return found;
}

function strings(metadata) {
  return Object.fromEntries(Object.entries(metadata.getMap()).filter(([, value]) => typeof value === 'string'));
}

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

function unary(client, method, { id, request = {}, timeout_ms: timeout }) {
  let answer;
  const options = timeout ? { deadline: Date.now() + timeout } : {};
  const call = client[method](request, options, (error, response) => {
    answer = error
      ? { code: nameOf(error.code), message: error.details, details: details(error.metadata) }
      : { code: 'OK', response };
  });
  call.on('status', (status) => setImmediate(() => say({ id, ...answer, trailers: strings(status.metadata) })));
}

const streams = new Map();

const ops = {
  unassign: (ask) => unary(licensing, 'UnassignLicenses', ask),
  list_services: (ask) => unary(licensing, 'ListServices', ask),
  watch_release({ id, request }) {
    const messages = [];
    const stream = licensing.WatchRelease(request, { deadline: Date.now() + 60_000 });
    stream.on('data', (message) => messages.push(message));
    stream.on('error', () => {});
    stream.on('status', ({ code }) => say({ id, code: nameOf(code), response: { messages } }));
  },
  health_check: (ask) => unary(health, 'Check', ask),
  health_list: (ask) => unary(health, 'List', ask),
  call_unknown({ id, path }) {
    const bytes = (value) => value;
    licensing.makeUnaryRequest(path, bytes, bytes, Buffer.alloc(0), (error) => {
      const { code, details: message, metadata } = error;
      say({ id, code: nameOf(code), message, details: details(metadata), trailers: strings(metadata) });
    });
  },
  health_watch({ id, request }) {
    const stream = health.Watch(request);
    streams.set(id, stream);
    stream.on('data', ({ status }) => say({ id, status }));
    stream.on('error', () => {});
    stream.on('status', ({ code }) => say({ id, ended: nameOf(code) }));
  },
  cancel: ({ stream }) => streams.get(stream)?.cancel(),
};

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const ask = JSON.parse(line);
  ops[ask.op](ask);
}).on('close', () => process.exit(0));
