// Runs in Node under a test: a client, which does what comes in on stdin and says what it sees on stdout.
//
// argv: JSON of the options of createClient (`tokenUrl`: a getToken that asks there; `ws`: with the WebSocket of
// that package), then a script's text to run first (to fake a clock, say). In: {"id", "run"}, `run` being the body
// of an async function of (db, state, subscribe). Out, a JSON text a line: {"id", "value"} or {"id", "error"};
// {"event", "to"}; {"status"}; {"ready" | "gap" | "failed", "to"}.
import { createInterface } from "node:readline";
import { PaperDBError, createClient, seqOf } from "paperdb";

const AsyncFunction = (async () => {}).constructor;
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const plain = (error) => ({ ...error, name: error?.name, message: String(error?.message), cause: undefined });

const { tokenUrl, ws, ...options } = JSON.parse(process.argv[2]);
if (ws) options.WebSocket = (await import("ws")).WebSocket;
await new AsyncFunction("options", process.argv[3] ?? "")(options);
if (tokenUrl) {
  options.getToken = async ({ collections }) => {
    const response = await fetch(`${tokenUrl}?collections=${collections}`);
    if (!response.ok) throw Object.assign(new Error("the back end refused"), { status: response.status });
    return response.text();
  };
}
const db = createClient(options);
const state = { PaperDBError, seqOf, offs: {} };
db.realtime.onStatus((status) => say({ status }));

/** Subscribe, and say everything about it under the name `to`. */
function subscribe(collection, to = collection) {
  state.offs[to] = db.realtime.subscribe(collection, (event) => say({ event, to }), {
    onReady: () => say({ ready: true, to }),
    onGap: (gap) => say({ gap, to }),
    onError: (error) => say({ failed: plain(error), to }),
  });
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, run } = JSON.parse(line);
  new AsyncFunction("db", "state", "subscribe", run)(db, state, subscribe).then(
    (value) => say({ id, value: value ?? null }),
    (error) => say({ id, error: plain(error) }),
  );
}
