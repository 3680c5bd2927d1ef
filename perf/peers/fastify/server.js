// The job of POST /events by Fastify and pg: validate, 202 after taking the event into a bounded
// buffer, insert in batches by unnest, 429 when the buffer is full.
//
// A worker process per core, each with its buffer and its connection. The primary process answers
// GET /count on PORT + 1 with the sums of all workers. Settings: PORT, DATABASE_URL, BUFFER_MAX_SIZE,
// BATCH_SIZE, WORKERS.
import cluster from 'node:cluster';
import { randomFillSync } from 'node:crypto';
import http from 'node:http';
import os from 'node:os';
import Fastify from 'fastify';
import pg from 'pg';

const port = Number(process.env.PORT ?? 3000);
const workers = Number(process.env.WORKERS ?? os.availableParallelism());
const bufferMax = Math.floor(Number(process.env.BUFFER_MAX_SIZE ?? 50_000) / workers);
const batchSize = Number(process.env.BATCH_SIZE ?? 1_000);
const LINGER_MS = 20;

const RETENTION_MS = 30 * 86_400_000;
const SKEW_MS = 300_000;
const TEXT_BYTES_MAX = 65_536;

const eventSchema = {
  type: 'object',
  required: ['timestamp', 'service', 'message'],
  additionalProperties: false,
  properties: {
    timestamp: { type: ['string', 'integer'] },
    service: { type: 'string', minLength: 1, maxLength: 100 },
    message: { type: 'string', minLength: 1, maxLength: TEXT_BYTES_MAX },
    metadata: { type: 'object' },
    idempotency_key: { type: 'string', minLength: 1, maxLength: 128 },
  },
};
const acceptedSchema = {
  type: 'object',
  properties: { event_id: { type: 'string' }, status: { type: 'string' } },
};
const RFC3339 = /^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:[Zz]|[+-]\d{2}:\d{2})$/;

if (cluster.isPrimary) {
  const counts = new Map();
  cluster.on('message', (worker, count) => counts.set(worker.id, count));
  cluster.on('exit', (worker, code) => {
    if (!worker.exitedAfterDisconnect) process.exit(code || 1);
  });
  const server = http.createServer((_request, response) => {
    const sum = { accepted: 0, stored: 0 };
    for (const count of counts.values()) {
      sum.accepted += count.accepted;
      sum.stored += count.stored;
    }
    response.end(JSON.stringify(sum));
  });
  let listening = 0;
  cluster.on('listening', () => {
    listening += 1;
    if (listening === workers) server.listen(port + 1, '127.0.0.1');
  });
  for (let nth = 0; nth < workers; nth++) cluster.fork();
  process.on('SIGTERM', () => {
    for (const worker of Object.values(cluster.workers)) worker.kill('SIGKILL');
    process.exit(0);
  });
} else {
  await work();
}

async function work() {
  const count = { accepted: 0, stored: 0 };
  const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
  await client.connect();
  let buffer = [];
  let taken = 0; // of the buffer's space: waiting events and those of the running insert
  let inserting = false;
  let timer = null;

  const insert = {
    name: 'insert',
    text: `INSERT INTO peer.events (event_id, timestamp, ingested_at, service, message, metadata)
      SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::text[], $5::text[], $6::jsonb[])`,
  };

  async function flush() {
    if (inserting) return;
    inserting = true;
    while (buffer.length > 0) {
      const batch = buffer.length <= batchSize ? buffer : buffer.slice(0, batchSize);
      buffer = batch === buffer ? [] : buffer.slice(batchSize);
      const columns = [[], [], [], [], [], []];
      for (const event of batch) for (let nth = 0; nth < 6; nth++) columns[nth].push(event[nth]);
      for (;;) {
        try {
          await client.query({ ...insert, values: columns });
          break;
        } catch (error) {
          console.error(error.message);
          await new Promise((resolve) => setTimeout(resolve, 500));
        }
      }
      taken -= batch.length;
      count.stored += batch.length;
    }
    inserting = false;
  }

  const app = Fastify({ logger: false, bodyLimit: 8 << 20, onProtoPoisoning: 'ignore', onConstructorPoisoning: 'ignore',
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false, allowUnionTypes: true } } });
  const invalid = (reply, field) => reply.code(400).send({ type: 'about:blank', title: 'Bad Request', status: 400, detail: field });

  app.post('/events', { schema: { body: eventSchema, response: { 202: acceptedSchema } } }, (request, reply) => {
    const event = request.body;
    const now = Date.now();
    const iso = typeof event.timestamp === 'string';
    if (iso && !RFC3339.test(event.timestamp)) return invalid(reply, 'timestamp');
    const millis = iso ? Date.parse(event.timestamp) : event.timestamp;
    if (!(millis >= now - RETENTION_MS && millis <= now + SKEW_MS)) return invalid(reply, 'timestamp');
    if (Buffer.byteLength(event.service) > 100 || event.service.includes('\0')) return invalid(reply, 'service');
    if (Buffer.byteLength(event.message) > TEXT_BYTES_MAX || event.message.includes('\0')) return invalid(reply, 'message');
    let metadata = null;
    if (event.metadata !== undefined) {
      metadata = JSON.stringify(event.metadata);
      if (Buffer.byteLength(metadata) > TEXT_BYTES_MAX || metadata.includes('\\u0000')) return invalid(reply, 'metadata');
    }
    if (taken >= bufferMax) {
      return reply.code(429).header('Retry-After', '1').send({ type: 'about:blank', title: 'Too Many Requests', status: 429 });
    }
    taken += 1;
    count.accepted += 1;
    const id = uuid7(millis);
    const at = iso ? event.timestamp : new Date(millis).toISOString();
    buffer.push([id, at, new Date(now).toISOString(), event.service, event.message, metadata]);
    if (buffer.length >= batchSize) {
      flush();
    } else if (timer === null) {
      timer = setTimeout(() => {
        timer = null;
        flush();
      }, LINGER_MS);
    }
    reply.code(202).send({ event_id: id, status: 'accepted' });
  });

  await app.listen({ port, host: '127.0.0.1', backlog: 4096 });
  setInterval(() => process.send(count), 20);
}

const random = Buffer.alloc(10 * 1024);
let randomAt = random.length;

function uuid7(millis) {
  if (randomAt === random.length) {
    randomFillSync(random);
    randomAt = 0;
  }
  const tail = random.toString('hex', randomAt, randomAt + 10);
  randomAt += 10;
  const time = millis.toString(16).padStart(12, '0');
  const variant = '89ab'[random[randomAt - 1] & 3];
  return `${time.slice(0, 8)}-${time.slice(8)}-7${tail.slice(0, 3)}-${variant}${tail.slice(3, 6)}-${tail.slice(6, 18)}`;
}
