// Listens until an event comes, whatever comes before it; prints that, and ends if nothing is left behind.
//
// argv: the SDK, the server's URL, a module whose default export is a WebSocket class ("": Node's own).
const [sdk, baseUrl, webSocketModule] = process.argv.slice(2);
const { createClient } = await import(sdk);

Math.random = () => 0; // no pause before it connects again
const db = createClient({
  baseUrl,
  getToken: async () => "a.token",
  ...(webSocketModule && { WebSocket: (await import(webSocketModule)).default }),
});

let stop = () => {};
function listen() {
  stop();
  stop = db.realtime.subscribe("x", onEvent, { onError: () => setImmediate(listen) });
}
function onEvent(event) {
  console.log(JSON.stringify(event));
  db.close();
}
listen();
