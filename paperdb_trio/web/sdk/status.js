/**
 * The state of the connection, and the listeners that are told of each change.
 *
 * Law: a status is frozen. Listeners are called when the state is whole (calls.js).
 */

export class Status {
  #calls;
  #listeners = new Set();
  #now = Object.freeze({ state: "closed", reason: "nothing is subscribed" });

  constructor(calls) {
    this.#calls = calls;
  }

  get now() {
    return this.#now;
  }

  listen(listener) {
    const own = (status) => listener(status); // so that the same function can be added twice
    this.#listeners.add(own);
    return () => void this.#listeners.delete(own);
  }

  show(status) {
    if (status.state === "live" && this.#now.state === "live" && status.reason === this.#now.reason) return;
    this.#now = Object.freeze(status);
    for (const listener of this.#listeners) this.#calls.queue(() => this.#calls.run(null, listener, status));
  }
}
