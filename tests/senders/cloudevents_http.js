// Sends CloudEvents with the JavaScript SDK, and each again until it is acknowledged.
const { CloudEvent, HTTP } = require('cloudevents');
const [url, events] = process.argv.slice(2);

async function main() {
  for (let number = 0; number < events; number++) {
    const event = new CloudEvent({ id: `node-${number}`, source: 'cloudevents-node', type: `cloudevent ${number}`,
      time: new Date().toISOString(), datacontenttype: 'application/json', data: { number } });
    const message = number % 2 ? HTTP.binary(event) : HTTP.structured(event);
    for (;;) {
      try {
        const response = await fetch(`${url}/events`, { method: 'POST', headers: message.headers, body: message.body });
        if (response.ok) break;
        if (response.status !== 429 && response.status !== 503) throw new Error(`${response.status}: ${await response.text()}`);
      } catch (error) {
        if (!(error instanceof TypeError)) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}
main().catch((error) => { console.error(error); process.exit(1); });
