// Many clients of the SDK in one Node process; see tests/stress/sdks.py.
//
// argv: JSON of {baseUrl, token, clients, collections}. Each client subscribes to two collections. Says "ready"
// once all are live; on a line of stdin it says, as JSON, what each handler was given:
// [[collection, [seq, …]], …], and again at each further line.
import { createInterface } from "node:readline";
import { createClient } from "paperdb";

const { baseUrl, token, clients, collections } = JSON.parse(process.argv[2]);
const given = [];
let waiting = 2 * clients;
const { random } = Math;
Math.random = () => random() * 0.2;

for (let number = 0; number < clients; number += 1) {
  const db = createClient({ baseUrl, getToken: async () => token });
  for (const name of [`c${number % collections}`, `c${(number * 7 + 1) % collections}`]) {
    const seqs = [];
    given.push([name, seqs]);
    db.realtime.subscribe(name, ({ seq }) => seqs.push(seq), {
      onReady: () => --waiting === 0 && console.log("ready"),
      onGap: () => seqs.push("gap"),
      onError: (error) => seqs.push(String(error)),
    });
  }
}

for await (const _ of createInterface({ input: process.stdin })) console.log(JSON.stringify(given));
