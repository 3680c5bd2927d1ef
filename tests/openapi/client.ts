// Posts an event and reads it back, with the client that is generated from the OpenAPI document into
// ./generated. The compiler checks that the client has the types used here.
import { getEvent, getHealth, listEvents, postEvents } from "./generated";
import { client } from "./generated/client.gen";
import type { Event, NewEvent } from "./generated";

declare const process: { argv: string[] };

function check(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

async function main(): Promise<void> {
  client.setConfig({ baseUrl: process.argv[2] });
  const event: NewEvent = {
    timestamp: new Date().toISOString(),
    service: "generated",
    message: "from a generated client",
    metadata: { order: 4711 },
  };
  const posted = await postEvents({ body: event, headers: { "Idempotency-Key": "once", Durability: "synced" } });
  check(posted.response?.status === 202 && posted.data !== undefined, JSON.stringify(posted.error));
  check("event_id" in posted.data, "one event has one id");
  const event_id = posted.data.event_id;

  const read = await getEvent({ path: { event_id } });
  check(read.data !== undefined && "message" in read.data, JSON.stringify(read.error));
  check(read.data.message === event.message, "the event is the one that was posted");

  // It is stored after at most DRAIN_INTERVAL.
  let listed: Event[] = [];
  while (listed.length === 0) {
    const page = await listEvents({ query: { service: event.service, limit: 10, order: "asc" } });
    check(page.data !== undefined && typeof page.data !== "string", JSON.stringify(page.error));
    listed = page.data.events;
  }
  check(listed[0]?.event_id === event_id, "the event is in its page");

  const refused = await postEvents({ body: { ...event, service: "" } });
  check(refused.response?.status === 400 && refused.error !== undefined, "an empty service is refused");
  check(refused.error.errors?.[0]?.field === "service", JSON.stringify(refused.error));

  const health = await getHealth();
  check(health.data?.status === "healthy", JSON.stringify(health.data));
  console.log("ok");
}

void main();
